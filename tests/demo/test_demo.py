"""The demo in a real browser: the server runs on the real base model, and every tab is used."""

import contextlib
import csv
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import httpx
import pytest
import server as server_process
from chromium import chromium
from evaluated import write_results
from forked import Forked

from fintune.demo import render
from fintune.demo.app import check_port, launch
from fintune.demo.texts import examples
from fintune.errors import FintuneError, MissingExtraError, ModelError
from fintune.tasks import known_tasks

OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""What the page would need of another machine, it does not get."""
PATIENCE = 60_000
"""Milliseconds an answer may take on a busy machine."""


@contextlib.contextmanager
def started(folder, *arguments):
    """A demo in a process of its own: a function that waits for it and returns its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = Forked(server_process.main, port, folder / "live", *arguments, NO_PROXY="127.0.0.1,localhost")
    url = f"http://127.0.0.1:{port}/"
    direct = build_opener(ProxyHandler({}))  # `urlopen` keeps the proxies of whichever test called it first

    def ready():
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                direct.open(url, timeout=10).close()
                return url
            except (URLError, TimeoutError) as error:
                assert time.monotonic() < deadline, error
                time.sleep(0.2)

    try:
        yield ready
    finally:
        process.terminate()
        process.wait(timeout=20)


REPORT = """<!doctype html><html><head><title>Report</title></head><body><h1>Figures</h1>
<a href="#end">To the end</a>
<p style="height:3000px"></p><p id="end">The end</p><img src="https://example.com/pixel.png">
<script>document.body.dataset.ran = 1; try { parent.document.title = "taken" } catch {}</script>
</body></html>"""
CARD = "---\ntags: [x]\n---\n\n# A card\n\n![pixel](https://example.com/pixel.png)\n"


@pytest.fixture(scope="module")
def servers(tmp_path_factory, tiny_base):
    """Two demos: of the untuned base, and of a small one with an adapter."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("tuned")
    with started(tmp_path_factory.mktemp("demo")) as untuned:
        make_adapter(folder / "adapter", tiny_base)
        with started(folder, folder / "adapter") as tuned:
            yield untuned(), tuned()


@pytest.fixture
def server(servers):
    return servers[0]


@pytest.fixture
def tuned_server(servers):
    return servers[1]


def make_adapter(folder, tiny_base):
    """An adapter at random on a small base; its report and its card would like to call home."""
    import peft
    from transformers import AutoModelForCausalLM

    from fintune.config import BUILT_IN_TASKS, Recipe
    from fintune.data.prepare.dataset import prepare
    from fintune.data.raw.sample import sample_records
    from fintune.models import manifest
    from fintune.tasks import task_set

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(base, lora).save_pretrained(folder)
    custom = {"name": "flows", "type": "classification", "labels": ["in", "out"], "instruction": "Say which."}
    rows = [
        f"{amount} million flowed {way} of fund {way}{amount}.,{way}"
        for amount in range(30)
        for way in ("in", "out")
    ]
    (folder.parent / "flows.csv").write_text("\n".join(["text,target", *rows]))
    data = {
        "prepared_dir": str(folder.parent / "prepared"),
        "tasks": {"flows": {"file": str(folder.parent / "flows.csv")}},
    }
    raw = {
        "base_model": {"name": str(tiny_base)},
        "training": {"bf16": False},
        "custom_task": custom,
        "data": data,
    }
    prepared = prepare(Recipe.model_validate(raw), say=lambda line: None)
    weights = dict.fromkeys((*BUILT_IN_TASKS, "flows"), 1.0)
    recipe = Recipe.model_validate({**raw, "multi_task": {"task_weights": weights}})
    tasks = task_set(recipe)
    tasks["regression"].fit(sample_records("regression", sizes=(60, 0, 0)))
    for name in ("summarization", "qa"):
        tasks[name].max_new_tokens = 8
    known = {"qa": {"dataset": "tatqa", "counts": {"train": 1234}, "dropped": {"too <long>": 5}}}
    data = {"key": prepared.manifest["key"], "tasks": known}
    manifest.write(folder, recipe, tasks, data=data, optimizer_steps=7, created="2026-11-28T11:05:00+01:00")
    write_results(folder, "2026-11-28T11:05:00+01:00", accuracy=0.31)
    (folder / "results.html").write_text(REPORT)
    (folder / "README.md").write_text(CARD)


@pytest.fixture(scope="module")
def browser():
    with chromium(OFFLINE) as running:
        yield running


@contextlib.contextmanager
def opened(browser, url, width=1200, scheme="light", strict=True):
    """A fresh page; at its end no request has left this machine and, if strict, the console has no error."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    hosts, errors, requests = set(), [], []
    page.on("request", lambda r: requests.append(r))  # Playwright takes no bound method of a list
    page.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).hostname))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#sentiment-run")
    yield page
    # What the frame's policy stops is reported as a request too, at times, but never leaves the browser.
    sent = [r for r in requests if r.url.startswith("http") and r.failure != "csp"]
    page.close()
    assert {urlsplit(r.url).hostname for r in sent} | hosts == {"127.0.0.1"}
    assert errors == [] or not strict


