"""RMS normalization with frozen weights in half as many passes over memory, for CPUs.

The plain reference is `rms_norm_plain`, which is what compiled layers compute. Shape suffix of names: E width
of the hidden states.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""Attribute names of ε in modules."""


class _RMSNorm(torch.autograd.Function):
    """`rms_norm`. With r = (mean(x²) + ε)^-½, which is saved for the backward pass, and g = w · grad y:

    grad x = r · g − x · r³ · Σ(g · x) / E

    Gemma's factor is 1 + w in fp32, rounded together with the product; other decoders round x before it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_E: Tensor, epsilon: float, plus_one: bool) -> Tensor:
        wide = _wide(x)
        if plus_one:
            weight_E = 1 + _wide(weight_E)
        # vector_norm reads x once; pow and mean would write x² and read it again. The rest is (…, 1).
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_E, inverse)
        if plus_one:
            return (wide * inverse).mul_(weight_E).to(x.dtype)
        normal = (wide * inverse).to(x.dtype)
        return normal.mul_(weight_E) if weight_E.dtype == x.dtype else normal * weight_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_E, inverse = ctx.saved_tensors
        wide, wide_grad = _wide(x), _wide(grad * weight_E)
        along = torch.linalg.vecdot(wide_grad, wide)[..., None]
        slope = along * inverse.pow(3) / -x.shape[-1]
        return torch.addcmul(wide_grad * inverse, wide, slope).to(x.dtype), None, None, None


def rms_norm(x: Tensor, weight_E: Tensor, epsilon: float, plus_one: bool = False) -> Tensor:
    """y = w · x / √(mean(x²) + ε) (Zhang & Sennrich, 2019), in fp32 or wider; x: (…, E), w frozen.

    With `plus_one` the factor is 1 + w.
    """
    return _RMSNorm.apply(x, weight_E, epsilon, plus_one)


def rms_norm_plain(x: Tensor, weight_E: Tensor, epsilon: float, plus_one: bool = False) -> Tensor:
    """The plain reference of `rms_norm`."""
    wide = _wide(x)
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if plus_one:
        return (normal * (1 + _wide(weight_E))).to(x.dtype)
    return weight_E * normal.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """As fp32, or fp64 if it is: a mean of squares in 16 bits loses its small terms, or overflows."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def enable(model: Any) -> int:
    """Replace the model's RMS normalizations that match the formula by fast ones; return how many.

    A module is recognized by what it computes, not by its name: its output on a probe must match the formula,
    with the factor w or 1 + w. Gated ones (Mamba-2) keep their own forward.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        formula = rms_norm_plain if torch.compiler.is_compiling() else rms_norm
        return formula(x, self.weight, *self.rms_formula)

    count = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if (
            isinstance(weight, torch.Tensor)
            and weight.ndim == 1
            and weight.device.type == "cpu"
            and not weight.requires_grad
            and (found := _formula(module))
        ):
            module.rms_formula = found
            module.forward = types.MethodType(forward, module)
            count += 1
    return count


@torch.no_grad()
def _formula(module: Any) -> tuple[float, bool] | None:
    """ε, and whether the factor is 1 + w, if a module computes the formula; else None."""
    epsilon = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
    if epsilon is None or len(inspect.signature(type(module).forward).parameters) != 2:  # self, x; no gate
        return None
    weight = module.weight
    probe = torch.linspace(-3, 5, weight.shape[0], dtype=weight.dtype, device=weight.device)[None]
    own = type(module).forward(module, probe)
    for plus_one in (False, True):
        if torch.allclose(own, rms_norm_plain(probe, weight, epsilon, plus_one), rtol=1e-2):
            return epsilon, plus_one
    return None
