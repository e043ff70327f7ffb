"""Two processes reach the weights of one on the same global batch."""

import json
import random

import forked  # noqa: F401  (what the fork server has loaded)
import pytest
import sharded
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed import launcher

from fintune.training.run import train
from fintune.training.steps import parts_of


def two_processes(function, *arguments):
    """`function` in two processes, as torchrun starts and watches them, but forked from a warm one."""
    config = launcher.LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        start_method="forkserver",
        monitor_interval=0.1,
    )
    launcher.elastic_launch(config, function)(*arguments)


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 5))
def test_every_example_goes_to_one_process_and_none_has_much_more_than_another(lengths, world):
    parts = parts_of(lengths, world)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def assert_same_weights(*folders):
    """Two adapters are the same; returns the names of their weights."""
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)
    return list(one)


def test_two_processes_reach_the_weights_of_one(tiny_recipe, workdir):
    """Steps of 9 examples, which 2 does not divide, and a last one of 1, where one process has none."""
    recipe = tiny_recipe(
        training={
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 3,
            "max_grad_norm": 0.5,
            "save_steps": 2,
        },
        multi_task={
            "task_weights": {"sentiment": 1.0, "qa": 2.5, "regression": 0.5},
            "samples_per_epoch": 10,
        },
    )
    train(recipe, workdir / "one", progress=False)
    two_processes(sharded.trained, recipe, workdir / "two")
    assert_same_weights(workdir / "one", workdir / "two")
    facts = [json.loads((workdir / name / "fintune.json").read_text()) for name in ("one", "two")]
    assert [each["processes"] for each in facts] == [1, 2]
    for counted in ("examples", "tokens_without_sharing"):
        assert facts[0]["training"][counted] == facts[1]["training"][counted] > 0
    last = f"checkpoint-{facts[0]['optimizer_steps']}"
    states = [
        json.loads((workdir / name / last / "trainer_state.json").read_text()) for name in ("one", "two")
    ]
    logs = [
        [{k: v for k, v in entry.items() if k.endswith("loss")} for entry in state["log_history"]]
        for state in states
    ]
    assert any("sentiment_loss" in entry for entry in logs[0]) and len(logs[0]) == len(logs[1])
    for alone, both in zip(*logs, strict=True):
        assert alone == pytest.approx(both, rel=1e-4)


def test_two_processes_with_a_base_in_8_bit_and_dora_reach_the_weights_of_one(tiny_recipe, workdir):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[gpu]'")
    recipe = tiny_recipe(
        base_model={"load_in_8bit": True},
        lora_config={"use_dora": True},
        training={"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1},
        multi_task={"task_weights": {"sentiment": 1.0, "regression": 0.5}, "samples_per_epoch": 10},
    )
    train(recipe, workdir / "one", progress=False)
    two_processes(sharded.trained, recipe, workdir / "two")
    names = assert_same_weights(workdir / "one", workdir / "two")
    assert any("magnitude" in name for name in names)


def test_qlora_in_two_processes_reaches_the_weights_of_one_which_may_go_on_alone(tiny_recipe, workdir):
    """Each process holds the base in 4 bit, and gradients are exchanged; then one resumes what two began."""
    pytest.importorskip("bitsandbytes", reason="4 bit needs the gpu extra")
    recipe = tiny_recipe(
        base_model={"load_in_4bit": True},
        training={"max_steps": 3, "save_steps": 2, "gradient_checkpointing": True},
        multi_task={"task_weights": {"sentiment": 1.0, "headline": 2.0}},
    )
    train(recipe, workdir / "one", progress=False)
    two_processes(sharded.trained, recipe, workdir / "two")
    train(recipe, workdir / "resumed", resume=workdir / "two" / "checkpoint-2", progress=False)
    for other in ("two", "resumed"):
        assert_same_weights(workdir / "one", workdir / other)


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_model_that_fsdp_shards_reaches_the_weights_of_one_process(tiny_base, workdir, four_bit):
    if four_bit:
        pytest.importorskip("bitsandbytes", reason="4 bit needs the gpu extra")
    draw = random.Random(0)
    examples = [
        (
            [1, 2, 3, *(draw.randrange(4, 99) for _ in range(draw.randrange(1, 9)))],
            [7, 8][: 1 + i % 2],
            "ab"[i % 2],
        )
        for i in range(13)
    ]
    (workdir / "examples.json").write_text(json.dumps(examples))
    arguments = [str(tiny_base), workdir / "examples.json"]
    sharded.main(*arguments, workdir / "one.safetensors", four_bit)
    two_processes(sharded.main, *arguments, workdir / "two.safetensors", four_bit)
    one, two = load_file(workdir / "one.safetensors"), load_file(workdir / "two.safetensors")
    assert one.keys() == two.keys() and any("lora_B" in name and one[name].abs().max() > 1e-3 for name in one)
    for name in one:  # rows cut otherwise differ by half of that: the order of sums
        assert (two[name] - one[name]).norm() < 1e-3 * one[name].norm(), name
