"""Preparing data: from the sample or one's own file to Parquet, whole, repeatable, nothing lost silently."""

import csv
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare import shards
from fintune.data.prepare.dataset import load_prepared, prepare
from fintune.data.raw.readers import row_files
from fintune.errors import ConfigError, DataError
from fintune.files import Lock
from fintune.recipes import load_recipe
from fintune.tasks import registry

ROOT = Path(__file__).parents[3]
TASKS = ["sentiment", "headline", "summarization", "qa", "regression"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FINTUNE_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        registry, "_registered", dict(registry._registered)
    )  # the example plug-in registers itself
    yield
    sys.modules.pop("configs.examples.plugin_task", None)


def recipe(names=("sentiment",), **tasks):
    """A recipe of the named built-in tasks, with `data.tasks` as given."""
    return Recipe.model_validate(
        {
            "multi_task": {"task_weights": dict.fromkeys(names, 1)},
            "data": {"prepared_dir": "prepared", "tasks": tasks},
        }
    )


def quiet(_):
    pass


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own_file(rows, name="own.csv", header=("text", "target")):
    with open(name, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return name


def rows(count, start=0):
    labels = ("positive", "negative", "neutral")
    return [(f"Unit {i} reported.", labels[i % 3]) for i in range(start, start + count)]


def test_the_sample_is_prepared_for_all_five_tasks_and_says_what_it_is():
    lines = []
    prepared = prepare(recipe(TASKS), say=lines.append)
    assert prepared.describes == "built-in sample"
    assert len(lines) == 5 and all("built-in sample" in line for line in lines)
    for task in TASKS:
        entry = prepared.manifest["tasks"][task]
        for split, count in entry["counts"].items():
            records = prepared.records(task, split)
            assert len(records) == count > 0
            assert {record.split for record in records} == {split}
    assert isinstance(prepared.records("regression", "test")[0].target, float)
    assert prepared.records("qa", "test")[0].question
    assert len(prepared.task_set()["regression"].levels) > 5


def test_preparing_again_changes_nothing_and_preparing_anew_gives_the_same_bytes():
    first = prepare(recipe(TASKS), say=quiet)
    before = contents(first.folder)
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    lines = []
    again = prepare(recipe(TASKS), say=lines.append)
    assert again == first and lines == ["Data in prepared is up to date (built-in sample)."]
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == stamps
    prepare(recipe(TASKS), force=True, say=quiet)
    assert contents(first.folder) == before
    assert load_prepared("prepared") == first


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_neither_pieces_nor_workers_change_a_byte(kind, monkeypatch):
    path = Path(f"own.{kind}")
    made = [
        {"text": text, "target": label, "note": "é" * (i % 7)} for i, (text, label) in enumerate(rows(900))
    ]
    made[500] = {"text": "", "target": "neutral"}
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(made), path, row_group_size=100)
    config = recipe(sentiment={"file": str(path)})
    before = contents(prepare(config, say=quiet).folder)
    monkeypatch.setattr(row_files, "CUT_BYTES", 5_000)
    monkeypatch.setattr(shards, "PARALLEL_BYTES", 1)
    assert len(row_files.cuts(*row_files.row_files(path, "file"))) > 3
    for workers in (1, 3):
        prepared = prepare(config, force=True, say=quiet, workers=workers)
        assert contents(prepared.folder) == before
    named = prepared.manifest["tasks"]["sentiment"]["dropped_examples"]
    assert named == [f"own.{kind}:501: the text is empty"]


def test_partitioned_parquet_is_read_and_written_at_any_fsspec_path():
    config = recipe(sentiment={"file": "own.csv"})
    own_file(rows(90))
    prepared = prepare(config, say=quiet)
    assert prepared.copy_to("memory://bucket/out/") == 90
    with pytest.raises(DataError, match="memory://bucket/out/, which holds files already"):
        prepared.copy_to("memory://bucket/out/")
    config = recipe(sentiment={"file": "memory://bucket/out/task=sentiment"})
    config.data.prepared_dir = "again"
    again = prepare(config, say=quiet)
    for split, count in prepared.manifest["tasks"]["sentiment"]["counts"].items():
        found = {(record.text, record.target) for record in again.records("sentiment", split)}
        assert len(found) == count  # `split=…` of the path is the column `split`
        assert found == {(record.text, record.target) for record in prepared.records("sentiment", split)}


