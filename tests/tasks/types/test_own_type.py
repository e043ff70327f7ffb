"""A type that a plug-in brings (`ranking_plugin.py`) has everything that the built-in ones have."""

import json
import random
import sys
from pathlib import Path

import pytest
import yaml

from fintune.cli import main
from fintune.tasks import types

HERE = str(Path(__file__).parent)


@pytest.fixture
def run(workdir, tiny_base, monkeypatch):
    """A function: a command line → its exit code; the folder holds offers to rank and a recipe."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setattr(types, "_TYPES", dict(types._TYPES))
    monkeypatch.delitem(sys.modules, "ranking_plugin", raising=False)
    rng = random.Random(0)
    lines = []
    for i in range(80):
        prices = dict(zip("ABC", rng.sample(range(10, 99), 3), strict=True))
        text = f"Offer {i}: " + ", ".join(f"{item} costs {price}" for item, price in prices.items())
        text += ", no discount" if i % 2 else ""
        lines.append({"text": text, "target": ">".join(sorted(prices, key=prices.get))})
    lines.append({"text": "An offer of two", "target": "A > B"})
    Path("offers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = {
        "plugins": ["ranking_plugin"],
        "base_model": {"name": str(tiny_base)},
        "custom_task": {
            "name": "offers",
            "type": "ranking",
            "instruction": "Rank the offers by price.",
            "options": {"items": ["A", "B", "C"]},
        },
        "multi_task": {"task_weights": {"offers": 1}},
        "data": {"tasks": {"offers": {"file": "offers.jsonl"}}, "near_duplicates": None},
        "lora_config": {"r": 4, "lora_dropout": 0.0},
        "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "warmup_steps": 0, "bf16": False},
        "evaluation": {"baselines": ["tfidf"]},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return lambda line: main(line.split())


def test_a_plug_ins_type_is_prepared_trained_evaluated_compared_served_and_shown(run, capsys):
    assert run("train --config recipe.yaml --output_dir out") == 0
    said = capsys.readouterr().out
    assert "1 malformed rows" in said and "'A > B' is no order of A, B, C" in said

    assert run("evaluate --model_path out --output_file a.json") == 0
    entry = json.loads(Path("a.json").read_text())["tasks"]["offers"]
    own = entry["systems"]["adapter"]
    assert {"pairs", "best_first", "missing_rate"} <= set(own["metrics"]) == set(own["metrics_interval"])
    assert entry["systems"]["baseline"]["name"] == "most frequent answer"
    assert entry["systems_skipped"]["tfidf"] == "there is none for a task of type ranking"
    assert [m["title"] for m in entry["measures"]] == ["pairs in order", "best first", "missing"]
    errors = entry["errors"]
    assert errors["error_means"] == "an order with the wrong item first"
    assert set(errors["mistakes"]) <= {"wrong best", "wrong order"} and errors["slices"]
    page = Path("a.html").read_text()
    assert "pairs in order" in page and "wrong best" in page

    assert run("train --config recipe.yaml --output_dir other --set training.seed=7 --set data.seed=42") == 0
    assert run("evaluate --model_path other --output_file b.json") == 0
    assert run("compare a.json b.json --output_file compared.json") == 0
    compared = json.loads(Path("compared.json").read_text())["tasks"]["offers"]
    assert compared["measure"] == "pairs" and compared["metrics"]["pairs"]["interval"] is not None
    assert compared["won"] + compared["lost"] + compared["tied"] == compared["n"] > 0

    run("predict --model_path out --task offers --input_file offers.jsonl --output_file answers/")
    import pyarrow.parquet as pq

    table = pq.read_table("answers").to_pylist()
    assert len(table) == 81 and table[0]["best"] == table[0]["prediction"][0] and table[0]["probability"] > 0


def test_a_plug_ins_type_has_a_tab_and_a_route(run):
    assert run("train --config recipe.yaml --output_dir out") == 0
    testclient = pytest.importorskip("fastapi.testclient", reason="the API needs the serve extra")
    from fintune.serving.adapters import Models
    from fintune.serving.api import build
    from fintune.serving.queue import ModelThread
    from fintune.serving.settings import Settings

    models = Models("out")
    settings = Settings(model_path="out", insecure=True)
    with testclient.TestClient(
        build(settings, ModelThread(models, settings), None), base_url="http://127.0.0.1"
    ) as client:
        (info,) = client.get("/v1/tasks").json()["data"]
        assert (info["id"], info["type"]) == ("offers", "ranking")
        answer = client.post("/v1/tasks/offers", json={"text": "A costs 3, B costs 1, C costs 2"}).json()
        assert answer["data"][0]["prediction"] in answer["data"][0]["probabilities"]

    pytest.importorskip("gradio", reason="the demo needs the demo extra")
    from fintune.demo import app
    from fintune.inference.engine import Engine

    page = app.build(Engine.load("out"))
    buttons = [block.value for block in page.blocks.values() if type(block).__name__ == "Button"]
    assert "Rank" in buttons


def test_a_type_that_nobody_registered_is_named_with_those_there_are(workdir, tiny_base, capsys):
    recipe = {
        "custom_task": {"name": "offers", "type": "sorting", "instruction": "Rank."},
        "data": {"tasks": {"offers": {"file": "offers.jsonl"}}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert "custom_task.type of offers is 'sorting'" in said and "classification, multilabel" in said
