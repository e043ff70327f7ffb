"""RMS normalization with frozen weights in fewer passes over memory: half on a CPU, one when compiled."""

from __future__ import annotations

import os
import shutil
import types
from typing import Any

import torch

from fintune.errors import ConfigError


class _RMSNorm(torch.autograd.Function):
    """y = w · x / √(mean(x²) + ε) (Zhang & Sennrich, 2019), computed in fp32; x: (…, H), w: (H,), frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, epsilon: float) -> Any:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        wide, gradient = x.float(), (gradients[0] * weight).float()
        along = torch.linalg.vecdot(gradient, wide)[..., None]
        slope = along * inverse.pow(3) / -x.shape[-1]
        return torch.addcmul(gradient * inverse, wide, slope).to(x.dtype), None, None


def _forward(self: Any, x: Any) -> Any:
    return _RMSNorm.apply(x, self.weight, self.variance_epsilon)


def _formula(x: Any, weight: Any, epsilon: float) -> Any:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def enable(model: Any, compiled: bool = False) -> int:
    """Make the model's RMS normalizations fast where they are the formula above; returns how many are.

    A module is taken by what it computes, not by its name: its output on a probe must be that of the formula.

    Args:
        compiled: compile the formula (some 20 seconds once, cached by PyTorch; 4 instead of 1.5 times as fast
            as Transformers' own); on a CPU that needs a C++ compiler.

    Raises:
        ConfigError: it is to be compiled, and there is no compiler.
    """
    forward: Any = _forward
    if compiled:
        _find_compiler(model.device.type)
        formula = torch.compile(_formula, dynamic=True)

        def forward(self: Any, x: Any) -> Any:
            return formula(x, self.weight, self.variance_epsilon)

    count = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if (
            hasattr(module, "variance_epsilon")
            and isinstance(weight, torch.Tensor)
            and weight.ndim == 1
            and (weight.device.type == "cpu" or compiled)
            and not weight.requires_grad
            and _computes_the_formula(module)
        ):
            module.forward = types.MethodType(forward, module)
            count += 1
    return count


@torch.no_grad()
def _computes_the_formula(module: Any) -> bool:
    weight = module.weight
    probe = torch.linspace(-3, 5, weight.shape[0], dtype=weight.dtype, device=weight.device)[None]
    own = type(module).forward(module, probe)
    return torch.allclose(own, _formula(probe, weight, module.variance_epsilon), rtol=1e-2)


def _find_compiler(device: str) -> None:
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if device == "cpu" and not any(shutil.which(name) for name in compilers if name):
        raise ConfigError(
            "training.torch_compile is true, which needs a C++ compiler on a CPU, and there is none here: "
            "install one (apt install g++), or set it to false."
        )
