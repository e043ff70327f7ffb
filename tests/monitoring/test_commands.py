"""`fintune monitor` and `fintune data from-feedback`, from the command line on."""

import json

import pyarrow.parquet as pq
import pytest

from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.monitoring.commands import drift
from fintune.monitoring.profile import Profile, TaskProfile
from fintune.monitoring.store import Store
from fintune.tasks import Prediction

from .predictions import add


@pytest.fixture
def store_url(tmp_path):
    url = f"sqlite:///{tmp_path}/monitoring.db"
    store = Store.open(url, keep=True)
    for i, target in enumerate(["positive", "negative", "neutral"] * 10):
        text = f"The company number {i} reported its result for the year."
        kept = add(store, "sentiment", text, Prediction("neutral", {"neutral": 0.9, "positive": 0.1}))
        store.add_feedback(kept, target=target)
    store.close()
    return url


def test_wrong_answers_become_a_file_that_prepares_as_training_data(store_url, workdir, capsys):
    command = ["data", "from-feedback", "--task", "sentiment", "--store", store_url]
    assert main([*command, "--output_file", "wrong.parquet"]) == 0
    assert main([*command, "--output_file", "all.jsonl", "--all"]) == 0
    assert "20 examples written" in capsys.readouterr().out
    assert set(pq.read_table("wrong.parquet")["target"].to_pylist()) == {"positive", "negative"}
    prepared = prepare(
        Recipe.model_validate(
            {
                "multi_task": {"task_weights": {"sentiment": 1.0}},
                "data": {"prepared_dir": "prepared", "tasks": {"sentiment": {"file": "all.jsonl"}}},
            }
        )
    )
    records = [r for split in ("train", "validation", "test") for r in prepared.records("sentiment", split)]
    assert len(records) == 30


def test_corrected_answers_join_the_training_file_and_the_test_set_stays(store_url, workdir, capsys):
    """The printed command's recipe: own rows as before, and what feedback taught, in train alone."""
    labels = ("positive", "negative", "neutral")
    rows = [
        f"Unit {n} of the group said that its orders changed by {n} %,{labels[n % 3]}" for n in range(120)
    ]
    (workdir / "own.csv").write_text("\n".join(["body,target", *rows]) + "\n")
    raw = {
        "multi_task": {"task_weights": {"sentiment": 1.0}},
        "data": {"near_duplicates": None, "prepared_dir": "a"},
    }
    own = {"file": "own.csv", "columns": {"text": "body"}}
    raw["data"]["tasks"] = {"sentiment": own}
    before = prepare(Recipe.model_validate(raw))
    held_out = {
        split: [r.text for r in before.records("sentiment", split)] for split in ("validation", "test")
    }
    store = Store.open(store_url, keep=True)
    for text in (held_out["test"][0], held_out["validation"][0]):
        kept = add(store, "sentiment", text, Prediction("neutral", {"neutral": 0.9}))
        store.add_feedback(kept, target="positive")
    store.close()

    command = ["data", "from-feedback", "--task", "sentiment", "--store", store_url, "--model_path", "model"]
    assert main([*command, "--output_file", "wrong.jsonl"]) == 0
    printed = "train --config model --set data.tasks.sentiment.more_train=wrong.jsonl"
    assert printed in capsys.readouterr().out
    own["more_train"] = "wrong.jsonl"
    raw["data"]["prepared_dir"] = "b"
    after = prepare(Recipe.model_validate(raw))
    for split, texts in held_out.items():
        assert [r.text for r in after.records("sentiment", split)] == texts
    train = {r.text: r.target for r in after.records("sentiment", "train")}
    assert len(train) == len(before.records("sentiment", "train")) + 20
    assert not set(train) & {text for texts in held_out.values() for text in texts}
    assert train["The company number 4 reported its result for the year."] == "negative"
    assert after.manifest["tasks"]["sentiment"]["dropped"] == {
        "more texts also in test": 1,
        "more texts also in validation": 1,
    }


