"""The demo in a real browser: the server runs on the real base model, and every tab is used."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import pytest

from fintune.demo.app import check_port, launch
from fintune.demo.texts import examples
from fintune.errors import FintuneError, MissingExtraError, ModelError
from fintune.tasks import known_tasks

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
PATIENCE = 60_000
"""Milliseconds an answer may take on a busy machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a demo, served by a process of its own."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'fintune[demo]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py")), str(port)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_PROXY": "127.0.0.1,localhost"},
        )
    url = f"http://127.0.0.1:{port}/"
    direct = build_opener(ProxyHandler({}))  # `urlopen` keeps the proxies of whichever test called it first
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            try:
                direct.open(url, timeout=10).close()
                break
            except (URLError, TimeoutError) as error:
                assert time.monotonic() < deadline, f"{error}\n{log.read_text()}"
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server, request):
    """A fresh page; at its end no request has left this machine and the console shows no error."""
    width, scheme = getattr(request, "param", (1200, "light"))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    hosts, errors = set(), []
    page.on("request", lambda r: hosts.add(urlsplit(r.url).hostname) if r.url.startswith("http") else None)
    page.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).hostname))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server)
    page.wait_for_selector("#sentiment-run")
    yield page
    page.close()
    assert hosts == {"127.0.0.1"}
    assert errors == []


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def run(page, task, wait_for=".ft-answer"):
    """Press the tab's button; the text of the answer (or of the note) once it is there."""
    page.click(f"#{task}-run")
    place = "note" if wait_for.startswith(".ft-notice") else "answer"
    found = page.locator(f"#{task}-{place}").locator(wait_for).first
    found.wait_for(timeout=PATIENCE)
    return page.inner_text(f"#{task}-{place}")


def choose_example(page, task):
    page.locator(f"#{task}-examples button").first.click()
    page.wait_for_function(f"document.querySelector('#{task}-text textarea').value.length > 10")


@pytest.mark.parametrize(
    ("task", "tab", "labels"),
    [
        ("sentiment", "Sentiment", {"positive", "negative", "neutral"}),
        ("headline", "Headline", {"bullish", "bearish", "neutral"}),
    ],
)
def test_an_example_is_classified_with_a_probability_for_each_label(page, task, tab, labels):
    open_tab(page, tab)
    choose_example(page, task)
    lines = run(page, task).split()
    assert labels <= set(lines)
    shares = [int(word.rstrip("%")) for word in lines if word.endswith("%")]
    assert len(shares) == 3 and 98 <= sum(shares) <= 102


@pytest.mark.parametrize(("task", "tab"), [("summarization", "Summary"), ("qa", "Q&A")])
def test_an_example_is_answered_with_text(page, task, tab):
    open_tab(page, tab)
    choose_example(page, task)
    assert len(run(page, task)) > len("Answer\n")


@pytest.mark.parametrize("page", [(390, "dark")], indirect=True)
def test_on_a_dark_phone_a_price_move_is_a_number_and_its_spread_and_nothing_overflows(page):
    open_tab(page, "Price move")
    choose_example(page, "regression")
    text = run(page, "regression")
    assert "Expected change in price on the next trading day" in text and "%" in text
    assert page.locator("#regression-answer .ft-spread i").count() > 3
    for width in (390, 360, 320):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(200)  # the tabs that do not fit move into a menu
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')")


def test_a_custom_task_has_a_tab_of_its_own_and_its_instruction_is_text_not_markup(page):
    open_tab(page, "Sector news")
    page.fill("#sector_news-text textarea", "The lender raised its mortgage rates.")
    assert {"bank", "energy", "other"} <= set(run(page, "sector_news").split())
    assert page.get_by_text("Name the sector of the <b>news</b>").is_visible()


def test_a_number_task_without_levels_says_to_train_first(page):
    open_tab(page, "Untrained number")
    page.fill("#untrained_number-text textarea", "Sales grew.")
    assert "train an adapter" in run(page, "untrained_number", ".ft-notice.ft-failure")


def test_an_empty_box_is_answered_with_a_friendly_sentence(page):
    assert "There is no text yet" in run(page, "sentiment", ".ft-notice")
    open_tab(page, "Q&A")
    page.fill("#qa-text textarea", "Revenue was $3 million.")
    assert "There is no question yet" in run(page, "qa", ".ft-notice")


def test_a_text_longer_than_the_context_is_cut_and_the_page_says_so(page):
    page.fill("#sentiment-text textarea", "Profit rose sharply. " * 400)
    assert "positive" in run(page, "sentiment")
    assert "only its beginning was used" in page.inner_text("#sentiment-note")
    choose_example(page, "sentiment")  # and neither note nor answer outlives its text
    page.locator("#sentiment-note .ft-notice").wait_for(state="hidden")
    page.locator("#sentiment-answer .ft-answer").wait_for(state="hidden")


def test_the_page_says_which_model_answers_and_that_it_is_untuned(page):
    header = page.inner_text(".ft-header")
    assert "smollm2-135m-instruct" in header and "untuned" in header


def test_a_taken_port_is_named_with_the_fix_before_any_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            FintuneError, match=rf"Port {port} cannot be used \(address already in use\).*--port"
        ):
            launch(port=port)


def test_without_gradio_the_message_is_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fintune\[demo\]'"):
        launch()


def test_an_impossible_port_or_host_is_refused():
    with pytest.raises(FintuneError, match="between 1 and 65535, got 70000"):
        check_port("127.0.0.1", 70000)
    with pytest.raises(FintuneError, match="--host no such host"):
        check_port("no such host", 7860)


def test_a_missing_adapter_folder_is_one_clear_sentence(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ModelError, match="absent"):
        launch(str(tmp_path / "absent"), port)


def test_every_built_in_task_has_examples_that_show_each_of_its_labels():
    for task in known_tasks().values():
        records = examples(task)
        assert len(records) == 3 and len({record.text for record in records}) == 3
        if task.type == "classification":
            assert {record.target for record in records} == set(task.labels)
