"""The Gradio page: an engine in, a page with a tab for each of its tasks out; and the command that serves it.

Tabs follow from a task's type, so a custom task has one without a line of code. Nothing on the page
comes from another machine: no fonts, no scripts, no analytics.
"""

from __future__ import annotations

import logging
import os
import socket
import textwrap
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.demo import render
from fintune.errors import DataError, FintuneError, MissingExtraError
from fintune.tasks.base import Prediction, Record, Task

if TYPE_CHECKING:
    import gradio

    from fintune.inference.engine import Engine

logger = logging.getLogger(__name__)

TITLES = {
    "sentiment": "Sentiment",
    "headline": "Headline",
    "summarization": "Summary",
    "qa": "Q&A",
    "regression": "Price move",
}
_ABOUT = {
    "sentiment": "Is a statement good or bad news for an investor: positive, negative or neutral?",
    "headline": "Which way does a headline point for the asset it names: bullish, bearish or neutral?",
    "summarization": "The key figures of an earnings call as a few bullet points.",
    "qa": "A question about a passage of a financial report, answered from that passage alone.",
    "regression": "The change in a stock's price on the next trading day, in percent, as its news suggests. "
    "A research exercise, not investment advice.",
}
_LABELS = {
    "sentiment": "Financial statement",
    "headline": "Headline",
    "summarization": "Earnings call transcript",
    "qa": "Passage of a report",
    "regression": "News about a stock",
}
_LINES = {"summarization": 12, "qa": 7, "regression": 4}
_VERBS = {
    "classification": "Classify",
    "summarization": "Summarize",
    "qa": "Answer",
    "regression": "Predict",
}
_WAITING = 32
"""Requests that may wait for the model; the next one is told that the demo is busy."""
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def build(engine: Engine) -> gradio.Blocks:
    """The page for an engine's tasks.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="fintune demo", analytics_enabled=False) as page:
        gr.HTML(_header(engine))
        with gr.Tabs():
            for task in engine.tasks:
                with gr.Tab(TITLES.get(task.name, _title(task.name)), id=task.name):
                    _tab(gr, engine, task)
    page.queue(default_concurrency_limit=1, max_size=_WAITING)
    return page


def launch(model_path: str | Path | None = None, port: int = 7860, host: str = "127.0.0.1") -> None:
    """Load the model, serve the page, and return when interrupted.

    Args:
        model_path: an adapter folder; None is the untuned base model.
        host: the address to listen on; by default only this machine can connect.

    Raises:
        FintuneError: the port is taken, the adapter cannot be loaded, or Gradio is not installed.
    """
    _gradio()
    check_port(host, port)
    from fintune.inference.engine import Engine

    print(f"Loading {model_path or 'the untuned base model'} …", flush=True)
    engine = Engine.load(model_path)
    print(describe(engine), flush=True)
    serve(build(engine), port, host)


def serve(page: gradio.Blocks, port: int, host: str = "127.0.0.1") -> None:
    """Serve a page built here until interrupted."""
    gr = _gradio()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            theme=_theme(gr),
            head=f"<style>{render.CSS}</style>",  # `css=` would confine the rules to the page's inner part
        )
    except OSError:
        check_port(host, port)
        raise
    if host not in _LOCAL_HOSTS:
        print("The demo has no password: whoever reaches this machine's network address can use it.")
    print(f"The demo is at http://{_printable(host)}:{port} (Ctrl+C stops it).", flush=True)
    page.block_thread()


def check_port(host: str, port: int) -> None:
    """Find out before the model is loaded whether the demo can listen there.

    Raises:
        FintuneError: it cannot; the message names the port and the fix.
    """
    if not 0 < port < 65536:
        raise FintuneError(f"--port must be between 1 and 65535, got {port}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror:
        raise FintuneError(
            f"--host {host} is no address of this machine; leave it out or use 127.0.0.1."
        ) from None
    except OSError as error:
        other = port + 1 if port < 65535 else 7860
        raise FintuneError(
            f"Port {port} cannot be used ({os.strerror(error.errno or 0).lower()}): "
            f"stop what is running there, or choose another one, for example --port {other}."
        ) from None


def describe(engine: Engine) -> str:
    """One sentence or two: which model answers."""
    if engine.adapter:
        return f"Model: {engine.base_name} with the adapter {engine.adapter}."
    return (
        f"Model: {engine.base_name} without an adapter, so the answers are untuned. "
        "Train one with  fintune train  and start the demo again."
    )


def examples(task: Task) -> list[Record]:
    """A few texts of our own writing to try a built-in task with: one of each label, or three."""
    from fintune.data.sample import sample_records

    try:
        records = sample_records(task.name, sizes=(0, 0, 12))
    except DataError:  # a custom task
        return []
    labels = {record.target: record for record in reversed(records)}
    return list(labels.values())[::-1] if task.name in ("sentiment", "headline") else records[:3]


def _header(engine: Engine) -> str:
    base = f"<code>{escape(str(engine.base_name))}</code>"
    if engine.adapter:
        model = f"<p>Model: {base} with the adapter <code>{escape(str(engine.adapter))}</code></p>"
    else:
        model = f"<p>Model: {base}</p>" + render.notice(
            "No trained adapter is loaded, so these are the answers of the untuned base model. "
            "Train one with “fintune train” and start the demo again."
        )
    count = len(engine.tasks)
    tasks = "one finance task" if count == 1 else f"{count} finance tasks"
    return f'<div class="ft-header"><h1>fintune</h1><p>One language model, {tasks}.</p>{model}</div>'


def _tab(gr: Any, engine: Engine, task: Task) -> None:
    """One task: examples on top, text in on the left, the answer on the right (below it on a phone)."""
    gr.HTML(f'<p class="ft-about">{escape(_ABOUT.get(task.name, task.instruction))}</p>')
    if obstacle := _obstacle(task):
        gr.HTML(render.notice(obstacle))
    inputs = [
        gr.Textbox(
            label=_LABELS.get(task.name, "Text"),
            lines=_LINES.get(task.type, 3),
            max_lines=16,
            placeholder="Paste a text here, or choose an example above.",
            elem_id=f"{task.name}-text",
            render=False,
        )
    ]
    if task.type == "qa":
        inputs.append(gr.Textbox(label="Question", elem_id=f"{task.name}-question", render=False))
    records = examples(task)
    if records:
        chosen = gr.Examples(
            [[r.text, r.question][: len(inputs)] for r in records],
            inputs,
            example_labels=[_example_label(task, r) for r in records],
            elem_id=f"{task.name}-examples",
            preload=False,
            api_visibility="private",
        )
    with gr.Row():
        with gr.Column(min_width=300):
            for box in inputs:
                box.render()
            button = gr.Button(_VERBS.get(task.type, "Run"), variant="primary", elem_id=f"{task.name}-run")
        with gr.Column(min_width=300):
            note = gr.HTML(visible=False, elem_id=f"{task.name}-note")
            place = {"label": "Answer", "elem_id": f"{task.name}-answer"}
            if task.decoding == "candidates" and task.type != "regression":
                empty, answer = None, gr.Label(**place)
            else:
                empty = render.empty("The answer will appear here.")
                answer = gr.HTML(empty, show_label=True, container=True, **place)
    gr.on(
        [button.click, *(box.submit for box in inputs)],
        _answerer(gr, engine, task, empty),
        inputs,
        [answer, note],
        show_progress_on=answer,
        scroll_to_output=True,
        concurrency_id="model",  # one request at a time on the model, whatever the tab
        concurrency_limit=1,
        api_visibility="private",
    )
    if records:  # an answer must not stand beside a text it does not belong to
        chosen.load_input_event.then(
            lambda: (empty, gr.update(visible=False)),
            None,
            [answer, note],
            queue=False,
            api_visibility="private",
        )


def _answerer(gr: Any, engine: Engine, task: Task, empty: str | None) -> Callable[..., tuple[Any, Any]]:
    """The function behind a tab's button: the boxes' texts in, the answer and the note out."""

    def answer(text: str, question: str | None = None) -> tuple[Any, Any]:
        def note(html: str) -> Any:
            return gr.update(value=html, visible=bool(html))

        if not text.strip():
            return empty, note(render.notice("There is no text yet: paste one, or choose an example."))
        if question is not None and not question.strip():
            return empty, note(render.notice("There is no question yet: type one, or choose an example."))
        try:
            prediction, remark = _whole_or_cut(engine, task, text, question)
        except FintuneError as error:
            return empty, note(render.failure(str(error)))
        except Exception:
            logger.exception("The %s tab could not answer", task.name)
            sentence = "Something unexpected went wrong; the terminal that runs the demo has the details."
            return empty, note(render.failure(sentence))
        return _shown(task, prediction), note(render.notice(remark) if remark else "")

    return answer


def _shown(task: Task, prediction: Prediction) -> Any:
    """The answer as the tab's component takes it."""
    if task.type == "regression":
        return render.number_answer(task, prediction)  # type: ignore[arg-type]
    if task.decoding == "candidates":
        return dict(prediction.probabilities) if prediction.probabilities else str(prediction.value)
    return render.text_answer(str(prediction.value))


def _whole_or_cut(engine: Engine, task: Task, text: str, question: str | None) -> tuple[Prediction, str]:
    """The answer, and a note where the text was too long to be read whole."""
    try:
        return engine.answer(task.name, text, question, truncate=False), ""
    except DataError:
        prediction = engine.answer(task.name, text, question, truncate=True)
    return prediction, (
        f"The text is longer than the {engine.template.max_length} tokens this model reads at once: "
        "only its beginning was used."
    )


def _obstacle(task: Task) -> str | None:
    """Why this task cannot be answered by the loaded model; None when it can."""
    try:
        if task.decoding == "candidates":
            task.candidates()
    except FintuneError as error:
        return str(error)
    return None


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _example_label(task: Task, record: Record) -> str:
    if task.type == "summarization":
        return f"A call of {record.group}"
    return textwrap.shorten(record.question or record.text, 58, placeholder=" …")


def _theme(gr: Any) -> Any:
    """Gradio's plain theme with the fonts of the reader's system and readable contrast."""
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        color_accent="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )


def _printable(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise MissingExtraError("The demo", "demo") from None
    return gradio
