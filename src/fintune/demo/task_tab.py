"""A task's tab: examples on top, the text on the left, the answer on the right (below on a phone)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from fintune.data.documents.reading import ENDINGS, read_document
from fintune.data.storage import locate
from fintune.demo import render, texts
from fintune.errors import DataError
from fintune.inference import documents
from fintune.inference.engine import Engine
from fintune.tasks.base import Prediction, Record, Task

MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
"""The queue of events that use the model: one at a time, across all tabs."""


def add(gr: Any, engine: Engine, task: Task, records: Sequence[Record], warning: str) -> None:
    """Fill the open tab.

    Args:
        records: example texts.
        warning: what a reader must know about its answers; "" if nothing.
    """
    gr.HTML(f'<p class="ft-about">{escape(texts.ABOUT.get(task.name, task.instruction))}</p>')
    if obstacle := task.obstacle():
        gr.HTML(render.notice(obstacle))
    if warning:
        gr.HTML(render.notice(warning), elem_id=f"{task.name}-warning")
    inputs = _boxes(
        gr, task, "Paste a text here, or choose an example above." if records else "Paste a text here."
    )
    empty = render.empty("The answer will appear here.")
    chips = _examples(gr, task, records) if records else []
    # A summary appears beside its transcript and uses the page's full width; others appear beside their text.
    wide = task.grounded == "bullets"
    with gr.Column() if wide else gr.Row():
        with gr.Column(min_width=300):
            for box in inputs:
                box.render()
            document = _upload(gr, task)
            button = gr.Button(task.verb, variant="primary", elem_id=f"{task.name}-run")
        with gr.Column(min_width=300):
            note = gr.HTML(visible=False, elem_id=f"{task.name}-note")
            answer = gr.HTML(
                empty, label="Answer", show_label=True, container=True, elem_id=f"{task.name}-answer"
            )
    gr.on(
        [button.click, *(box.submit for box in inputs)],
        _answerer(gr, engine, task, empty),
        [document, *inputs],
        [answer, note],
        show_progress_on=answer,
        scroll_to_output=True,
        api_visibility="private",
        **MODEL,
    )
    for chip, record in chips:  # an answer must not stand beside another text
        chosen = [record.text, record.question or ""][: len(inputs)]
        chip.click(
            lambda chosen=chosen: (*chosen, empty, gr.update(visible=False), None),
            None,
            [*inputs, answer, note, document],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def _examples(gr: Any, task: Task, records: Sequence[Record]) -> list[tuple[Any, Record]]:
    """A button for each example. Gradio's own `Examples` shortens the text on its buttons."""
    where = "" if task.name in texts.TITLES else " from the test set"
    gr.HTML(f'<p class="ft-quiet">Examples{where}</p>')
    with gr.Row(elem_id=f"{task.name}-examples", elem_classes="ft-chips"):
        return [(gr.Button(texts.example_label(task, record), size="sm"), record) for record in records]


def _boxes(gr: Any, task: Task, hint: str) -> list[Any]:
    """A task's text boxes, to be rendered in their place."""
    found = [
        gr.Textbox(
            label=texts.LABELS.get(task.name, "Text"),
            lines=task.input_lines,
            max_lines=max(12, task.input_lines),
            placeholder=hint,
            elem_id=f"{task.name}-text",
            render=False,
        )
    ]
    if "question" in task.inputs:
        found.append(gr.Textbox(label="Question", elem_id=f"{task.name}-question", render=False))
    return found


def _upload(gr: Any, task: Task) -> Any:
    """The upload of a document instead of a text; none for a task whose answers do not come from a text."""
    if not task.grounded:
        return gr.State(None)
    return gr.File(
        label="Or a document (HTML, PDF, Markdown, text)",
        file_types=list(ENDINGS),
        height=150,
        elem_id=f"{task.name}-document",
    )


def unanswerable(text: str, question: str | None) -> str | None:
    """What is missing in the boxes, as a sentence; None if the model can answer."""
    if not text.strip():
        return "There is no text yet: paste one, or choose an example."
    if question is not None and not question.strip():
        return "There is no question yet: type one, or choose an example."
    return None


def _answerer(gr: Any, engine: Engine, task: Task, empty: str) -> Callable[..., tuple[Any, Any]]:
    """The function behind a tab's button: the boxes' texts in, the answer and the note out."""

    def note(html: str) -> Any:
        return gr.update(value=html, visible=bool(html))

    def answer(path: str | None, text: str, question: str | None = None) -> tuple[Any, Any]:
        if wanted := unanswerable("a document" if path else text, question):
            return empty, note(render.notice(wanted))
        try:
            if path:
                given = documents.answer(engine, task.name, [read_document(locate(path))], question)
                remark = "The document was read, and the text in the box was not." if text.strip() else ""
                return render.document_answer(task, given), note(render.notice(remark) if remark else "")
            record = Record(text, question=question)
            prediction, remark = ask(engine, task, record)
        except Exception as error:
            return empty, note(render.unanswered(error, f"The {task.name} tab could not answer"))
        return render.answer(task, record, prediction), note(render.notice(remark) if remark else "")

    return answer


def ask(engine: Engine, task: Task, record: Record, use_adapter: bool = True) -> tuple[Prediction, str]:
    """The answer, and a note if the text was too long to be read completely.

    Raises:
        DataError: the record cannot be answered.
    """
    try:
        return engine.predict(task.name, [record], use_adapter=use_adapter, truncate=False)[0], ""
    except DataError:
        prediction = engine.predict(task.name, [record], use_adapter=use_adapter, truncate=True)[0]
    read = "the sentences that say most were read" if task.salience else "only its beginning was used"
    return prediction, (
        f"The text is longer than the {engine.template.max_length} tokens this model reads at once: {read}."
    )
