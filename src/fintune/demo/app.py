"""Builds the Gradio page with a tab for each of an engine's tasks, and serves it.

Tabs follow from a task's type, so a custom task gets one without code. Nothing on the page comes from another
machine: no fonts, no scripts, no analytics.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.demo import about, batch_tab, compare_tab, live_tab, results_tab, scratch, task_tab, texts
from fintune.errors import ConfigError, FintuneError, MissingExtraError
from fintune.serving.origins import OwnPagesOnly
from fintune.serving.settings import LOOPBACK, web_address

if TYPE_CHECKING:
    import gradio

    from fintune.inference.engine import Engine

STYLE = Path(__file__).with_name("style.css")
_WAITING = 32
"""The most requests that wait for the model; the next one is told that the demo is busy."""
_LARGEST_UPLOAD = "50mb"


LIVE_DIR = "output/live"
"""The default output folder of `fintune live`."""


def build(engine: Engine, live_dir: str | Path = LIVE_DIR, public: bool = False) -> gradio.Blocks:
    """The page for an engine's tasks.

    Args:
        live_dir: the output folder of `fintune live`, which may not exist yet.
        public: others may reach the page, so it must not show texts of the user's own data.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="fintune demo", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(about.header(engine))
        warnings = about.below_baseline(engine.adapter)
        examples = {
            task.name: texts.examples(task)
            or ([] if public else texts.held_out(engine.adapter, engine.recipe, task))
            for task in engine.tasks
        }
        with gr.Tabs(overflow_behavior="wrap"):
            for task in engine.tasks:
                with gr.Tab(texts.title(task), id=task.name):
                    task_tab.add(gr, engine, task, examples[task.name], warnings.get(task.name, ""))
            with gr.Tab("Compare", id="fintune.compare"):
                compare_tab.add(gr, engine, examples)
            with gr.Tab("Batch", id="fintune.batch"):
                batch_tab.add(gr, engine)
            with gr.Tab("Results", id="fintune.results") as results:
                results_tab.add(gr, results, engine.adapter)
            with gr.Tab("Live", id="fintune.live") as live:
                live_tab.add(gr, live, Path(live_dir))
        gr.HTML(
            '<p class="ft-footer">Answers of a language model: they may be wrong, and are not investment '
            "advice. Nothing you type leaves this server.</p>"
        )
    page.queue(default_concurrency_limit=1, max_size=_WAITING)
    return page


def launch(
    model_path: str | Path | None = None,
    port: int = 7860,
    host: str = "127.0.0.1",
    live_dir: str | Path = LIVE_DIR,
    hosts: Sequence[str] = (),
) -> None:
    """Load the model, serve the page, and return when interrupted.

    Args:
        model_path: an adapter folder; None is the untuned base model.
        host: the address to listen on; by default only this machine can connect.
        live_dir: the output folder of `fintune live`.
        hosts: host names that a proxy passes on, besides this machine's.

    Raises:
        FintuneError: the port is taken, the adapter cannot be loaded, or Gradio is not installed.
    """
    _gradio()
    check_port(host, port)
    from fintune.inference.engine import Engine

    print(f"Loading {model_path or 'the untuned base model'} …", flush=True)
    engine = Engine.load(model_path)
    print(describe(engine), flush=True)
    serve(build(engine, live_dir, host not in LOOPBACK), port, host, hosts)


def serve(page: gradio.Blocks, port: int, host: str = "127.0.0.1", hosts: Sequence[str] = ()) -> None:
    """Serve a page built here until interrupted; arguments as in `launch`."""
    from starlette.middleware import Middleware

    gr = _gradio()
    public = host not in LOOPBACK
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
            max_file_size=_LARGEST_UPLOAD,
            app_kwargs={"middleware": [Middleware(OwnPagesOnly, public=public, hosts=hosts)]},
            theme=_theme(gr),
            # `css=` would confine the rules to the page's inner part.
            head=f"<style>{STYLE.read_text(encoding='utf-8')}</style>",
        )
    except OSError:
        check_port(host, port)
        raise
    if public:
        print("The demo has no password: whoever reaches this machine's network address can use it.")
    print(f"The demo is at {web_address(host, port)} (Ctrl+C stops it).", flush=True)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that uploads are deleted
    page.block_thread()


def check_port(host: str, port: int) -> None:
    """Check, before the model is loaded, whether the demo can listen there.

    Raises:
        FintuneError: it cannot; the message names the port and the fix.
    """
    if not 0 < port < 65536:
        raise ConfigError(f"--port must be between 1 and 65535, got {port}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror:
        raise ConfigError(
            f"--host {host} is no address of this machine; leave it out or use 127.0.0.1."
        ) from None
    except OSError as error:
        other = port + 1 if port < 65535 else 7860
        raise FintuneError(
            f"Port {port} cannot be used ({os.strerror(error.errno or 0).lower()}): "
            f"stop what is running there, or choose another one, for example --port {other}."
        ) from None


def describe(engine: Engine) -> str:
    """One or two sentences on which model answers."""
    if engine.adapter:
        return f"Model: {engine.base_name} with the adapter {engine.adapter}."
    return (
        f"Model: {engine.base_name} without an adapter, so the answers are untuned. "
        "Train one with  fintune train  and start the demo again."
    )


def _theme(gr: Any) -> Any:
    """Gradio's plain theme with the reader's system fonts and readable contrast."""
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


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(scratch.folder() / "gradio"))
    try:
        import gradio
    except ImportError:
        raise MissingExtraError("The demo", "demo") from None
    return gradio
