"""Where a process holds the base model: on the device it computes on, or on the CPU until FSDP shards it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Process:
    """What placement must know of this process.

    Attributes:
        device: the `torch.device` that it computes on; among several GPUs of a machine its own.
        sharded: Accelerate will shard the model over all processes with FSDP.
    """

    device: Any
    sharded: bool = False

    @classmethod
    def alone(cls) -> Process:
        """A process that computes for itself: on the current GPU where there is one."""
        import torch

        if torch.cuda.is_available():
            return cls(torch.device("cuda", torch.cuda.current_device()))
        return cls(torch.device("cpu"))

    @classmethod
    def of(cls, state: Any) -> Process:
        """The process of an `accelerate.PartialState`, whose device is that of its own rank.

        That state does not know of FSDP yet: Accelerate reads the variable that its launcher sets only when
        the trainer is made.
        """
        return cls(state.device, os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true")


def base_device(process: Process, quantized: bool) -> Any:
    """The `torch.device` that the base model is loaded onto.

    A process alone holds it on its CPU or GPU, and so does each of several processes with a copy each (DDP).
    With FSDP it stays on the CPU: `fully_shard` moves a layer at a time to the GPU and keeps a part of it,
    so a base that fits no single GPU can be trained. A base in 4 or 8 bit is quantized on the GPU that
    computes with it, and Accelerate refuses one that lies on another. One in 4 bit is sharded from there: for
    a moment each GPU holds all of it.
    """
    import torch

    if process.sharded and not quantized:
        return torch.device("cpu")
    device = torch.device(process.device)
    if device.type == "cuda":  # a quantized load needs the number: `cuda` alone is the first
        return torch.device("cuda", device.index or 0)
    return device
