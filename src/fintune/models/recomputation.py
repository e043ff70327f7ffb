"""Gradient checkpointing: of each decoder layer the input is kept, and the rest computed again backwards."""

from __future__ import annotations

from typing import Any

from fintune.config import TrainingConfig
from fintune.errors import ConfigError


def check(training: TrainingConfig) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        ConfigError: inputs are to leave a GPU, and there is none.
    """
    import torch

    if training.gradient_checkpointing_offload and not torch.cuda.is_available():
        raise ConfigError(
            "training.gradient_checkpointing_offload is true, which moves data out of a GPU's memory, and "
            "there is no GPU here: set it to false."
        )


def enable(model: Any, offload: bool = False) -> None:
    """Switch it on. LoRA on the fast path leaves out a layer's last product the second time (`lora_linears`).

    Args:
        offload: keep the inputs in pinned memory of the machine.
    """
    import torch
    from torch.autograd.graph import save_on_cpu
    from torch.utils.checkpoint import checkpoint

    # The name before Transformers 5.24 is the second.
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    if not offload:
        return
    pin = torch.cuda.is_available()

    def moved(function: Any, *args: Any, **kwargs: Any) -> Any:
        # What the layer itself keeps goes to the inner hooks of `checkpoint`, its inputs to these.
        with save_on_cpu(pin_memory=pin):
            return checkpoint(function, *args, use_reentrant=False, **kwargs)

    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = moved
