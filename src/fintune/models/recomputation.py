"""Gradient checkpointing: keep each decoder layer's input, recompute the rest in the backward pass."""

from __future__ import annotations

from typing import Any

from fintune.config import TrainingConfig
from fintune.errors import ConfigError


def check(training: TrainingConfig) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        ConfigError: inputs should be offloaded from a GPU, but there is none.
    """
    import torch

    if training.gradient_checkpointing_offload and not torch.cuda.is_available():
        raise ConfigError(
            "training.gradient_checkpointing_offload is true, which moves data out of GPU memory, but there "
            "is no GPU here: set it to false."
        )


def enable(model: Any, offload: bool = False) -> None:
    """Enable it. LoRA's fast path skips a layer's last product in the recomputation (`lora_linears`).

    Args:
        offload: keep the inputs in pinned CPU memory.
    """
    import torch
    from torch.autograd.graph import save_on_cpu
    from torch.utils.checkpoint import checkpoint

    # Before Transformers 5.24 the method has the second name.
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    if not offload:
        return
    pin = torch.cuda.is_available()

    def moved(function: Any, *args: Any, **kwargs: Any) -> Any:
        # Tensors saved by the layer go to `checkpoint`'s inner hooks, its inputs to these.
        with save_on_cpu(pin_memory=pin):
            return checkpoint(function, *args, use_reentrant=False, **kwargs)

    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = moved