def test_a_forecast_and_a_nowcast_are_never_in_one_recipe():
    config = Recipe.model_validate(
        {
            "multi_task": {"task_weights": {"regression": 1, "today": 1}},
            "custom_task": {"name": "today", "type": "regression", "instruction": "Explain today's move."},
            "data": {"prepared_dir": "prepared", "tasks": {"today": {"dataset": "stocknet_nowcast"}}},
        }
    )
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/stocknet.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match="stocknet is a forecast, stocknet_nowcast a nowcast"):
        prepare(config, say=quiet)


def test_what_may_not_be_used_commercially_is_left_out_and_said(monkeypatch):
    folder = Path("data/raw/financial_phrasebank")
    folder.mkdir(parents=True)
    (folder / "Sentences_50Agree.txt").write_text("Sales rose.@positive\n")
    config = recipe(["sentiment", "qa"])
    config.data.commercial_only = True
    with pytest.raises(DataError, match=r"twitter_sentiment needs twitter_financial_news"):
        prepare(config, say=quiet)
    write_headlines(Path("data/raw/twitter_financial_news"))
    lines = []
    prepared = prepare(config, say=lines.append)
    assert prepared.manifest["tasks"]["sentiment"]["dataset"] == "twitter_sentiment"
    assert "financial_phrasebank (CC BY-NC-SA 3.0) does not allow commercial use" in lines[0]


def prepare_own(own_rows, header=("text", "target"), **settings):
    """Prepare sentiment from own.csv; returns the task's entry of the manifest and the dataset."""
    own_file(own_rows, header=header)
    prepared = prepare(recipe(sentiment={"file": "own.csv", **settings}), say=quiet)
    return prepared.manifest["tasks"]["sentiment"], prepared


def test_a_changed_file_or_another_seed_prepares_anew():
    first, _ = prepare_own(rows(60))
    second, prepared = prepare_own(rows(61))
    assert (sum(first["counts"].values()), sum(second["counts"].values())) == (60, 61)
    config = recipe(sentiment={"file": "own.csv"})
    config.training.seed = 7
    assert prepare(config, say=quiet).manifest["key"] == prepared.manifest["key"]
    config.data.seed = 7
    assert prepare(config, say=quiet).manifest["key"] != prepared.manifest["key"]


def test_limits_take_a_stratified_subset():
    limits = {"max_train": 30, "max_validation": 6, "max_test": 9}
    entry = prepare(recipe(sentiment=limits), say=quiet).manifest["tasks"]["sentiment"]
    assert entry["counts"] == {"train": 30, "validation": 6, "test": 9}
    assert set(entry["labels"]["train"].values()) == {10}


def test_duplicates_and_leaks_leave_the_training_split_only_and_are_counted():
    own_file([*rows(9, 100), ("Unit 3  REPORTED.", "positive")], "test.csv")
    train = [*rows(60), rows(1)[0], (rows(2)[1][0], "positive"), ("", "neutral")]
    entry, prepared = prepare_own(train, test_file="test.csv")
    assert entry["dropped"] == {
        "malformed rows": 1,
        "train texts also in test": 1,
        "exact duplicates in train": 1,
    }
    assert entry["dropped_examples"] == [
        "own.csv:64: the text is empty",
        "own.csv:5: train texts also in test",
        "own.csv:62: repeats own.csv:2",
    ]
    assert entry["counts"]["test"] == 10
    assert entry["counts"]["train"] + entry["counts"]["validation"] == 60
    texts = {
        split: {r.text for r in prepared.records("sentiment", split)} for split in ("train", "validation")
    }
    assert not texts["train"] & texts["validation"]  # the text with two labels is on one side


