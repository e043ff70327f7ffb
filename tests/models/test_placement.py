"""Where each process of a run holds the base model."""

from dataclasses import dataclass

import pytest
import torch

from fintune.config import BaseModelConfig
from fintune.errors import ConfigError
from fintune.models.base import load_base_model
from fintune.models.placement import Process, base_device


@dataclass
class State:
    """The part of `accelerate.PartialState` that is read."""

    device: torch.device


@pytest.mark.parametrize(
    ("own", "fsdp", "quantized", "expected"),
    [
        ("cpu", "false", False, "cpu"),
        ("cpu", "true", True, "cpu"),
        ("cuda", "false", False, "cuda:0"),  # Accelerate gives a lone process no number
        ("cuda", "false", True, "cuda:0"),
        ("cuda:0", "false", True, "cuda:0"),
        ("cuda:3", "false", False, "cuda:3"),
        ("cuda:3", "false", True, "cuda:3"),
        ("cuda:3", "true", False, "cpu"),
        ("cuda:3", "true", True, "cuda:3"),
    ],
)
def test_each_rank_holds_the_base_on_its_own_device_or_on_the_cpu_until_it_is_sharded(
    monkeypatch, own, fsdp, quantized, expected
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", fsdp)
    process = Process.of(State(torch.device(own)))
    assert base_device(process, quantized) == torch.device(expected)


def test_the_base_is_loaded_where_its_process_holds_it(tiny_base):
    """PyTorch's meta device stands in for a GPU."""
    config, gpu = BaseModelConfig(name=str(tiny_base)), torch.device("meta")
    for process, expected in ((Process(gpu), "meta"), (Process(gpu, sharded=True), "cpu")):
        model = load_base_model(config, torch.float32, process)
        assert {p.device.type for p in model.parameters()} == {expected}


def test_an_8_bit_base_is_not_sharded(tiny_base):
    pytest.importorskip("bitsandbytes", reason="8 bit needs the gpu extra")
    config = BaseModelConfig(name=str(tiny_base), load_in_8bit=True)
    with pytest.raises(ConfigError, match=r"load_in_4bit, or launch with configs/accelerate/ddp.yaml"):
        load_base_model(config, torch.float32, Process(torch.device("cpu"), sharded=True))