@pytest.fixture
def page(browser, server, request):
    with opened(browser, server, *getattr(request, "param", ())) as page:
        yield page


@pytest.fixture
def tuned(browser, tuned_server, request):
    with opened(browser, tuned_server, *getattr(request, "param", ())) as page:
        yield page


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name, exact=True)
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


def test_a_summary_stands_beside_its_transcript(page):
    open_tab(page, "Summary")
    choose_example(page, "summarization")
    run(page, "summarization")
    transcript = page.input_value("#summarization-text textarea")
    passage = page.locator("#summarization-answer .ft-passage")
    plain = passage.evaluate(
        "e => { e.querySelectorAll('sup').forEach(s => s.remove()); return e.textContent }"
    )
    assert plain == transcript
    assert page.locator("#summarization-answer li").count() >= 1


def test_an_answer_is_marked_in_its_passage(page):
    open_tab(page, "Q&A")
    page.fill("#qa-text textarea", "The company is called Northvale. Its revenue was $3 million.")
    page.fill("#qa-question textarea", "What was its revenue?")
    run(page, "qa")
    assert "$3 million" in "".join(page.locator("#qa-answer mark").all_inner_texts())


def test_a_question_is_answered_from_an_uploaded_document_with_its_place(page, tmp_path):
    open_tab(page, "Q&A")
    file = tmp_path / "report.html"
    file.write_text("<h1>Item 7. Results</h1><p>Revenue of the northern segment was $412 million.</p>")
    page.set_input_files("#qa-document input[type=file]", file)
    page.get_by_text("report.html").first.wait_for()
    page.fill("#qa-question textarea", "What was the revenue of the northern segment?")
    said = run(page, "qa")
    assert "report.html, Item 7. Results" in said and "Read: all of report.html" in said
    page.fill("#qa-question textarea", "Which vaccines were approved?")
    page.click("#qa-run")
    page.get_by_text("Not in this document.").wait_for(timeout=PATIENCE)


@pytest.mark.parametrize("page", [(390, "dark")], indirect=True)
def test_on_a_dark_phone_a_price_move_is_a_number_and_its_spread_and_nothing_overflows(page):
    open_tab(page, "Price move")
    choose_example(page, "regression")
    text = run(page, "regression")
    assert "Expected change in price on the next trading day" in text and "%" in text
    assert page.locator("#regression-answer .bar").count() > 3
    assert "80 % of its probability" in text and page.locator("#regression-answer .band").is_visible()
    for width in (390, 360, 320):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_role("tab").locator("visible=true").count() == 7 + 4  # tasks, and the further tabs
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


def test_without_an_adapter_the_further_tabs_say_what_is_missing(page):
    for tab, command in (("Compare", "fintune train"), ("Results", "fintune run"), ("Live", "fintune live")):
        open_tab(page, tab)
        page.locator(".ft-missing code", has_text=command).locator("visible=true").first.wait_for()


def test_the_page_says_what_was_trained_when_and_which_task_is_below_its_baseline(tuned):
    header = tuned.inner_text(".ft-header")
    assert "Trained on tatqa on 28 November 2026 at 10:05 UTC." in header
    assert "majority class): accuracy 0.310 against 0.340." in tuned.inner_text("#sentiment-warning")
    assert tuned.locator("#headline-warning").count() == 0


def test_a_task_of_ones_own_offers_whole_texts_of_its_test_set(tuned, tuned_server):
    open_tab(tuned, "Flows")
    chips = tuned.locator("#flows-examples button")
    chips.nth(2).wait_for()
    said = chips.all_inner_texts()
    assert len(said) == 3 and all(text.endswith(".") for text in said)
    chips.nth(1).click()
    tuned.wait_for_function("document.querySelector('#flows-text textarea').value.length > 10")
    assert tuned.input_value("#flows-text textarea") == said[1]


def test_base_and_adapter_answer_side_by_side(tuned):
    open_tab(tuned, "Compare")
    tuned.click("#compare-run")
    tuned.locator("#compare-note .ft-notice", has_text="There is no text yet").wait_for()
    for task, mark in (("Headline", ".ft-bars"), ("Price move", ".band")):
        tuned.get_by_label(task, exact=True).locator("visible=true").check()
        tuned.click("#compare-example")
        tuned.wait_for_function("document.querySelector('#compare-text textarea').value.length > 10")
        tuned.click("#compare-run")
        for side in ("base", "tuned"):
            tuned.locator(f"#compare-{side} {mark}").wait_for(timeout=PATIENCE)
        tuned.locator("#compare-note .ft-remark").wait_for()
        assert tuned.inner_html("#compare-base") != tuned.inner_html("#compare-tuned")


