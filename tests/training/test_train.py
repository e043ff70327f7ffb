"""A run from recipe to adapter: resuming, plain PEFT, logs, trackers, variants, and mistakes."""

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import Forked
from safetensors.torch import load_file

from fintune.data.prepare.dataset import load_prepared
from fintune.errors import ConfigError, MissingExtraError, ModelError
from fintune.inference.engine import Engine
from fintune.kernels.likelihood import span_mean_nll, target_nll
from fintune.training.run import train
from fintune.training.steps import StepBuilder


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_leaves_a_plain_peft_adapter_its_checkpoints_manifest_card_and_log(
    tiny_recipe, workdir, capsys
):
    import peft
    import transformers

    recipe = tiny_recipe(training={"save_steps": 1, "save_total_limit": 2})
    facts = train(recipe, workdir / "out", progress=False)
    folders = sorted(path.name for path in (workdir / "out").iterdir() if path.is_dir())
    assert folders == ["checkpoint-3", "checkpoint-4", "tensorboard"]  # no more, and none half written
    base = transformers.AutoModelForCausalLM.from_pretrained(recipe.base_model.name)
    model = peft.PeftModel.from_pretrained(base, workdir / "out")
    assert any(value.abs().sum() > 0 for name, value in model.state_dict().items() if "lora_B" in name)

    manifest = json.loads((workdir / "out" / "fintune.json").read_text())
    assert manifest["recipe"]["training"]["learning_rate"] == 1e-3
    assert manifest["training"]["examples"] == 32 == facts["training"]["examples"]
    assert manifest["data"]["tasks"]["qa"]["dataset"] == "built-in sample"
    assert set(manifest["versions"]) >= {"python", "torch", "transformers", "peft", "fintune"}
    card = (workdir / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and "built-in sample" in card
    log = next((workdir / "logs").glob("train-*.log")).read_text()
    assert "sentiment_loss=" in log and "eval_headline_accuracy=" in log
    assert list((workdir / "out" / "tensorboard").glob("events.*"))
    assert "Validation loss at step 4/4, lower is better: " in capsys.readouterr().out


def test_a_run_that_was_killed_resumes_to_the_same_weights(tiny_recipe, workdir, capsys):
    changes = {"training": {"save_steps": 1, "max_steps": 8}, "lora_config": {"lora_dropout": 0.2}}
    recipe = tiny_recipe(**changes)
    train(recipe, workdir / "whole", progress=False)

    process = Forked(partial(train, recipe, "killed", progress=False))
    deadline = time.monotonic() + 300
    while not (workdir / "killed" / "checkpoint-2").is_dir():
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint was written"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (workdir / "killed" / "adapter_model.safetensors").exists(), "it ended before it was killed"

    train(recipe, workdir / "killed", resume="latest", progress=False)
    whole, killed = weights(workdir / "whole"), weights(workdir / "killed")
    assert whole.keys() == killed.keys()
    for name in whole:
        torch.testing.assert_close(killed[name], whole[name], rtol=0, atol=0)

    facts = train(recipe, workdir / "killed", resume="latest", progress=False)  # of the last step
    assert facts["training"]["examples"] == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_an_adapter_is_kept_although_its_data_goes_and_what_was_measured_of_the_one_before_goes(
    tiny_recipe, workdir, monkeypatch
):
    """Then a retraining is killed between two files: what it leaves is of two adapters, and says so."""
    from fintune.training import run

    real = run.MultiTaskTrainer.train
    recipe, out = tiny_recipe(training={"max_steps": 1}), workdir / "out"

    def then_prepared_elsewhere(self, **options):
        real(self, **options)
        shutil.rmtree(recipe.data.prepared_dir)

    out.mkdir()
    for name in ("results.json", "results-validation-predictions.jsonl", "profile.json", "notes.txt"):
        (out / name).write_text("of the adapter before")
    with monkeypatch.context() as patch:
        patch.setattr(run.MultiTaskTrainer, "train", then_prepared_elsewhere)
        assert train(recipe, out, progress=False)["label_scoring"]
    assert Engine.load(out).adapter == out
    assert [path.name for path in out.glob("*.*") if path.read_bytes() == b"of the adapter before"] == [
        "notes.txt"
    ]

    move, moved = os.replace, []

    def killed(old, new):
        move(old, new)
        if Path(new).parent == out and Path(old).parent.name == ".adapter-in-writing":
            moved.append(new.name)
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", killed)
        train(tiny_recipe(training={"max_steps": 1, "seed": 7}), out, overwrite=True, progress=False)
    assert moved == ["fintune.json"]
    with pytest.raises(
        ModelError, match=r"mixes two adapters: fintune.json and adapter_model.safetensors do not"
    ):
        Engine.load(out)


def test_a_truncated_or_foreign_checkpoint_is_refused_in_a_sentence(tiny_recipe, workdir):
    recipe = tiny_recipe()
    with pytest.raises(ModelError, match="no checkpoint to resume from"):
        train(recipe, workdir / "out", resume="latest")
    with pytest.raises(ModelError, match="There is no checkpoint at"):
        train(recipe, workdir / "out", resume=workdir / "absent")
    train(recipe, workdir / "out", progress=False)
    with pytest.raises(ConfigError, match=r"training\.learning_rate = 0\.001, but the recipe says 0\.01"):
        train(tiny_recipe(training={"learning_rate": 0.01}), workdir / "out", resume="latest")
    manifest = workdir / "out" / "checkpoint-4" / "fintune.json"  # as written before a key was there
    facts = json.loads(manifest.read_text())
    del facts["recipe"]["training"]["regression_loss_weight"]
    manifest.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"regression_loss_weight = 0\.0, but the recipe says 0\.5"):
        train(tiny_recipe(training={"regression_loss_weight": 0.5}), workdir / "out", resume="latest")
    for name in ("optimizer.pt", "adapter_model.safetensors"):
        path = workdir / "out" / "checkpoint-4" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match="damaged"):
            train(recipe, workdir / "out", resume="latest")
        path.write_bytes(whole)


