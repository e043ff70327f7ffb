"""RMS normalization in half the passes over memory, for frozen weights on a CPU."""

from __future__ import annotations

import types
from typing import Any

import torch


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


def enable(model: Any) -> int:
    """Make the model's RMS normalizations fast where they are the formula above; returns how many are.

    A module is taken by what it computes, not by its name: its output on a probe must be that of the formula.
    """
    count = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if (
            hasattr(module, "variance_epsilon")
            and isinstance(weight, torch.Tensor)
            and weight.ndim == 1
            and weight.device.type == "cpu"
            and not weight.requires_grad
            and _computes_the_formula(module)
        ):
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


@torch.no_grad()
def _computes_the_formula(module: Any) -> bool:
    probe = torch.linspace(-3, 5, module.weight.shape[0], dtype=module.weight.dtype)[None]
    return torch.allclose(module.forward(probe), _forward(module, probe), rtol=1e-2)
