"""The quality report: what it counts, what it calls a leak, and that its page can be read on a phone."""

import csv
import json

import pytest
from chromium import chromium

from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.data.quality import measured as module
from fintune.data.quality.measured import build, leaks, overlaps, refuse_leaks
from fintune.errors import CheckFailed
from fintune.models.base import load_tokenizer
from fintune.reports.data_quality import write

CITIES = "Oslo Turin Lyon Porto Ghent Bergen Leeds Cork Graz Basel Malmo Vilnius Riga Split Brno".split()


def sentence(i, direction):
    city, other = CITIES[i % len(CITIES)], CITIES[(i * 7 + 3) % len(CITIES)]
    return f"Orders at the {city} plant number {i} {direction} by {i + 2} percent after {other} changed plans"


@pytest.fixture
def recipe(workdir):
    """A task with faults of every kind in its own file, whose splits the file gives."""
    rows = [
        (sentence(i, "rose" if i % 2 else "fell"), "up" if i % 2 else "down", split)
        for i, split in enumerate(["train"] * 30 + ["validation"] * 8 + ["test"] * 8)
    ]
    long = " ".join(f"word{i}" for i in range(400))
    rows += [
        (rows[38][0], rows[38][1], "train"),  # an exact leak, which preparation leaves out
        (f"{rows[39][0]} | again", "up", "train"),  # a near leak
        (f"{rows[0][0]} today", "down", "train"),  # a near duplicate within train
        (rows[1][0], "down", "train"),  # a conflict
        ("Orders in Nestlé".encode().decode("cp1252") + " rose", "up", "train"),
        (f"Lost B\ufffdrs {long}", "up", "train"),
        ("", "up", "train"),
    ]
    with (workdir / "own.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "target", "split"), *rows])
    return Recipe.model_validate(
        {
            "training": {"max_length": 256},
            "custom_task": {
                "name": "way",
                "type": "classification",
                "labels": ["up", "down"],
                "instruction": "Up or <b>down</b>?",
            },
            "multi_task": {"task_weights": {"way": 1}},
            "data": {"tasks": {"way": {"file": "own.csv"}}, "near_duplicates": None},  # or none were left
        }
    )


@pytest.fixture
def measured(recipe):
    prepared = prepare(recipe, say=lambda line: None)
    return build(prepared, load_tokenizer("smollm2-135m-instruct"), recipe)


def test_every_fault_in_the_data_is_counted_and_named(measured):
    task = measured["tasks"]["way"]
    train = task["splits"]["train"]
    assert train["rows"] == 35
    assert train["labels"] == {"down": 17, "up": 18}
    assert task["dropped"] == {"malformed rows": 1, "train texts also in test": 1}
    assert (train["duplicates"]["exact"], train["duplicates"]["near"]) == (1, 1)
    assert set(train["duplicates"]["examples"][0]["ids"]) == {"own.csv:2", "own.csv:50"}
    assert train["conflicts"]["texts"] == 1
    assert set(train["conflicts"]["examples"][0]["ids"]) == {"own.csv:3", "own.csv:51"}
    assert (train["encoding"]["repairable"], train["encoding"]["lost"]) == (1, 1)
    assert {example["id"] for example in train["encoding"]["examples"]} == {"own.csv:52", "own.csv:53"}
    to_test = next(leak for leak in task["leaks"] if (leak["from"], leak["to"]) == ("train", "test"))
    assert (to_test["exact"], to_test["near"]) == (0, 1)
    assert (to_test["examples"][0]["id"], to_test["examples"][0]["test_id"]) == ("own.csv:49", "own.csv:41")
    assert sum(train["words"]["histogram"]["counts"]) == 35


def test_bins_of_whole_numbers_hold_equally_many_numbers(measured):
    for kind in ("words", "tokens"):
        histogram = measured["tasks"]["way"]["splits"]["train"][kind]["histogram"]
        widths = {b - a for a, b in zip(histogram["edges"], histogram["edges"][1:], strict=False)}
        assert len(widths) == 1 and widths.pop().is_integer()


def test_tokens_cut_are_those_beyond_max_length(measured, recipe):
    from fintune.prompts import PromptTemplate

    prepared = prepare(recipe, say=lambda line: None)
    task = next(iter(prepared.task_set()))
    long = max(prepared.records("way", "train"), key=lambda record: len(record.text))
    whole = PromptTemplate(load_tokenizer("smollm2-135m-instruct"), 100_000).example(task, long)
    train = measured["tasks"]["way"]["splits"]["train"]
    assert train["tokens"]["max"] == len(whole)
    assert train["truncated"]["examples"] == 1
    assert train["truncated"]["tokens_cut"] == len(whole) - 256 > 0


def test_leaks_are_sentences_and_clean_data_has_none(measured, workdir):
    assert leaks(measured) == ["way: 1 near repetitions of test texts in train"]
    sizes = {"dataset": "sample", "max_train": 20, "max_validation": 6, "max_test": 6}
    clean = Recipe.model_validate(
        {
            "multi_task": {"task_weights": {"sentiment": 1}},
            "data": {"prepared_dir": "clean", "tasks": {"sentiment": sizes}},
        }
    )
    assert leaks(build(prepare(clean, say=lambda line: None), None, clean)) == []


def test_strict_refuses_what_the_report_calls_leaks_and_measures_nothing_else(measured, recipe, monkeypatch):
    monkeypatch.setattr(module, "_split", None)  # what is measured of a split alone
    with pytest.raises(CheckFailed) as refused:
        refuse_leaks(prepare(recipe, say=lambda line: None), recipe)
    assert str(refused.value).splitlines()[1:-1] == [f"  {sentence}" for sentence in leaks(measured)]


def test_strict_accepts_data_whose_repetitions_preparation_left_out_and_says_how_many(recipe):
    recipe.data.near_duplicates = 0.8
    said = []
    refuse_leaks(prepare(recipe, say=lambda line: None), recipe, said.append)
    assert said == [
        "No training text occurs in a test set of this run; 2 texts that repeat a held-out one were left out."
    ]


def test_a_training_text_in_the_test_set_of_another_task_of_the_run_is_a_leak(recipe, workdir):
    rows = [(sentence(100 + i, "rose"), "up" if i % 2 else "down", "train") for i in range(20)]
    rows += [(sentence(5, "rose"), "up", "test"), (sentence(1, "rose"), "down", "test")]
    rows += [(sentence(200 + i, "fell"), "up" if i % 2 else "down", "validation") for i in range(6)]
    with (workdir / "other.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "target", "split"), *rows])
    second = recipe.custom_task[0].model_copy(update={"name": "second"})
    raw = recipe.model_dump(exclude_unset=True)
    raw["custom_task"] = [recipe.custom_task[0].model_dump(), second.model_dump()]
    raw["multi_task"]["task_weights"]["second"] = 1
    raw["data"] |= {"near_duplicates": 0.8, "prepared_dir": "two"}
    raw["data"]["tasks"]["second"] = {"file": "other.csv"}
    both = Recipe.model_validate(raw)
    with pytest.raises(
        CheckFailed, match=r"\n  way: 3 exact repetitions of second: other.csv's test texts in train\n"
    ):
        refuse_leaks(prepare(both, say=lambda line: None), both)


def test_a_test_set_that_the_run_does_not_evaluate_on_is_listed_and_refuses_nothing(recipe, workdir):
    folder = workdir / "raw" / "twitter_financial_news"
    folder.mkdir(parents=True)
    (folder / "sent_train.csv").write_text(
        'text,label\n"A training text",1\n"Shares fall",0\n"Another one",1\n"Bonds rise",0\n'
    )
    (folder / "sent_valid.csv").write_text(f'text,label\n"{sentence(3, "rose")}",1\n"Nothing alike",0\n')
    recipe.data.dir = str(workdir / "raw")
    found = build(prepare(recipe, say=lambda line: None), None, recipe)
    assert found["across"]["test_sets"] == {"twitter_financial_news": 2, "way: own.csv": 8}
    assert found["across"]["train"][0]["found"]["twitter_financial_news"]["exact"] == 1
    assert overlaps(found) == ["way: 1 exact repetitions of twitter_financial_news's test texts in train"]
    assert leaks(found) == ["way: 1 near repetitions of test texts in train"]
    recipe.data.near_duplicates = 0.8
    said = []
    refuse_leaks(prepare(recipe, say=lambda line: None), recipe, said.append)
    assert said[0] == f"Not in a test set of this run: {overlaps(found)[0]}."
    recipe.multi_task.task_weights["headline"] = 1  # evaluated on Twitter's test set
    with pytest.raises(CheckFailed, match="way: 1 exact repetitions of twitter_financial_news's test texts"):
        refuse_leaks(prepare(recipe, say=lambda line: None), recipe)


def test_the_json_is_plain_and_a_second_report_is_the_same_to_the_byte(measured, tmp_path, recipe):
    first = [path.read_bytes() for path in write(tmp_path / "a", measured)]
    again = build(
        prepare(recipe, force=True, say=lambda line: None), load_tokenizer("smollm2-135m-instruct"), recipe
    )
    assert [path.read_bytes() for path in write(tmp_path / "b", again)] == first
    assert json.loads(first[0]) == measured
    assert b"<b>" not in first[2]


def test_the_page_fits_a_phone_and_loads_nothing(measured, tmp_path):
    page_file = write(tmp_path, measured)[2]
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("svg.plot").count() == 2
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 22, 24)"
        assert [url for url in requested if not url.startswith("data:")] == [page_file.as_uri()]


def test_the_command_prints_a_table_and_writes_three_files(recipe, workdir, capsys):
    import yaml

    (workdir / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(exclude_unset=True)))
    assert main(["data", "report", "--config", "recipe.yaml", "--output_dir", "quality"]) == 0
    shown = capsys.readouterr().out
    assert "leak: way: 1 near repetitions of test texts in train" in shown
    assert sorted(path.name for path in (workdir / "quality").iterdir()) == [
        "quality.html",
        "quality.json",
        "quality.md",
    ]