def test_the_same_seed_gives_the_same_adapter_and_another_gives_another(tiny_recipe, workdir):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny_recipe(training={"seed": seed, "max_steps": 2}), workdir / name, progress=False)
    a, b, c = (weights(workdir / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_config": {"use_dora": True}, "training": {"shared_prefix": False, "batch_size": 2}},
        {
            "lora_config": {"use_rslora": True, "lora_dropout": 0.1},
            "training": {"gradient_checkpointing": True, "dataloader_num_workers": 1},
            "multi_task": {"sampling_strategy": "weighted", "task_weights": {"qa": 2, "headline": 1}},
        },
        {
            "lora_config": {"init_lora_weights": "pissa"},
            "training": {"loraplus_lr_ratio": 4},
            "multi_task": {
                "sampling_strategy": "temperature",
                "task_weights": {"sentiment": 1, "regression": 0},
            },
        },
        {
            "lora_config": {"init_lora_weights": "pissa_niter_2", "use_rslora": True},
            "training": {"fp16": True, "bf16": None},
        },
    ],
    ids=["dora", "rslora", "pissa", "pissa_niter_2"],
)
def test_every_variant_trains_and_its_loss_falls(tiny_recipe, workdir, changes):
    """Each with settings of other sections that work beside it."""
    changes = {section: dict(values) for section, values in changes.items()}
    batch = changes.setdefault("training", {}).pop("batch_size", None)
    changes["training"] |= {"max_steps": 12, "learning_rate": 3e-2, "num_train_epochs": 8}
    changes["training"]["lr_scheduler_type"] = "constant"
    changes.setdefault("multi_task", {"task_weights": {"sentiment": 1, "regression": 1}})
    if batch:
        changes["training"]["per_device_train_batch_size"] = batch
    train(tiny_recipe(**changes), workdir / "out", progress=False)
    state = json.loads((workdir / "out" / "checkpoint-12" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_pissa_resumes_to_the_same_weights_and_its_plain_adapter_does_what_was_trained(tiny_recipe, workdir):
    recipe = tiny_recipe(
        lora_config={"init_lora_weights": "pissa", "use_rslora": True}, training={"save_steps": 2}
    )
    facts = train(recipe, workdir / "whole", progress=False)
    train(recipe, workdir / "resumed", resume=workdir / "whole" / "checkpoint-2", progress=False)
    whole, resumed = weights(workdir / "whole"), weights(workdir / "resumed")
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=1e-5, atol=1e-7)
    config = json.loads((workdir / "whole" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    # The loss that was measured over the changed base is that of the plain adapter over the plain base.
    engine = Engine.load(workdir / "whole", recipe)
    records = load_prepared(recipe.data.prepared_dir).records("sentiment", "validation")
    examples = [engine.template.example(engine.tasks["sentiment"], record) for record in records]
    (row,) = StepBuilder(examples, [], {"sentiment": 1.0}, 99, 9999).build(examples).rows
    with torch.no_grad():
        nll = target_nll(engine.model, row.packed, head=engine.builtin.head)
    loss = span_mean_nll(nll, row.packed.owner, row.packed.spans).mean()
    assert float(loss) == pytest.approx(facts["validation"]["eval_sentiment_loss"], rel=1e-4)


def test_training_goes_on_from_a_saved_adapter_of_the_same_shape(tiny_recipe, workdir, capsys):
    first = tiny_recipe(multi_task={"task_weights": {"sentiment": 1}})
    train(first, workdir / "first", progress=False)

    def then(**lora):
        lora["init_adapter"] = str(workdir / "first")
        return tiny_recipe(
            lora_config=lora, multi_task={"task_weights": {"qa": 1}}, training={"learning_rate": 1e-12}
        )

    train(then(lora_dropout=0.3), workdir / "second", progress=False)
    assert "Continuing from the adapter" in capsys.readouterr().out
    before, after = weights(workdir / "first"), weights(workdir / "second")
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    assert json.loads((workdir / "second" / "adapter_config.json").read_text())["lora_dropout"] == 0.3
    assert "It goes on from the adapter `first`" in (workdir / "second" / "README.md").read_text()
    train(then(lora_dropout=0.3), workdir / "second", resume="latest", progress=False)  # its own checkpoint

    with pytest.raises(
        ConfigError, match=r"whose r is 4, but lora_config\.r is 8: set it to 4, or remove init_adapter"
    ):
        train(then(r=8), workdir / "third", progress=False)
    config = workdir / "first" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "another"}))
    with pytest.raises(ConfigError, match=r"an adapter of another, but base_model\.name is"):
        train(then(), workdir / "third", progress=False)
    with pytest.raises(ModelError, match="There is no adapter at"):
        train(tiny_recipe(lora_config={"init_adapter": "nowhere"}), workdir / "third", progress=False)