def test_a_training_text_that_nearly_stands_in_test_is_left_out_and_strict_refuses_it_where_it_stays(capsys):
    long = "Quarterly operating profit of the unit rose to {} million euros from 8.7 million a year earlier"
    own_file([(long.format("13.1"), "positive"), *rows(9, 100)], "test.csv")
    near = long.format("13.1") + " , it said"
    train = [*rows(60), (near, "positive"), (long.format("21.4") + " and more besides", "positive")]
    entry, _ = prepare_own(train, test_file="test.csv")
    assert entry["dropped"] == {"train texts also in test, nearly": 1}
    assert entry["dropped_examples"] == ["own.csv:62: 88 % of it stands in test.csv:2"]
    assert prepare_own(train, test_file="test.csv")[0] == entry
    config = Path("own.yaml")
    tasks = "{task_weights: {sentiment: 1}}\ndata: {prepared_dir: prepared, tasks: {sentiment: {"
    config.write_text(f"multi_task: {tasks}file: own.csv, test_file: test.csv}}}}}}\n")
    assert main(["data", "prepare", "--config", "own.yaml"]) == 0
    assert main(["data", "prepare", "--config", "own.yaml", "--strict"]) == 0
    assert "; 1 texts that repeat a held-out one were left out" in capsys.readouterr().out
    kept = ["--config", "own.yaml", "--set", "data.near_duplicates=null"]
    assert main(["data", "prepare", *kept, "--strict"]) == 1
    assert "sentiment: 1 near repetitions of test texts in " in capsys.readouterr().err


def test_near_repetitions_of_test_leave_validation_and_train_and_each_says_how_many():
    text = "Operating profit of the {} unit rose to 13.1 million euros from 8.7 million a year earlier"
    own_file([(text.format("northern"), "positive"), *rows(9, 100)], "test.csv")
    own_file([(text.format("northern") + " , it said", "positive"), *rows(9, 200)], "validation.csv")
    train = [*rows(60), (text.format("northern") + " , he said", "positive")]
    entry, _ = prepare_own(train, test_file="test.csv", validation_file="validation.csv")
    assert entry["dropped"] == {
        "validation texts also in test, nearly": 1,
        "train texts also in test, nearly": 1,
    }
    assert entry["counts"] == {"train": 60, "validation": 9, "test": 10}


def test_shuffling_and_changing_the_future_changes_no_byte_of_training():
    def dated(future):
        past = [(f"Unit {i} reported.", i % 7 - 3, f"2024-01-{1 + i // 4:02}") for i in range(100)]
        own_file([*past, *future], header=("text", "target", "time"))
        prepared = prepare(recipe(["regression"], regression={"file": "own.csv"}), say=quiet)
        entry = prepared.manifest["tasks"]["regression"]
        assert {r.time for r in prepared.records("regression", "test")} >= {f"2024-02-{d:02}" for d in (4, 5)}
        train = Path("prepared/regression/train.parquet").read_bytes()
        return train, entry["task"], entry["training_targets_clipped_to"]

    future = [(f"Later {i} said.", i % 5, f"2024-02-{1 + i // 4:02}") for i in range(20)]
    before = dated(future)
    assert before[1]["levels"] and before[2]
    assert dated([(f"Else {i} wrote.", -900 + i, day) for i, (_, _, day) in enumerate(future)]) == before
    assert dated([future[(7 * i) % 20] for i in range(20)]) == before


def test_training_targets_alone_are_winsorized():
    own_file([(f"Unit {i} reported.", 900 if i == 7 else i % 5) for i in range(200)])
    own_file([(f"Firm {i} reported.", 900) for i in range(5)], "test.csv")
    settings = {"file": "own.csv", "test_file": "test.csv", "winsorize": 0.02}
    config = recipe(["regression"], regression=settings)
    prepared = prepare(config, say=quiet)
    assert max(record.target for record in prepared.records("regression", "train")) == 4
    assert {record.target for record in prepared.records("regression", "test")} == {900}


def test_conflicting_labels_are_counted_and_kept():
    given = [(*row, "train") for row in [*rows(30), ("Unit 1 reported.", "positive")]]
    given += [(*row, split) for split, at in (("dev", 50), ("test", 60)) for row in rows(6, at)]
    entry, _ = prepare_own(given, header=("text", "target", "split"))
    assert entry["conflicting_targets_in_train"] == 1
    assert entry["counts"] == {"train": 31, "validation": 6, "test": 6}


