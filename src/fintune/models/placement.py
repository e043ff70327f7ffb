"""Where a process holds the base model: on its compute device, or on the CPU until FSDP shards it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Process:
    """What placement needs to know about this process.

    Attributes:
        device: the `torch.device` it computes on; with several GPUs, its own.
        sharded: Accelerate will shard the model over all processes with FSDP.
    """

    device: Any
    sharded: bool = False

    @classmethod
    def alone(cls) -> Process:
        """A single process: on the current GPU if there is one."""
        import torch

        if torch.cuda.is_available():
            return cls(torch.device("cuda", torch.cuda.current_device()))
        return cls(torch.device("cpu"))

    @classmethod
    def of(cls, state: Any) -> Process:
        """The process of an `accelerate.PartialState`, whose device is that of its own rank.

        That state does not know about FSDP yet: Accelerate reads its launcher's variable only when the
        trainer is created.
        """
        return cls(state.device, os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true")


def base_device(process: Process, quantized: bool) -> Any:
    """The `torch.device` to load the base model onto.

    A single process holds it on its CPU or GPU, and so does each process with its own copy (DDP). With FSDP
    it stays on the CPU: `fully_shard` moves one layer at a time to the GPU and keeps its shard, so a base
    that fits no single GPU can be trained. A 4- or 8-bit base is quantized on the GPU that computes with it,
    because Accelerate refuses one on another device. A 4-bit base is then sharded from the GPU, so each GPU
    briefly holds all of it.
    """
    import torch

    if process.sharded and not quantized:
        return torch.device("cpu")
    device = torch.device(process.device)
    if device.type == "cuda":  # a quantized load needs the index: `cuda` alone means the first GPU
        return torch.device("cuda", device.index or 0)
    return device
