"""LoRA in as few passes over memory as it needs: y = x·Wᵀ + s · (x·Aᵀ)·Bᵀ as one autograd function.

PEFT's layer makes four products, a scaling, a sum and their gradients as separate operations, each a pass
over a (tokens × features) tensor; on a CPU those passes cost as much as the products. Here the update is
accumulated into the base product, and its gradient into the base's. The modules stay PEFT's: only their
forward is replaced, so names, saving and merging are unchanged.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn.functional import linear


class _LoraLinear(torch.autograd.Function):
    """x (…, in), weight (out, in), a (r, in), b (out, r) → (…, out).

    `dropped` is x after dropout, or None when there is none: then x itself goes through the adapter.
    The gradient of the frozen weight and bias is never computed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, dropped: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float
    ) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        source = flat if dropped is None else dropped.reshape(-1, x.shape[-1])
        a16, b16 = a.to(weight.dtype), b.to(weight.dtype)
        down = source @ a16.T
        out = linear(flat, weight, bias)
        out.addmm_(down, b16.T, alpha=scaling)
        ctx.save_for_backward(source, down, weight, a16, b16)
        ctx.scaling, ctx.dtype, ctx.separate = scaling, a.dtype, dropped is not None
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        source, down, weight, a16, b16 = ctx.saved_tensors
        shape = (*gradients[0].shape[:-1], weight.shape[1])
        gradient = gradients[0].reshape(-1, weight.shape[0])
        up = (gradient @ b16).mul_(ctx.scaling)
        grad_a = (up.T @ source).to(ctx.dtype)
        grad_b = (gradient.T @ down).mul_(ctx.scaling).to(ctx.dtype)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ weight
            if not ctx.separate:
                grad_x.addmm_(up, a16)
            grad_x = grad_x.view(shape)
        if ctx.separate and ctx.needs_input_grad[1]:
            grad_dropped = (up @ a16).view(shape)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None


def _forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`peft.tuners.lora.Linear.forward` for the case that is fast; any other goes to PEFT's own."""
    if args or kwargs or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
        return type(self).forward(self, x, *args, **kwargs)
    name = self.active_adapters[0]
    base = self.base_layer
    x = x.to(base.weight.dtype)
    dropout = self.lora_dropout[name]
    dropped = dropout(x) if self.training and not isinstance(dropout, torch.nn.Identity) else None
    return _LoraLinear.apply(
        x,
        dropped,
        base.weight,
        base.bias,
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self.scaling[name],
    )


def _covered(layer: Any, name: str) -> bool:
    """Whether a PEFT layer is plain LoRA on a plain frozen linear layer."""
    base = layer.base_layer
    return (
        type(base) is torch.nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and name in layer.lora_A
        and name not in layer.lora_variant
        and layer.lora_B[name].bias is None
    )


def enable(model: Any) -> tuple[int, int]:
    """Make the layers of a PEFT model fast where they can be; (layers made fast, LoRA layers in all).

    DoRA, quantized bases, trained biases and layers that are not linear keep PEFT's own forward.
    """
    from peft.tuners.lora import Linear, LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    fast = [
        layer
        for layer in layers
        if type(layer) is Linear
        and len(layer.active_adapters) == 1
        and _covered(layer, layer.active_adapters[0])
    ]
    for layer in fast:
        layer.forward = types.MethodType(_forward, layer)
    return len(fast), len(layers)
