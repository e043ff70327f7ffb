"""The HTML report in a real browser, from a file, without a network; and the results file it is made of."""

import json
import re
import shutil
import time

import pytest
from hostile import HOSTILE
from pydantic import BaseModel

from fintune.cli import main
from fintune.errors import DataError, MissingExtraError
from fintune.evaluation.measure_info import MeasureInfo
from fintune.evaluation.results import (
    FORMAT,
    Answer,
    Confusion,
    Disagreement,
    Neighbour,
    Point,
    Published,
    Results,
    output_files,
    read_predictions,
    read_results,
)
from fintune.models import card
from fintune.provenance import git_commit
from fintune.reports import markdown, plots, uploads
from fintune.reports.evaluation import html_report, write_report
from fintune.tasks.label_noise import CANDIDATES


def _shown(page):
    return page.locator("#errors > .example:visible")


def test_the_page_filters_its_errors_by_task_label_and_text(results_file, open_page):
    page = open_page(output_files(results_file)["page"])
    rows = read_predictions(output_files(results_file)["predictions"])
    wrong = [row for row in rows if row.error]
    assert page.inner_text("#count") == f"{len(wrong)} of {len(wrong)} answers"
    assert _shown(page).count() == 20  # and the rest on demand
    page.click("#more")
    assert _shown(page).count() == 40

    page.select_option("select[name=task]", "sentiment")
    own = [row for row in wrong if row.task == "sentiment"]
    assert page.inner_text("#count").startswith(f"{len(own)} of ")
    label = own[0].target
    page.select_option("select[name=label]", label)
    labelled = [row for row in own if row.target == label]
    assert page.inner_text("#count").startswith(f"{len(labelled)} of ")
    word = labelled[-1].text.split()[0]
    page.fill("input[name=text]", word)
    assert 1 <= _shown(page).count() <= len(labelled)
    assert all(word.lower() in text.lower() for text in _shown(page).all_inner_texts())
    page.fill("input[name=text]", "no such words anywhere")
    assert _shown(page).count() == 0


def test_a_confusion_and_a_slice_lead_to_their_errors(results_file, open_page):
    results = read_results(results_file)
    page = open_page(output_files(results_file)["page"])
    table = results.tasks["sentiment"].errors.confusion
    counts = {
        (a, b): table.matrix[i][j]
        for i, a in enumerate(table.labels)
        for j, b in enumerate(table.labels)
        if i != j and table.matrix[i][j]
    }
    count = max(counts.values())
    where = "#task-1 button.cell"
    page.locator(where, has_text=str(count)).first.click()
    assert page.input_value("select[name=mistake]") in {
        f"{a} → {b}" for (a, b), n in counts.items() if n == count
    }
    assert page.inner_text("#count").startswith(f"{count} of ")
    page.locator("#task-1 .link").first.click()
    assert page.input_value("select[name=trait]").endswith("words") and _shown(page).count() >= 1


def test_text_of_models_users_and_datasets_never_becomes_markup(results_file, open_page, tmp_path):
    results = read_results(results_file)
    rows = read_predictions(output_files(results_file)["predictions"])
    for row in rows:
        row.text = HOSTILE
        if row.error:
            row.error.mistake = row.id = HOSTILE
            row.error.traits = {"source": HOSTILE}
        if isinstance(row.prediction, str):
            row.prediction = HOSTILE
    for task in results.tasks.values():
        task.dataset = task.data.licence = HOSTILE
        task.measures = [MeasureInfo(name="accuracy", title=HOSTILE, better="higher")]
        for part in task.errors.slices:
            part.value = part.trait = HOSTILE
        for example in task.errors.worst:
            example.text = example.mistake = HOSTILE
            example.nearest = [Neighbour(id=HOSTILE, similarity=1, target=HOSTILE, text=HOSTILE)]
    results.model.adapter = results.data.folder = HOSTILE
    results.tasks["sentiment"].errors.confusion = Confusion(labels=[HOSTILE, "b"], matrix=[[0, 1], [1, 0]])
    path = tmp_path / "hostile.html"
    path.write_text(html_report(results, rows, HOSTILE), encoding="utf-8")
    page = open_page(path)
    assert page.evaluate("window.hacked") is None and page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert HOSTILE in page.locator("#errors .example p").nth(1).inner_text()
    page.locator("#task-1 .link").first.click()  # and a filter made of it still works
    assert page.input_value("select[name=trait]") == HOSTILE and _shown(page).count() >= 1