def test_labels_of_a_file_are_mapped_and_unknown_ones_are_refused_with_the_mapping_to_write():
    coded = [(text, {"positive": 1, "negative": -1, "neutral": 0}[label]) for text, label in rows(30)]
    names = {1: "positive", -1: "negative", 0: "neutral"}
    entry, _ = prepare_own(coded, labels=names)
    assert set(entry["labels"]["train"]) == {"positive", "negative", "neutral"}
    wrong = [("Odd.", f"odd {i}") for i in range(7)] + [("Good.", "positiv")] * 2
    with pytest.raises(DataError) as caught:
        prepare_own([*rows(30), *wrong])
    for part in (
        "own.csv:32",
        "'positiv' (2, like positive), 'odd 0' (1), ",
        "'odd 6' (1); it knows: positive, negative, neutral",
        'data.tasks.sentiment.labels: {"positiv": null, "odd 0": null, ',
    ):
        assert part in str(caught.value)
    assert (
        "positive," not in str(caught.value).partition(".labels:")[2]
    )  # no unknown label is mapped to a known


def test_a_label_that_is_mapped_to_null_leaves_its_rows_out_and_they_are_counted():
    entry, _ = prepare_own([*rows(30), ("Odd.", "N/A"), ("Odder.", "n/a")], labels={"n/a": None})
    assert entry["dropped"] == {"rows of a label that is mapped to null": 2}
    assert entry["dropped_examples"][0] == "own.csv:32: its label is 'N/A'"


def test_labels_that_differ_in_case_and_spaces_are_one_and_a_line_says_so():
    given = [
        (text, {"positive": " POSITIVE ", "neutral": "Neutral"}.get(label, label)) for text, label in rows(30)
    ]
    own_file(given)
    said = []
    prepared = prepare(recipe(sentiment={"file": "own.csv"}), say=said.append)
    assert set(prepared.manifest["tasks"]["sentiment"]["labels"]["train"]) == {
        "positive",
        "negative",
        "neutral",
    }
    assert "' POSITIVE ' as 'positive' (10), 'Neutral' as 'neutral' (10)" in said[0]


def test_times_that_may_be_either_way_are_asked_for_and_others_decide_by_themselves():
    def dated(day, month):
        return [(f"Unit {i} reported.", i % 5, f"{month:02}/{day:02}/{1960 + i}") for i in range(60)]

    def prepared(given, **settings):
        own_file(given, header=("text", "target", "time"))
        config = recipe(["regression"], regression={"file": "own.csv", **settings})
        return prepare(config, say=quiet).records("regression", "train")

    with pytest.raises(DataError, match=r"own\.csv:2.* set  data\.tasks\.regression\.time_format: day_first"):
        prepared(dated(3, 1))
    assert prepared(dated(3, 1), time_format="day_first")[0].time[4:] == "-03-01"
    assert prepared(dated(28, 1))[0].time[4:] == "-01-28"


def test_an_empty_or_one_label_split_is_refused_by_task_file_and_fix():
    with pytest.raises(
        DataError, match=r"Task sentiment: the train split of own\.csv is empty.*own\.csv:2: the"
    ):
        prepare_own([("", "positive"), (" ", "negative")])
    with pytest.raises(
        DataError, match=r"Task sentiment: all .* of the train split of own\.csv .*'positive'.*add"
    ):
        prepare_own([(f"Unit {i} rose.", "positive") for i in range(30)])


def test_a_missing_file_is_named_with_its_key():
    with pytest.raises(
        DataError, match=r"no file or folder absent\.csv \(named by data\.tasks\.sentiment\.file,"
    ):
        prepare(recipe(sentiment={"file": "absent.csv"}), say=quiet)


def test_an_unknown_or_unfit_dataset_is_refused():
    with pytest.raises(ConfigError, match=r"unknown dataset 'stoknet'; did you mean 'stocknet'\?"):
        prepare(recipe(sentiment={"dataset": "stoknet"}), say=quiet)
    with pytest.raises(ConfigError, match="'stocknet', which is for regression tasks, but sentiment"):
        prepare(recipe(sentiment={"dataset": "stocknet"}), say=quiet)


def write_headlines(folder):
    folder.mkdir(parents=True)
    for name, start in (("train", 0), ("valid", 100)):
        lines = [f"Unit {i} reported,{i % 3}" for i in range(start, start + 30)]
        (folder / f"sent_{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")