def test_compiled_training_reaches_the_weights_of_plain_training(tiny_recipe, workdir, monkeypatch):
    from fintune.kernels import compiled as layers

    recipe = tiny_recipe(training={"torch_compile": True, "max_steps": 2})
    monkeypatch.setenv("PATH", str(workdir))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        train(recipe, workdir / "none", progress=False)
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    monkeypatch.setattr(layers.enable, "__defaults__", ("eager",))  # graphs and guards, without a compiler
    train(recipe, workdir / "compiled", progress=False)
    train(tiny_recipe(training={"max_steps": 2}), workdir / "plain", progress=False)
    compiled, plain = weights(workdir / "compiled"), weights(workdir / "plain")
    for name in plain:
        assert (compiled[name] - plain[name]).norm() < 1e-3 * plain[name].norm() + 1e-6


def test_lora_plus_moves_b_by_the_ratio(tiny_recipe, workdir):
    steps = {"max_steps": 1, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    train(tiny_recipe(training=steps), workdir / "plain", progress=False)
    train(tiny_recipe(training={**steps, "loraplus_lr_ratio": 4}), workdir / "plus", progress=False)
    plain, plus = weights(workdir / "plain"), weights(workdir / "plus")
    for name in plain:  # B starts at 0, so that A has no gradient in the first step
        if "lora_B" in name:
            torch.testing.assert_close(plus[name], 4 * plain[name], rtol=1e-3, atol=1e-6)


def test_a_base_whose_rows_cannot_be_packed_trains_in_padded_batches_and_says_why(
    tiny_base, tiny_recipe, workdir, capsys
):
    """StableLM's layers do not hand the layout on; numbers have branches, which are texts of the batch."""
    from transformers import AutoModelForCausalLM, StableLmConfig

    folder = shutil.copytree(tiny_base, workdir / "stable")
    old = json.loads((folder / "config.json").read_text())
    same = {key: old[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}
    config = StableLmConfig(intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, **same)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    steps = {"max_steps": 2, "regression_loss_weight": 0.5}
    recipe = tiny_recipe(base_model={"name": str(folder)}, training=steps)
    assert train(recipe, workdir / "out", progress=False)["training"]["examples"] == 16
    assert "padded batches, not as packed rows: its layers do not pass" in capsys.readouterr().out


def test_wandb_logs_offline_when_it_has_no_credentials(tiny_recipe, workdir, monkeypatch, wandb_anew):
    monkeypatch.setenv("NETRC", str(workdir / "no-netrc"))
    monkeypatch.setenv("HOME", str(workdir))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    train(tiny_recipe(training={"max_steps": 2}), workdir / "out", use_wandb=True, progress=False)
    assert os.environ["WANDB_MODE"] == "offline"
    deadline = time.monotonic() + 30  # W&B's own process may still be writing
    while not (logs := list((workdir / "wandb").glob("offline-run-*/*.wandb"))):
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)


def test_wandb_that_is_missing_is_named_with_its_fix(monkeypatch, workdir):
    from fintune.training import callbacks

    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*wandb"):
        callbacks.wandb()