def test_the_page_is_made_again_without_the_model(results_file, tmp_path, capsys):
    written = output_files(results_file)["page"].read_text()
    assert main(["report", str(results_file), "--output_file", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == written
    assert (tmp_path / "again.md").read_text() == output_files(results_file)["report"].read_text()
    alone = tmp_path / "results.json"
    alone.write_bytes(results_file.read_bytes())
    page = write_report(alone).read_text()
    assert "predictions file is not beside" in page and 'id="errors"' not in page
    assert "http://" not in written.replace("http://www.w3.org", "") and "@import" not in written


def test_the_report_takes_a_folder_too(results_file, tmp_path, capsys):
    for file in output_files(results_file).values():
        shutil.copy(file, tmp_path)
    page, text = tmp_path / "results.html", tmp_path / "results.md"
    page.unlink()
    text.unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert str(page) in capsys.readouterr().out and page.is_file() and text.is_file()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "--output_file is ., which is a folder: name a file that ends in .html"),
        ("results.json", "--output_file must end in .html, got results.json"),
        ("results.json/page.html", "its folder cannot be written to"),
        ("/proc/page.html", "its folder cannot be written to"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_in_a_sentence(
    results_file, output, message, capsys, monkeypatch
):
    monkeypatch.chdir(results_file.parent)
    before = results_file.read_bytes()
    assert main(["report", "results.json", "--output_file", output]) == 2
    assert message in capsys.readouterr().err and results_file.read_bytes() == before


def test_a_system_that_answered_one_task_alone_and_published_figures_have_their_place(
    results_file, open_page, tmp_path
):
    results = read_results(results_file)
    systems = results.tasks["sentiment"].systems
    systems["tfidf"] = systems["baseline"].model_copy(
        update={"name": "TF-IDF", "metrics": {"accuracy": 0.99}}
    )
    about = {"dataset": "built-in sample", "system": "A system", "source": "a page", "differs": "all"}
    results.published = [
        Published(metric=metric, value=value, **about) for metric, value in (("accuracy", 0.7), ("mcc", 0.4))
    ]
    path = tmp_path / "more.html"
    path.write_text(html_report(results, [], "results.json"), encoding="utf-8")
    page = open_page(path)
    assert "0.990" in page.inner_text("#summary") and page.locator("#summary .better").count() >= 1
    accuracy = page.locator("#task-1 tr", has_text="accuracy").first
    assert "0.990" in accuracy.inner_text() and accuracy.locator(".better").count() == 0
    published = page.inner_text("#published")
    assert "0.700" in published and "0.400" in published and "a page; all" in published


def test_results_follow_the_documented_schema(results_file):
    raw = json.loads(results_file.read_text())
    assert raw["format"] == FORMAT and raw["git_commit"] == git_commit()
    strict = Results.model_validate(raw)
    again = strict.model_dump(mode="json", exclude_unset=True)
    assert again == json.loads(json.dumps(raw))
    assert strict.tasks["sentiment"].errors.slices[0].n > 0 and strict.tasks["qa"].data.counts["test"] == 30


def _unknown(part):
    """The keys, anywhere below, that the schema does not name."""
    if isinstance(part, BaseModel):
        own = {f"{type(part).__name__}.{key}" for key in part.model_extra or ()}
        return own.union(*(_unknown(getattr(part, name)) for name in type(part).model_fields))
    if isinstance(part, dict):
        part = list(part.values())
    return set().union(*map(_unknown, part)) if isinstance(part, list | tuple) else set()


def test_everything_that_is_written_is_in_the_schema(results_file):
    assert _unknown(Results.model_validate_json(results_file.read_text())) == set()
    lines = output_files(results_file)["predictions"].read_text().splitlines()
    assert set().union(*(_unknown(Answer.model_validate_json(line)) for line in lines)) == set()
    known = Results.model_json_schema()
    assert {"key", "git_commit"} <= known["properties"].keys()
    assert {"labels", "clusters", "systems_skipped"} <= known["$defs"]["TaskResult"]["properties"].keys()


def test_a_list_that_was_cut_says_of_how_many(results_file):
    results = read_results(results_file)
    errors = results.tasks["sentiment"].errors
    noise = errors.label_noise
    example = Disagreement(**errors.worst[0].model_dump(), gap=0.5, neighbours_agree=(1, 3))
    noise.confident = [example] * CANDIDATES
    noise.found["confident"] = 80

    def shown():
        page = html_report(results, [], "results.json")
        return [" ".join(text.split()) for text in re.findall(r"<summary>(.*?)</summary>", page, re.DOTALL)]

    assert f"The {CANDIDATES} most confident of 80 confident disagreements" in shown()
    noise.found["confident"] = CANDIDATES
    assert f"{CANDIDATES} confident disagreements" in shown()
    noise.found = {}  # results of before it was counted
    assert f"{CANDIDATES} or more confident disagreements" in shown()


def test_the_errors_of_a_slice_are_told_from_answers_that_are_merely_inexact(results_file, open_page):
    rows = read_predictions(output_files(results_file)["predictions"])
    tasks = read_results(results_file).tasks
    for name, task in tasks.items():
        own = [row.error for row in rows if row.task == name and row.error]
        slices = [part for part in task.errors.slices if part.trait == "length"]
        assert sum(part.errors for part in slices) == sum(error.counts for error in own)
    number = list(tasks).index("regression") + 1
    counted = [row for row in rows if row.task == "regression" and row.error]
    assert 0 < sum(row.error.counts for row in counted) < len(counted)  # or this shows nothing
    part = next(part for part in tasks["regression"].errors.slices if part.errors)
    page = open_page(output_files(results_file)["page"])
    page.locator(f"#task-{number} .link").first.click()
    assert page.input_value("select[name=counted]") == "an error"
    assert page.inner_text("#count").startswith(f"{part.errors} of ")
    page.select_option("select[name=counted]", "inexact, no error")
    errors = [row.error for row in counted if part.value in row.error.traits.values()]
    merely = sum(not error.counts for error in errors)
    assert page.inner_text("#count").startswith(f"{merely} of ")


def test_results_of_another_version_or_damaged_ones_are_refused_in_a_sentence(results_file, tmp_path):
    raw = json.loads(results_file.read_text())
    path = tmp_path / "results.json"
    for change, message in (
        ({"format": 1}, r"results.json has format 1, but this version reads 2: evaluate again"),
        ({"tasks": {"qa": {"type": "qa"}}}, r"results.json is damaged: tasks.qa.headline_metrics"),
        (
            {"tasks": {"qa": {"type": "qa", "headline_metrics": [], "errors": {"slices": [{}]}}}},
            r"slices.0.trait",
        ),
        ({"complete": None}, r"results.json is damaged: complete"),
    ):
        path.write_text(json.dumps({**raw, **change}))
        with pytest.raises(DataError, match=message):
            write_report(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="holds no results"):
        read_results(path)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(DataError, match=r"rows.jsonl is damaged"):
        read_predictions(tmp_path / "rows.jsonl")


def test_tensorboard_gets_every_metric(results_file, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    results = read_results(results_file)
    uploads.upload(results, [], tmp_path / "results.json", ["tensorboard"])
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "evaluation")).Reload()
    (point,) = events.Scalars("test/sentiment/accuracy")
    assert point.value == pytest.approx(results.tasks["sentiment"].systems["adapter"].metrics["accuracy"])
    assert "test/results/text_summary" in events.Tags()["tensors"]

    validation = results.model_copy(update={"settings": {**results.settings, "split": "validation"}})
    uploads.upload(validation, [], tmp_path / "other" / "results.json", ["tensorboard"])
    folder = tmp_path / "other" / "tensorboard" / "evaluation"
    tags = event_accumulator.EventAccumulator(str(folder)).Reload().Tags()
    assert {name.split("/")[0] for name in tags["scalars"] + tags["tensors"]} == {"validation"}


def test_wandb_logs_a_run_offline(results_file, tmp_path, monkeypatch, wandb_anew):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = read_predictions(output_files(results_file)["predictions"])
    uploads.upload(read_results(results_file), rows, tmp_path / "results.json", ["wandb"])
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process may still be writing
    while b"test/sentiment/accuracy" not in (content := log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"test/sentiment/accuracy" in content
    tables = list(tmp_path.glob("wandb/offline-run-*/files/media/table/errors_*.json"))
    assert len(tables) == 1 and len(json.loads(tables[0].read_text())["data"]) > 10
    table = json.loads(tables[0].read_text())
    counts = {line[0]: line[table["columns"].index("is_error")] for line in table["data"]}
    assert counts["sentiment"] is True and False in [line[-1] for line in table["data"]]


def test_a_tracker_that_is_not_installed_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(uploads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*wandb"):
        uploads.check(["wandb"])


def test_the_model_card_gets_the_figures_and_keeps_the_rest(results_file, tmp_path):
    results = read_results(results_file)
    text = "---\nbase_model: x\n---\n\n# An adapter\n\nTrained.\n\n## Use\n\n    fintune predict\n"
    (tmp_path / "README.md").write_text(text)
    card.put_evaluation(tmp_path, markdown.card_section(results))
    first = (tmp_path / "README.md").read_text()
    begin, end = first.index(card._BEGIN), first.index(card._END) + len(card._END)
    assert (first[:begin].rstrip() + first[end:].lstrip("\n")) == text.replace("\n\n## Use", "## Use")
    metrics = results.tasks["sentiment"].systems["adapter"].metrics
    accuracy = metrics["accuracy"]
    assert f"{accuracy:.3f}" in first and "| sentiment | built-in sample | accuracy | 30 |" in first
    metrics["accuracy"] = 0.123456
    card.put_evaluation(tmp_path, markdown.card_section(results))
    second = (tmp_path / "README.md").read_text()
    assert "0.123" in second and second.count("## On test examples") == 1
    assert second[:begin] == first[:begin] and second.endswith(first[end:])
    card.put_evaluation(tmp_path / "elsewhere", markdown.card_section(results))
    assert not (tmp_path / "elsewhere").exists()


def test_the_dashed_line_of_risk_and_coverage_is_the_accuracy_of_all():
    points = [
        Point(coverage=coverage, n=n, accuracy=accuracy, threshold=0.5)
        for coverage, n, accuracy in ((0.5, 1, 1.0), (1.0, 2, 0.6))
    ]
    for order in (points, points[::-1]):
        svg = plots.risk_coverage(order)
        dashed, curve = (
            re.search(f'class="{kind}" points="([^"]+)"', svg)[1].split() for kind in ("ideal", "curve")
        )
        whole = max(curve, key=lambda point: float(point.split(",")[0]))
        assert {point.split(",")[1] for point in dashed} == {whole.split(",")[1]}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-9.7, 8.1, [-5, 0, 5]),
        (0.3, 0.31, [0.3, 0.302, 0.304, 0.306, 0.308, 0.31]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low, high, expected):
    assert plots.ticks(low, high) == pytest.approx(expected)
