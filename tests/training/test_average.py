"""The mean of adapters: exactly that of their changes, calibrated anew, of what belongs together alone."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fintune.cli import main
from fintune.errors import ModelError
from fintune.models import adapters, manifest
from fintune.training.average import average
from fintune.training.run import train


@pytest.fixture
def trained(tiny_recipe, workdir):
    """A function: name, changes of the recipe → the folder of an adapter trained by it."""

    def trained(name, **changes):
        changes["multi_task"] = {"task_weights": {"sentiment": 1, "regression": 1}}
        changes["data"] = {"seed": 5, **changes.get("data", {})}
        changes["training"] = {"learning_rate": 0.05, **changes.get("training", {})}
        train(tiny_recipe(**changes), workdir / name, progress=False)
        return workdir / name

    return trained


def changed_weights(base, folder):
    """The base's matrices with the adapter merged, in plain PEFT and double precision."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    model = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    return model.merge_and_unload().state_dict()


def test_in_plain_peft_it_changes_the_base_by_the_mean_of_the_changes(trained, tiny_base, workdir):
    lora = {"use_rslora": True, "init_lora_weights": "pissa"}
    a, b = (trained(name, lora_config=lora, training={"seed": s}) for name, s in (("a", 1), ("b", 2)))
    facts = average([a, b], workdir / "mean", say=lambda line: None)
    one, two, mean = (changed_weights(tiny_base, folder) for folder in (a, b, workdir / "mean"))
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).state_dict()
    for name in plain:
        torch.testing.assert_close(mean[name], (one[name] + two[name]) / 2, rtol=0, atol=1e-6)
    moved = max(float((one[name] - two[name]).abs().max()) for name in plain)
    assert moved > 1e-2
    assert facts["label_scoring"]["sentiment"]["temperature"] > 0
    assert adapters.rank(workdir / "mean") == 16  # PiSSA is saved with twice its rank
    # A lower rank keeps the largest singular values.
    average([a, b], workdir / "cut", rank=3, say=lambda line: None)
    cut = changed_weights(tiny_base, workdir / "cut")
    name = next(name for name in plain if name.endswith("q_proj.weight"))
    u, s, v = torch.linalg.svd(mean[name] - plain[name], full_matrices=False)
    torch.testing.assert_close(cut[name] - plain[name], (u[:, :3] * s[:3]) @ v[:3], rtol=0, atol=1e-5)


def test_the_command_names_its_members_in_card_and_manifest(trained, workdir, capsys):
    a = trained("a", training={"seed": 1}, data={"seed": None})  # its splits are of seed 1 too
    b = trained("b", training={"seed": 2}, data={"seed": 1})
    capsys.readouterr()
    assert main(["average", str(a), str(b), "--output_dir", "mean"]) == 0
    assert "The mean of 2 adapters, of rank 8: mean" in capsys.readouterr().out
    card = (workdir / "mean" / "README.md").read_text(encoding="utf-8")
    assert (
        "of 3 optimizer steps each: `a` (seed 1), `b` (seed 2)." in card and "LoRA, r = 8, alpha = 8" in card
    )
    raw = manifest.read_raw(workdir / "mean")
    assert [member["seed"] for member in raw["average_of"]] == [1, 2]
    assert raw["recipe"]["data"]["seed"] == 1
    assert main(["average", str(a), str(b), "--output_dir", "mean"]) == 2
    assert "--output_dir is mean, which is not empty" in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(trained, random_adapter, workdir):
    a = trained("a")

    def refused(other, why):
        with pytest.raises(ModelError, match=why):
            average([a, other], workdir / "mean", say=lambda line: None)

    with pytest.raises(ModelError, match="at least two adapters, got 1"):
        average([a], workdir / "mean")
    refused(workdir / "nowhere", "There is no adapter at")
    refused(random_adapter, r"has no fintune\.json of a training")
    splits = trained("splits", data={"seed": 6, "prepared_dir": str(workdir / "other")})
    refused(splits, "splits has other prepared data than .*a: they have no mean")
    config = splits / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    refused(splits, "splits is a DoRA adapter")
    assert not (workdir / "mean").exists()