def test_a_file_is_answered_with_progress_errors_by_row_and_a_csv(tuned, tmp_path):
    open_tab(tuned, "Batch")
    tuned.click("#batch-run")
    tuned.locator("#batch-status .ft-notice", has_text="There is no file yet").wait_for()
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n" + "".join(f"r{i},Sales rose {i} %.\n" for i in range(40)) + "last,\n")
    tuned.set_input_files("#batch-file input[type=file]", path)
    tuned.locator("#batch-file").get_by_label("rows.csv").wait_for()
    tuned.click("#batch-run")
    link = tuned.locator("#batch-result a").first
    link.wait_for(timeout=PATIENCE)
    status = tuned.inner_text("#batch-status")
    assert "All 41 rows are done, 1 without an answer" in status and "the text is empty" in status
    with tuned.expect_download() as download:
        link.click()
    with open(download.value.path(), encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 41 and rows[39]["id"] == "r39" and rows[39]["prediction"]
    preview = tuned.locator("#batch-preview tbody tr")
    preview.first.wait_for()
    assert preview.count() == 20


def test_a_file_without_texts_is_refused_by_its_own_name(tuned, tmp_path):
    open_tab(tuned, "Batch")
    path = tmp_path / "wrong.csv"
    path.write_text("a,b\n1,2\n")
    tuned.set_input_files("#batch-file input[type=file]", path)
    tuned.locator("#batch-file").get_by_label("wrong.csv").wait_for()
    tuned.click("#batch-run")
    failure = tuned.locator("#batch-status .ft-failure")
    failure.wait_for()
    assert "wrong.csv" in failure.inner_text() and "text" in failure.inner_text()
    assert "/tmp" not in failure.inner_text()


def test_the_report_stays_in_its_frame_and_card_and_data_are_shown(browser, tuned_server):
    with opened(browser, tuned_server, 390, "dark", strict=False) as page:  # the frame's policy complains
        open_tab(page, "Results")
        report = page.frame_locator("#results-evaluation iframe")
        report.get_by_role("heading", name="Figures").wait_for()
        report.locator("body[data-ran]").wait_for()  # its own script may run
        report.get_by_role("link", name="To the end").click()
        page.wait_for_timeout(200)
        assert report.locator("#end").evaluate("e => e.getBoundingClientRect().top < innerHeight")
        assert page.title() == "fintune demo" and "#end" not in page.url
        page.get_by_role("tab", name="Model card", exact=True).click()
        page.get_by_role("heading", name="A card").wait_for()
        page.get_by_role("tab", name="Data and training", exact=True).click()
        page.locator("#results-data table").wait_for()
        text = page.inner_text("#results-data")
        assert "tatqa" in text and "1,234" in text and "optimizer steps" in text
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_foreign_host_or_page_is_answered_nothing(tuned_server):
    upload = {"files": ("a.csv", b"text\na\n")}
    with httpx.Client(base_url=tuned_server, trust_env=False) as client:
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
        for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert client.post("/gradio_api/upload", files=upload, headers=foreign).status_code == 403
        own = {"Origin": tuned_server.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        assert client.post("/gradio_api/upload", files=upload, headers=own).status_code == 200


def test_a_hostile_report_asks_nothing_of_a_network(browser, tuned_server):
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{listener.server_port}/"
    hostile = (
        f"<script>fetch('{there}early')</script><html><head><title>x</title></head>",
        f'<head data-x=">"><img src="{there}attribute"><script src="{there}script"></script>',
        f"<script>location = '{there}location'</script>",
        f'<meta http-equiv="refresh" content="0; url={there}refresh"><a href="{there}">a</a>',
        f"<script>document.write('<a id=a href={there}click>a</a>'); a.click()</script>",
    )
    with opened(browser, tuned_server, strict=False) as page:
        for report in hostile:
            html = render.frame(report, "Report")
            page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", html)
        page.wait_for_timeout(1500)
    listener.shutdown()
    listener.server_close()
    assert [path for path in asked if path != "/favicon.ico"] == []


def test_what_was_uploaded_goes_with_the_process_however_it_ends(tmp_path):
    """SIGTERM removes it; after kill −9 the next demo does."""
    code = (
        "import signal, sys, time; from fintune import files; from fintune.demo import scratch; "
        "files.YOUNG = 0; "
        "signal.signal(signal.SIGTERM, signal.default_int_handler); "
        "(scratch.folder() / 'answers.csv').write_text('secret'); print(scratch.folder(), flush=True); "
        "time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def begun():
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return process, Path(process.stdout.readline().strip())

    killed, left = begun()
    killed.kill()
    killed.wait(20)
    assert left.stat().st_mode & 0o077 == 0 and (left / "answers.csv").exists()
    running, here = begun()
    assert not left.exists() and here.exists()
    other, _ = begun()
    assert here.exists()
    for process in (running, other):
        process.terminate()
        process.wait(20)
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(MissingExtraError, match=r"pip install .*gradio"):
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