def test_a_public_dataset_is_taken_where_it_is_found_and_the_sample_fills_in(monkeypatch):
    write_headlines(Path("raw/twitter_financial_news"))
    monkeypatch.setenv("FINTUNE_DATA_DIR", "raw")
    lines = []
    prepared = prepare(recipe(["headline", "qa"]), say=lines.append)
    assert prepared.manifest["tasks"]["headline"]["dataset"] == "twitter_financial_news"
    sums = prepared.manifest["tasks"]["headline"]["sha256"]
    assert sums == {
        f"twitter_financial_news/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path("raw/twitter_financial_news").iterdir()
    }
    assert prepared.describes == "built-in sample"  # for one task is
    assert "no financial_qa_10k/Financial-QA-10k.csv in raw" in lines[1]
    forced = prepare(recipe(["headline"], headline={"dataset": "sample"}), say=quiet)
    assert forced.manifest["tasks"]["headline"]["dataset"] == "built-in sample"


def test_a_data_folder_that_lacks_a_file_is_refused_by_that_files_name(monkeypatch):
    monkeypatch.setenv("FINTUNE_DATA_DIR", "raw")
    with pytest.raises(DataError, match="FINTUNE_DATA_DIR is raw, which is not a folder"):
        prepare(recipe(["headline"]), say=quiet)
    write_headlines(Path("raw/twitter_financial_news"))
    Path("raw/twitter_financial_news/sent_valid.csv").unlink()
    with pytest.raises(DataError, match=r"needs twitter_financial_news/sent_valid\.csv, which is missing"):
        prepare(recipe(["headline"]), say=quiet)


