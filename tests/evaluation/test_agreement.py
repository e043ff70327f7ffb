"""What an export lost: figures of equal and of other answers, and what is done about them."""

import json

import pytest

from fintune.evaluation import agreement
from fintune.tasks import Prediction, task_set


def tasks():
    from fintune.config import Recipe

    return task_set(Recipe())


def test_equal_answers_lose_nothing_and_others_are_warned_of_or_refused():
    task = tasks()["sentiment"]

    def answers(shares):
        return [
            Prediction("positive" if p >= 0.5 else "negative", {"positive": p, "negative": 1 - p})
            for p in shares
        ]

    wanted = answers([0.9] * 20)
    same = agreement.compare(task, wanted, 1.0, wanted, 2.0)
    assert (same.equal, same.distance, same.verdict) == (1.0, 0.0, "ok")
    near = agreement.compare(task, wanted, 1.0, answers([0.85] * 20), 1.0)
    assert near.equal == 1.0 and near.distance == pytest.approx(0.05) and near.verdict == "warn"
    off = agreement.compare(task, wanted, 1.0, answers([0.9] * 17 + [0.4] * 3), 1.0)
    assert off.equal == pytest.approx(0.85) and off.verdict == "refuse"


def test_numbers_and_texts_have_figures_of_their_own():
    number, text = tasks()["regression"], tasks()["qa"]
    wanted = [Prediction(float(value)) for value in (1, 2, 3, 4)]
    moved = [Prediction(value.value + 0.5) for value in wanted]
    found = agreement.compare(number, wanted, 1.0, moved, 1.0)
    assert found.equal is None and found.difference == pytest.approx(0.5 / 1.118, abs=1e-3)
    said = [Prediction("revenue rose to 5 million"), Prediction("none")]
    other = [Prediction("revenue rose to 6 million"), Prediction("none")]
    found = agreement.compare(text, said, 1.0, other, 1.0)
    assert found.identical == 0.5 and found.rouge == pytest.approx(0.9) and found.equal is None


@pytest.mark.slow
def test_an_export_is_scored_kept_with_its_figures_or_removed(random_adapter, workdir, capsys):
    from fintune.cli import main

    command = ["export", "--model_path", str(random_adapter), "--rows", "3"]
    assert main([*command, "--output_dir", "merged", "--dtype", "f32"]) == 0
    shown = capsys.readouterr().out
    assert "What merged lost" in shown and "the built-in sample" in shown and "vllm serve merged" in shown
    kept = json.loads((workdir / "merged/export.json").read_text())
    assert kept["verdict"] == "ok" and kept["bytes"] > 1e6
    assert {task["task"] for task in kept["tasks"]} >= {"sentiment", "qa"}
    assert all(task["equal"] in (None, 1.0) and task["identical"] in (None, 1.0) for task in kept["tasks"])

    # Another base's weights: the answers are others.
    import shutil

    from safetensors.torch import load_file, save_file

    base = json.loads((random_adapter / "fintune.json").read_text())["recipe"]["base_model"]["name"]
    shutil.copytree(base, "other")
    state = load_file("other/model.safetensors")
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(state, "other/model.safetensors", {"format": "pt"})
    other = [*command, "--base_model", "./other", "--output_dir", "off"]
    assert main(other) == 1 and not (workdir / "off").exists()
    assert "answers otherwise than its adapter" in capsys.readouterr().err
    assert main([*other, "--force", "--json"]) == 0 and (workdir / "off/export.json").is_file()
    assert json.loads(capsys.readouterr().out)["agreement"]["verdict"] == "refuse"


@pytest.mark.slow
def test_a_gguf_is_scored_too_and_a_base_alone_is_a_base(random_adapter, workdir, capsys):
    from fintune.cli import main
    from fintune.models.base import load_tokenizer

    command = ["export", "--model_path", str(random_adapter), "--rows", "2"]
    assert main([*command, "--format", "gguf", "--dtype", "f32", "--output_dir", "gguf"]) == 0
    shown = capsys.readouterr().out
    assert "ollama create gguf-sentiment -f gguf/Modelfile.sentiment" in shown
    assert json.loads((workdir / "gguf/export.json").read_text())["verdict"] == "ok"
    assert main([*command, "--base", "--output_dir", "base"]) == 0
    assert {"config.json", "model.safetensors", "generation_config.json"} <= {
        p.name for p in (workdir / "base").iterdir()
    }
    assert load_tokenizer("./base").chat_template
    assert main(["predict", "--model_path", "base", "--task", "sentiment", "Profit rose."]) == 0
