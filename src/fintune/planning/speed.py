"""Estimates a pass's time from this machine's calibration or, without one, from a model of the machine.

On a CPU floating-point operations limit the speed. A GPU computes matrix products and moves memory while the
CPU launches its kernels; the slower of the two sides limits it.
"""

from __future__ import annotations

import contextlib
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fintune.config import Recipe
from fintune.errors import DataError
from fintune.files import read_json, write_json
from fintune.models.base import cache_dir, choose_precision
from fintune.provenance import machine
from fintune.training import memory
from fintune.training.memory import Shape

UTILISATION = {"cpu": 0.4, "cpu with AMX": 0.17}
"""The share of the matrix peak that training reaches on a CPU: matrix units (AMX) raise the peak far more
than a whole step's speed. Measured (benchmarks/training.py, docs/LOG.md)."""
OF_PLAIN = {"dropout": 0.68, "dora": 0.95}
"""Speed on a CPU relative to plain LoRA (benchmarks/variants.py); a quantized base's is the same."""
# The next three were fitted to one H100 in bf16, at 1.1 and 6.7 billion parameters (2026-11-27).
MATRIX_SHARE = 0.76
"""The share of its matrix peak that a GPU reaches in a pass's products."""
TRAFFIC = 24
"""Bytes that a pass moves per byte it keeps: attention, element-wise work and copies, both ways."""
LAUNCH_SECONDS = 0.0128
"""CPU seconds to launch one layer's kernels for one pass."""
COMPILE_SECONDS = {"cuda": 10.0, "torch_compile": 40.0}
"""Extra seconds of the first step: FlexAttention's kernels on a GPU, and `training.torch_compile`."""


@dataclass(frozen=True)
class Machine:
    """The figures that decide a device's speed.

    Attributes:
        device: cpu or cuda.
        peak: FLOP/s of a large matrix product.
        bandwidth: bytes/s of its memory.
    """

    device: str
    peak: float
    bandwidth: float

    @classmethod
    def here(cls, device: str) -> Machine:
        from fintune.training.throughput import matrix_peak

        return cls(device, matrix_peak(), bandwidth())


@functools.cache
def bandwidth() -> float:
    """Bytes/s of the best of four copies, counting both reads and writes."""
    import torch

    from fintune.training.throughput import fastest

    cuda = torch.cuda.is_available()
    size = 2**28 if cuda else 2**26
    source = torch.empty(size, dtype=torch.uint8, device="cuda" if cuda else "cpu")
    target = torch.empty_like(source)
    return 2 * size / fastest(lambda: target.copy_(source))


def seconds(
    machine: Machine, recipe: Recipe, shape: Shape, flops: float, tokens: float, passes: float
) -> float:
    """The estimated time of `passes` passes with `tokens` tokens in all.

    Args:
        flops: useful operations of the passes (`throughput.FlopCount`).
    """
    again = recipe.training.gradient_checkpointing  # the forward pass is computed twice
    flops += tokens * 2 * shape.linear * again
    if machine.device == "cpu":
        return flops / (machine.peak * UTILISATION[_kind()] * _of_plain(recipe))
    # The amount of computing does not depend on what is kept.
    kept = memory.token_bytes(shape, recipe.changed("training", gradient_checkpointing=False))
    moved = TRAFFIC * (1.3 if again else 1) * tokens * kept
    if recipe.base_model.quantized:  # each weight is read, and written in full, forward and backward
        stored = memory.NF4_BYTES if recipe.base_model.load_in_4bit else 1
        moved += passes * (2 + again) * shape.linear * (stored + 2)
    busy = flops / (machine.peak * MATRIX_SHARE) + moved / machine.bandwidth
    return max(busy, passes * shape.layers * (1.3 if again else 1) * LAUNCH_SECONDS)


def _kind() -> str:
    import torch

    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch has none
    return "cpu with AMX" if capabilities.get("amx_bf16") else "cpu"


def _of_plain(recipe: Recipe) -> float:
    lora = recipe.lora_config
    share = OF_PLAIN["dropout"] if lora.lora_dropout else 1.0
    return share * (OF_PLAIN["dora"] if lora.use_dora else 1.0)


def first_step_seconds(recipe: Recipe, device: str) -> float:
    compiled = COMPILE_SECONDS["torch_compile"] if recipe.training.torch_compile else 0.0
    return COMPILE_SECONDS.get(device, 0.0) + compiled


@dataclass(frozen=True)
class Calibration:
    """The result of `fintune plan --measure` on this machine for recipes of one kind (`key`).

    Attributes:
        date: date of the measurement.
        seconds_per_token_layer, seconds_per_token: a step's time in each layer, and in all the rest.
        bytes_per_token_layer, bytes_per_token_outside: the same for a GPU's memory; 0 on a CPU, where
            the allocator's part is too large to tell.
    """

    date: str
    seconds_per_token_layer: float
    seconds_per_token: float
    bytes_per_token_layer: float = 0.0
    bytes_per_token_outside: float = 0.0

    def seconds(self, tokens: float, layers: int) -> float:
        return tokens * (layers * self.seconds_per_token_layer + self.seconds_per_token)

    def bytes_per_token(self, layers: int) -> float:
        return layers * self.bytes_per_token_layer + self.bytes_per_token_outside


def key(recipe: Recipe, shape: Shape) -> str:
    """What a calibration depends on: the machine, the base's layers, and everything in a fitted recipe that
    affects a step's speed."""
    import torch

    found, training = machine(), recipe.training
    told = {
        "machine": found["gpu"] or found["processor"],
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "dtype": str(choose_precision(training).dtype).removeprefix("torch."),
        "layer": [shape.hidden, shape.intermediate, shape.queries, shape.keys, shape.vocabulary],
        "quantized": [recipe.base_model.load_in_4bit, recipe.base_model.load_in_8bit],
        "adapter": [shape.trainable / shape.layers, recipe.lora_config.use_dora],
        "dropout": recipe.lora_config.lora_dropout > 0,
        "rows": [training.per_device_train_batch_size, training.row_tokens, training.shared_prefix],
        "compiled": training.torch_compile,
        "checkpointing": training.gradient_checkpointing,
    }
    return json.dumps(told, separators=(",", ":"))


def _path() -> Path:
    return cache_dir() / "calibrations.json"


def _all() -> dict[str, Any]:
    with contextlib.suppress(
        DataError, OSError, TypeError, ValueError
    ):  # absent or damaged: nothing is known
        return dict(read_json(_path()))
    return {}


def known(recipe: Recipe, shape: Shape) -> Calibration | None:
    """The measurement for recipes like this one, if any."""
    with contextlib.suppress(KeyError, TypeError):
        return Calibration(**_all()[key(recipe, shape)])
    return None


def keep(recipe: Recipe, shape: Shape, calibration: Calibration) -> None:
    _path().parent.mkdir(parents=True, exist_ok=True)
    write_json(_path(), {**_all(), key(recipe, shape): asdict(calibration)})
