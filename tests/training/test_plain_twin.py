"""The plain twin: training that reads from top to bottom, which the fast path must equal."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fintune.training.run import train

FILE = Path(__file__).parents[2] / "examples" / "plain_training.py"


def plain_train(*arguments):
    spec = importlib.util.spec_from_file_location("plain_training", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.train(*arguments)


MIXES = {
    "loss weights": {"task_weights": {"sentiment": 1.0, "qa": 2.5, "regression": 0.5, "summarization": 1.0}},
    "weighted sampling": {
        "task_weights": {"sentiment": 3, "headline": 1, "qa": 0},
        "sampling_strategy": "weighted",
    },
}


@pytest.mark.parametrize("mix", MIXES)
def test_fast_training_reaches_the_weights_of_plain_training(tiny_recipe, workdir, mix):
    recipe = tiny_recipe(
        training={"max_steps": 5, "warmup_steps": 2, "max_grad_norm": 0.5, "per_device_train_batch_size": 3},
        multi_task=MIXES[mix],
    )
    train(recipe, workdir / "fast", progress=False)
    plain_train(recipe, workdir / "plain")
    fast, plain = (load_file(workdir / name / "adapter_model.safetensors") for name in ("fast", "plain"))
    assert fast.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], rtol=1e-3, atol=1e-5)
    assert any(plain[name].abs().max() > 1e-3 for name in plain if "lora_B" in name)
