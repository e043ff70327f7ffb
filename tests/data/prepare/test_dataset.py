"""Preparing data: from the sample or one's own file to Parquet, whole, repeatable, nothing lost silently."""

import csv
import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
    with pytest.raises(DataError) as caught:
        prepare_own([*rows(30), ("Good.", "Positive")])
    for part in (
        "own.csv:32",
        "'Positive'",
        "valid are: positive, negative, neutral",
        "data.tasks.sentiment.labels: {'Positive': positive}",
    ):
        assert part in str(caught.value)


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
    with pytest.raises(DataError, match="FINTUNE_DATA_DIR is raw, which is no folder"):
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
    why = r"another preparation replaced.*another data\.prepared_dir"
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
    with pytest.raises(DataError, match="holds something else"):
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
    assert "built-in sample" in out and "sentiment" in out and "240" in out


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
