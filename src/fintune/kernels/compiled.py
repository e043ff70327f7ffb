"""Compile a decoder's layers for training: rotary embeddings, normalizations, activations, LoRA's products.

Many small operations of a layer become a few kernels. Attention is excluded: it reads a row's layout, which
is new in each pass. Sequence lengths are dynamic, and all layers of one kind share one compilation.
"""

from __future__ import annotations

import logging
import os
import shutil
import types
from typing import Any

import torch

from fintune.errors import ConfigError, first_line
from fintune.kernels import attention, lora

_log = logging.getLogger(__name__)


def enable(model: Any, backend: Any = "inductor") -> int:
    """Compile the forward and backward passes of the model's decoder layers; return how many there are.

    Passes without gradients (validation, answers) are not compiled: they have other shapes, and each would
    need its own compilation. A layer that cannot be compiled runs uncompiled, which is logged.

    Args:
        backend: the backend of `torch.compile`.

    Raises:
        ConfigError: the model is on a CPU, and there is no C++ compiler.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if backend == "inductor":
        _find_compiler(model.device.type)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    attention.stay_outside_graphs()
    lora.stay_outside_graphs(model)
    kinds: set[Any] = set(map(type, layers))
    forwards = {kind: _compiled(kind.forward, backend) for kind in kinds}
    for layer in layers:
        layer.forward = types.MethodType(forwards[type(layer)], layer)
    return len(layers)


def _compiled(own: Any, backend: Any) -> Any:
    """A layer's forward pass, compiled when it has gradients, unless compilation has failed."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    compiled = torch.compile(own, dynamic=True, backend=backend)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        if compiled and torch.is_grad_enabled():
            try:
                return compiled(self, *args, **kwargs)
            except (TorchDynamoException, InductorError) as error:
                compiled = None
                _log.warning(
                    "training.torch_compile: %s cannot be compiled, so it runs uncompiled: %s",
                    type(self).__name__,
                    first_line(error),
                )
        return own(self, *args, **kwargs)

    return forward


def _find_compiler(device: str) -> None:
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if device == "cpu" and not any(shutil.which(name) for name in compilers if name):
        raise ConfigError(
            "training.torch_compile is true, which needs a C++ compiler on a CPU, but there is none here: "
            "install one (apt install g++), or set it to false."
        )