def test_prepared_data_that_is_absent_or_damaged_is_refused_with_the_fix():
    with pytest.raises(DataError, match="no prepared data in prepared: run  fintune data prepare"):
        load_prepared("prepared")
    prepare(recipe(), say=quiet)
    path = Path("prepared/sentiment/test.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"sentiment/test\.parquet is not as it was written.*--force"):
        load_prepared("prepared")
    path.unlink()
    with pytest.raises(DataError, match=r"sentiment/test\.parquet is missing"):
        load_prepared("prepared")
    assert prepare(recipe(), say=quiet) == load_prepared("prepared")  # mended without being told to


def test_data_that_another_preparation_replaced_is_not_read():
    prepared = prepare(recipe(), say=quiet)
    assert prepared.records("sentiment", "train")
    prepare(recipe(sentiment={"max_train": 30}), say=quiet)
    why = r"another run has replaced.*another data\.prepared_dir"
    with pytest.raises(DataError, match=why):
        prepared.records("sentiment", "train")
    (prepared.folder / "sentiment" / "train.parquet").unlink()
    with pytest.raises(DataError, match=why):
        prepared.records("sentiment", "train")


def test_data_in_use_is_shared_by_runs_that_want_it_and_not_replaced_by_others():
    """Another process is stood in for by another lock, as `flock` tells them apart."""
    prepare(recipe(), say=quiet)
    other = Lock(Path("prepared"), "in-use")
    assert other.take(shared=True)
    assert prepare(recipe(), say=quiet).records("sentiment", "train")
    with pytest.raises(
        DataError, match=r"Another run uses the data in prepared, .* data\.prepared_dir=prepared-2"
    ):
        prepare(recipe(sentiment={"max_train": 9}), say=quiet)
    other = None  # that run ends, however it does
    prepare(recipe(sentiment={"max_train": 9}), say=quiet)

    writing, lines = Lock(Path("prepared"), "lock"), []
    assert writing.take()

    def say(line):
        lines.append(line)
        writing.release()  # the other run is done

    prepare(recipe(sentiment={"max_train": 9}), say=say)
    assert "Waiting for another run that prepares prepared (process" in lines[0]
    assert "up to date" in lines[1]


def test_a_folder_that_holds_something_else_is_never_replaced():
    Path("prepared").mkdir()
    Path("prepared/thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something other"):
        prepare(recipe(), say=quiet, force=True)
    assert Path("prepared/thesis.txt").read_text() == "years of work"


def test_a_failed_preparation_leaves_the_last_one_as_it_was():
    before = contents(prepare(recipe(), say=quiet).folder)
    with pytest.raises(DataError):
        prepare_own([("Rose.", "positive")] * 3)
    assert contents(Path("prepared")) == before
    left = {path.name for path in Path().iterdir() if "prepared" in path.name}
    assert left == {"prepared", ".prepared.in-use"}


def test_the_guides_debug_command_prints_a_summary(capsys):
    from fintune.data.prepare.dataset import test_data_loading as summarize

    Path("configs").mkdir()
    Path("configs/default.yaml").write_text("multi_task: {task_weights: {sentiment: 1, qa: 1}}\n")
    summarize()
    out = capsys.readouterr().out
    assert "built-in sample" in out and "sentiment" in out and "120" in out


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("custom_classification", ["classification", "qa", "summarization", "regression"]),
        ("plugin_task", ["classification"]),
    ],
)
def test_the_documented_examples_of_new_tasks_prepare_their_data(name, types, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    config = load_recipe(f"configs/examples/{name}.yaml", [f"data.prepared_dir={tmp_path}/prepared"])
    prepared = prepare(config, say=quiet)
    assert [task.type for task in prepared.task_set()] == types
    for task in prepared.task_set():
        assert all(task.problem(record) is None for record in prepared.records(task.name, "test"))


def test_the_example_plugin_adds_its_own_metric(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from configs.examples.plugin_task import NoticeTask

    answers = [{"target": "urgent", "prediction": "urgent"}, {"target": "urgent", "prediction": "routine"}]
    assert NoticeTask().evaluate_custom_task(answers) == {"urgent_recall": 0.5}


# Rows that are alike in part ------------------------------------------------------------------------

WORDS = (
    "profit sales fell rose bank oil gold rates fund debt cash bond unit china euro tech retail chip".split()
)


def instruction_recipe(rows, kind="instruction", **data):
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "own", "type": kind, "instruction": "Answer."}
    data = {"prepared_dir": "prepared", "tasks": {"own": {"file": "own.jsonl"}}, **data}
    return Recipe.model_validate({"custom_task": task, "data": data})


def prepared_rows(recipe):
    lines = []
    prepared = prepare(recipe, say=lines.append)
    records = {split: prepared.records("own", split) for split in ("train", "validation", "test")}
    return records, prepared.manifest["tasks"]["own"], lines


def tweets(count):
    rng = random.Random(5)
    return [f"{' '.join(rng.choices(WORDS, k=rng.randint(6, 18)))} ${i}" for i in range(count)]


def test_different_texts_under_one_long_instruction_are_all_kept():
    told = " ".join(f"please{i}" for i in range(40))
    rows = [{"instruction": told, "input": text, "output": "up"} for text in tweets(3000)]
    rows.append({"instruction": told, "input": rows[0]["input"], "output": "up"})
    records, entry, lines = prepared_rows(instruction_recipe(rows))
    assert sum(entry["dropped"].values()) <= 3 and len(records["train"]) > 2400
    assert len(lines) == 1
    shown = {record.text for record in records["test"]}
    assert not shown & {record.text for record in records["train"]}


def test_conversations_that_begin_alike_are_split_by_what_is_asked_last():
    turns = [("user", "Hello, I have a question"), ("assistant", "Of course: what would you like to know?")]
    rows = [
        {"messages": [{"role": r, "content": c} for r, c in [*turns, ("user", text), ("assistant", "Yes.")]]}
        for text in tweets(80)
    ]
    records, entry, _ = prepared_rows(instruction_recipe(rows))
    assert not entry["dropped"] and [len(records[split]) for split in records] == [65, 7, 8]
    assert main(["data", "prepare", "--strict", *recipe_file(rows)]) == 0


def recipe_file(rows):
    config = instruction_recipe(rows).model_dump(exclude_unset=True)
    Path("own.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "own.yaml"]


def questions(contexts, count):
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(contexts)]
    return [
        {"text": texts[i % contexts], "question": text, "target": "yes"}
        for i, text in enumerate(tweets(count))
    ]


def test_questions_on_one_text_stay_together_and_are_divided_where_there_are_too_few_texts():
    records, entry, _ = prepared_rows(instruction_recipe(questions(10, 80), "qa"))
    assert not entry["dropped"] and not entry["notes"]
    sides = [{record.text for record in records[split]} for split in records]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10
    records, entry, lines = prepared_rows(instruction_recipe(questions(1, 80), "qa"))
    assert not entry["dropped"] and [len(records[split]) for split in records] == [65, 7, 8]
    assert "split by question" in lines[0]


def test_a_rule_that_leaves_out_many_rows_is_said_first_with_its_key_and_a_pair():
    short = [
        {"text": text, "target": "up", "time": f"2026-01-{1 + i // 20:02}"}
        for i, text in enumerate(tweets(99))
    ]
    with pytest.raises(DataError, match=r"data\.embargo_days is 5.*For example own\.jsonl:\d+ «"):
        prepare(instruction_recipe(short), say=quiet)
    text = f"{' '.join(WORDS)} was what the company said of its quarter and of the year ahead in the"
    own_file([*labelled(60), *[(f"{text} {word}", "positive") for word in ("north", "south")]], "test.csv")
    near = [(f"{text} {word} {word}", "positive") for word in ("north", "south") for _ in range(15)]
    own_file([*labelled(60, 200), *near])
    lines = []
    prepare(recipe(sentiment={"file": "own.csv", "test_file": "test.csv"}), say=lines.append)
    assert re.match(r"sentiment: 28 of 152 rows are left out \(exact duplicates in train\)", lines[0])
    assert lines[-1].startswith("sentiment: own.csv")


def test_near_repetitions_that_cost_many_rows_show_a_pair():
    held_out = [(f"{text} said today again", label) for text, label in labelled(40)]
    own_file(held_out, "test.csv")
    own_file([*labelled(40, 200), *[(f"{text} now", label) for text, label in held_out if len(text) > 90]])
    lines = []
    prepare(recipe(sentiment={"file": "own.csv", "test_file": "test.csv"}), say=lines.append)
    assert re.match(
        r"sentiment: \d+ of \d+ rows are left out \(train texts also in test, nearly\): data\."
        r"near_duplicates is 0\.8, and .* For example own\.csv:\d+ «.+» and test\.csv:\d+ «.+»\.",
        lines[0],
    )


def labelled(count, start=0):
    return [
        (text, "positive" if i % 2 else "negative") for i, text in enumerate(tweets(start + count)[start:])
    ]


# Rows without a time --------------------------------------------------------------------------------


def dated(times):
    return [
        {"text": text, "target": "up", "time": time}
        for text, time in zip(tweets(len(times)), times, strict=True)
    ]


def test_rows_without_a_time_are_split_at_random_and_said_and_the_others_by_time():
    times = [f"2026-{1 + i // 10:02}-{1 + i % 10:02}" if i % 3 else "" for i in range(90)]
    records, entry, lines = prepared_rows(instruction_recipe(dated(times), embargo_days=0))
    known = [[r.time for r in records[split] if r.time] for split in ("train", "validation", "test")]
    assert max(known[0]) < min(known[1]) <= max(known[1]) < min(known[2])
    assert [sum(not r.time for r in kept) for kept in records.values()] == [24, 3, 3]
    assert sum(len(kept) for kept in records.values()) == 90 and not entry["dropped"]
    assert lines[0].startswith("own: 30 of 90 rows have no time: they are split at random")


def test_training_rows_without_a_time_beside_dated_test_rows_are_said():
    rows = dated(["2026-01-01"] * 20 + [""] * 20)
    Path("test.jsonl").write_text(
        "".join(json.dumps({**row, "time": "2026-05-01"}) + "\n" for row in rows[:5])
    )
    tasks = {"own": {"file": "own.jsonl", "test_file": "test.jsonl"}}
    _, _, lines = prepared_rows(instruction_recipe(rows[5:], tasks=tasks))
    assert any("have no time: they are trained on" in line for line in lines[:2])


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (["2026-01-01", "2026-02-01", "2026-03-01"] + [""] * 57, "3 of 60 rows have a time"),
        (["2026-01-01"] * 30 + ["2026-01-02"] * 30, "all times are of 2 days"),
    ],
)
def test_a_split_that_time_cannot_make_is_random_and_says_so(times, says):
    records, entry, lines = prepared_rows(instruction_recipe(dated(times)))
    assert [len(records[split]) for split in records] == [49, 5, 6] and not entry["dropped"]
    assert says in lines[0] and "the split is random (data.seed)" in lines[0]


def test_half_a_character_costs_its_row_alone_wherever_it_stands():
    rows = [{"text": text, "target": "up"} for text in tweets(60)]
    rows[3]["text"] += " \ud83d"
    rows[4]["target"] = "up \ud83d"
    rows[5]["group"] = "\udc00"
    rows[6]["system"] = "Say \ud83d."
    _, entry, _ = prepared_rows(instruction_recipe(rows))
    assert entry["dropped"] == {"malformed rows": 4} and sum(entry["counts"].values()) == 56
    assert all("half a character" in why for why in entry["dropped_examples"])
