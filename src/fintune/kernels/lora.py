"""LoRA in as few passes over memory as it needs: y = x·Wᵀ + s · (x·Aᵀ)·Bᵀ as one autograd function.

PEFT's layer makes four products, a scaling, a sum and their gradients as separate operations, each a pass
over a (tokens × features) tensor; on a CPU those passes cost as much as the products. Here the update is
accumulated into the base product, and its gradient into the base's; and layers that read the same input
(queries, keys and values; gate and up) are one function, with one product for all their A and one gradient
of the input. The modules stay PEFT's: only their forward is replaced, so names, saving and merging are
unchanged.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn.functional import linear

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that read the same input, by the names that Transformers' decoders give them."""


class _LoraLinears(torch.autograd.Function):
    """n layers on one input: x (…, in) → n times (…, out_i).

    `dropped` is x after dropout, or None when there is none: then x itself goes through the adapters.
    `tensors` are the n weights (out_i, in), the n biases (out_i,) or None, the n A (r_i, in) and the n B
    (out_i, r_i). The gradients of frozen weights and biases are never computed.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, dropped: Any, scalings: tuple[float, ...], *tensors: Any) -> Any:
        n = len(scalings)
        weights, biases, a, b = (tensors[i * n : (i + 1) * n] for i in range(4))
        flat = x.reshape(-1, x.shape[-1])
        source = flat if dropped is None else dropped.reshape(-1, x.shape[-1])
        a16 = torch.cat([each.to(flat.dtype) for each in a])
        b16 = [each.to(flat.dtype) for each in b]
        ranks = [each.shape[0] for each in a]
        down = (source @ a16.T).split(ranks, dim=1)
        outs = []
        for i in range(n):
            out = linear(flat, weights[i], biases[i])
            outs.append(out.addmm_(down[i], b16[i].T, alpha=scalings[i]).view(*x.shape[:-1], -1))
        ctx.save_for_backward(source, a16, *down, *weights, *b16)
        ctx.scalings, ctx.ranks, ctx.dtype, ctx.separate = scalings, ranks, a[0].dtype, dropped is not None
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        n = len(ctx.scalings)
        source, a16, *rest = ctx.saved_tensors
        down, weights, b16 = (rest[i * n : (i + 1) * n] for i in range(3))
        shape = (*gradients[0].shape[:-1], source.shape[1])
        flat = [each.reshape(-1, each.shape[-1]) for each in gradients]
        up = torch.cat([(flat[i] @ b16[i]).mul_(ctx.scalings[i]) for i in range(n)], dim=1)
        grad_a = (up.T @ source).to(ctx.dtype).split(ctx.ranks)
        grad_b = [(flat[i].T @ down[i]).mul_(ctx.scalings[i]).to(ctx.dtype) for i in range(n)]
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = flat[0] @ weights[0]
            for i in range(1, n):
                grad_x.addmm_(flat[i], weights[i])
            if not ctx.separate:
                grad_x.addmm_(up, a16)
            grad_x = grad_x.view(shape)
        if ctx.separate and ctx.needs_input_grad[1]:
            grad_dropped = (up @ a16).view(shape)
        nothing = [None] * (2 * n)
        return grad_x, grad_dropped, None, *nothing, *grad_a, *grad_b


class _Group:
    """Layers on one input: the first one called computes for all, the others find their output waiting."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self._waiting: dict[int, Any] = {}
        self._for: tuple[Any, bool] = (None, False)

    def __call__(self, layer: Any, x: Any) -> Any:
        grad = torch.is_grad_enabled()
        if self._for[0] is x and self._for[1] == grad and id(layer) in self._waiting:
            out = self._waiting.pop(id(layer))
            if not self._waiting:
                self._for = (None, False)
            return out
        outs = dict(zip(map(id, self.layers), self._compute(x), strict=True))
        out = outs.pop(id(layer))
        self._waiting, self._for = outs, (x, grad) if outs else (None, False)
        return out

    def _compute(self, x: Any) -> Any:
        layers = self.layers
        name = layers[0].active_adapters[0]
        bases = [layer.base_layer for layer in layers]
        x = x.to(bases[0].weight.dtype)
        dropout = layers[0].lora_dropout[name]  # one mask for all, as the input is one
        dropped = dropout(x) if layers[0].training and not isinstance(dropout, torch.nn.Identity) else None
        return _LoraLinears.apply(
            x,
            dropped,
            tuple(layer.scaling[name] for layer in layers),
            *(base.weight for base in bases),
            *(base.bias for base in bases),
            *(layer.lora_A[name].weight for layer in layers),
            *(layer.lora_B[name].weight for layer in layers),
        )


def _forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`peft.tuners.lora.Linear.forward` for the case that is fast; any other goes to PEFT's own."""
    if args or kwargs or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
        return type(self).forward(self, x, *args, **kwargs)
    return self.fintune_group(self, x)


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
    for group in _groups(model, fast):
        for layer in group.layers:
            layer.forward = types.MethodType(_forward, layer)
            layer.fintune_group = group
    return len(fast), len(layers)


def disable(model: Any) -> None:
    """Give every layer PEFT's own forward back, before another adapter is made fast."""
    for module in model.modules():
        if module.__dict__.pop("fintune_group", None) is not None:
            module.__dict__.pop("forward", None)


def _groups(model: Any, fast: list[Any]) -> list[_Group]:
    """The layers as siblings where they are such, else alone."""
    left = {id(layer): layer for layer in fast}
    groups = []
    for module in model.modules():
        for names in SIBLINGS:
            layers = [layer for name in names if id(layer := getattr(module, name, None)) in left]
            if len(layers) > 1 and len({_kind(layer) for layer in layers}) == 1:
                groups.append(_Group(layers))
                for layer in layers:
                    del left[id(layer)]
    return [*groups, *(_Group([layer]) for layer in left.values())]


def _kind(layer: Any) -> tuple[Any, ...]:
    """What must be the same of layers that are computed together."""
    name = layer.active_adapters[0]
    dropout = getattr(layer.lora_dropout[name], "p", 0.0)
    return name, dropout, layer.in_features, layer.base_layer.weight.dtype, layer.lora_A[name].weight.dtype