def test_a_column_of_targets_has_one_type_whichever_kinds_of_answers_a_task_had(tmp_path, workdir):
    url = f"sqlite:///{tmp_path}/monitoring.db"
    store = Store.open(url, keep=True)
    for text, answer, target in (("one", 0.5, -1.5), ("two", "0.5", "unknown"), ("three", "4", 3.0)):
        store.add_feedback(add(store, "score", text, Prediction(answer)), target=target)
    store.close()
    assert (
        main(["data", "from-feedback", "--task", "score", "--store", url, "--output_file", "rows.parquet"])
        == 0
    )
    assert pq.read_table("rows.parquet")["target"].to_pylist() == ["-1.5", "unknown", "3"]


def test_feedback_shows_the_live_scores_and_forgets_on_request(store_url, capsys):
    assert main(["monitor", "feedback", "--store", store_url, "--forget", "30"]) == 0
    out = capsys.readouterr().out
    assert "0 predictions older than 30 days deleted" in out
    assert "sentiment: 30 answers with feedback, 33.3% right" in out
    assert main(["monitor", "feedback", "--store", store_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["tasks"]["sentiment"]
    assert told == {"feedback": 30, "accuracy": pytest.approx(1 / 3), "mae": None}


def test_what_is_missing_is_one_sentence(store_url, workdir, capsys):
    command = ["data", "from-feedback", "--output_file", "x.jsonl", "--store"]
    assert main([*command, "sqlite:///nowhere.db", "--task", "sentiment"]) == 2
    assert main([*command, store_url, "--task", "qa"]) == 2
    assert (
        main(["data", "from-feedback", "--store", store_url, "--task", "qa", "--output_file", "x.csv"]) == 2
    )
    errors = capsys.readouterr().err.splitlines()
    assert ["no store nowhere.db" in errors[0], "feedback is there for sentiment" in errors[1]] == [
        True,
        True,
    ]
    assert "must end in .jsonl or .parquet" in errors[2]


def test_drift_reads_the_answers_of_its_adapter_and_says_when_the_store_has_others_alone(tmp_path):
    url = f"sqlite:///{tmp_path}/monitoring.db"
    store = Store.open(url, keep=True)
    add(store, "sentiment", "profit fell", Prediction("neutral", {"neutral": 1.0}), model="old")
    store.close()
    said = {"old": [], "new": []}
    counted = {}
    for name in said:
        (tmp_path / name).mkdir()
        Profile({"sentiment": TaskProfile(n=200, labels={"neutral": 200})}).save(tmp_path / name)
        counted[name] = drift(tmp_path / name, url, None, said[name].append)["tasks"]["sentiment"]["n"]
    assert counted == {"old": 1, "new": 0} and said["old"] == []
    assert said["new"][0].startswith("The store has no answer of new, but of old:")


def test_an_evaluated_adapter_has_a_profile_and_drift_is_measured_against_it(
    tiny_recipe, store_url, workdir, capsys
):
    """Train, evaluate, and compare what the service kept, as an operator would."""
    import yaml

    recipe = tiny_recipe(multi_task={"task_weights": {"sentiment": 1.0}})
    recipe.data.tasks["sentiment"].max_test = None
    (workdir / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    assert main(["train", "--config", "recipe.yaml", "--output_dir", "model"]) == 0
    assert main(["evaluate", "--model_path", "model", "--output_file", "results.json"]) == 0
    profile = Profile.load("model").tasks["sentiment"]
    assert profile.n == len(prepare(recipe).records("sentiment", "test"))
    assert sum(profile.labels.values()) == profile.n

    assert main(["monitor", "profile", "--model_path", "model", "--max", "5"]) == 0
    assert Profile.load("model").tasks["sentiment"].n == 5
    command = ["monitor", "drift", "--model_path", "model", "--store", store_url, "--strict"]
    assert main([*command, "--output_file", "drift.json"]) == 0
    report = json.loads((workdir / "drift.json").read_text())
    assert report["tasks"]["sentiment"] == {"n": 30, "reference_n": 5, "status": "too few", "signals": {}}
    assert report["live_scores"]["sentiment"]["feedback"] == 30
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "too few"
