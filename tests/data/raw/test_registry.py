"""The registry: views that must not meet, and what a licence allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.cli import main
from fintune.data.raw.licences import commercial_dataset, commercial_use
from fintune.data.raw.registry import DATASETS, DEFAULTS, check_views
from fintune.errors import ConfigError
from fintune.tasks import known_tasks
from fintune.tasks.types import ClassificationTask


@given(st.lists(st.sampled_from([*DATASETS, "built-in sample", "reviews.csv"]), max_size=5))
def test_a_forecast_and_a_nowcast_never_stand_in_one_recipe(names):
    views = {DATASETS[name].view for name in names if name in DATASETS} - {""}
    if len(views) < 2:
        check_views(names)
    else:
        with pytest.raises(ConfigError, match=r"is a (forecast|nowcast), stocknet\w* a (forecast|nowcast)"):
            check_views(names)


def test_a_dataset_for_commercial_use_is_kept_replaced_or_left_out():
    tasks = known_tasks()
    chosen = {name: commercial_dataset(tasks[name], dataset) for name, dataset in DEFAULTS.items()}
    assert chosen.pop("sentiment") == (
        "twitter_sentiment",
        "sentiment: twitter_sentiment (data.commercial_only): financial_phrasebank (CC BY-NC-SA 3.0) "
        "does not allow commercial use.",
    )
    assert chosen == {name: (DEFAULTS[name], "") for name in chosen}
    mood = ClassificationTask("mood", "Name it.", ("positive", "negative", "neutral"))
    dataset, line = commercial_dataset(mood, "fiqa_sentiment")
    assert dataset is None and line.startswith("mood: left out (data.commercial_only): fiqa_sentiment")
    other = ClassificationTask("sentiment", "Name it.", ("good", "bad"))
    assert commercial_dataset(other, "financial_phrasebank")[0] is None


def test_commercial_use_is_told_in_a_word():
    names = ("finqa", "fiqa_sa", "built-in sample", "reviews.csv")
    assert [commercial_use(name) for name in names] == ["yes", "no", "yes", "yours to know"]


def test_every_classification_dataset_names_its_labels_and_readers_exist():
    import importlib

    for dataset in DATASETS.values():
        assert (dataset.type == "classification") == bool(dataset.labels)
        module, function = dataset.reader.split(":")
        assert callable(getattr(importlib.import_module(f"fintune.data.raw.readers.{module}"), function))
        assert dataset.paths and all(len(dataset.commit) >= 7 for _ in dataset.files)


def test_optional_files_are_read_where_they_are(tmp_path):
    tatqa = DATASETS["tatqa"]
    assert tatqa.paths == tatqa.found(tmp_path) == ["tatqa/tatqa_dataset_dev.json"]
    (tmp_path / "tatqa").mkdir()
    (tmp_path / "tatqa/tatqa_dataset_train.json").write_text("[]")
    assert tatqa.found(tmp_path) == ["tatqa/tatqa_dataset_dev.json", "tatqa/tatqa_dataset_train.json"]


def test_the_flag_of_data_prepare_leaves_out_what_is_not_for_commercial_use(workdir, capsys):
    sizes = "{dataset: sample, max_train: 20, max_validation: 6, max_test: 6}"
    (workdir / "r.yaml").write_text(
        "multi_task: {task_weights: {regression: 1, headline: 1}}\n"
        f"data: {{tasks: {{regression: {{dataset: fiqa_sa}}, headline: {sizes}}}}}\n"
    )
    command = ["data", "prepare", "--config", "r.yaml"]
    assert main(command) == 2 and "fiqa_sa needs" in capsys.readouterr().err
    assert main([*command, "--commercial-only"]) == 0
    assert "regression: left out (data.commercial_only)" in capsys.readouterr().out
