"""LoRA in as few passes over memory as it needs: y = x·Wᵀ + bias + s · (x·Aᵀ)·Bᵀ as one autograd function.

PEFT's layer makes four products, a scaling, a sum and their gradients as separate operations, each a pass
over a (tokens × features) tensor; on a CPU those passes cost as much as the products. Here the update is
accumulated into the base product, and its gradient into the base's; and layers that read the same input
(queries, keys and values; gate and up) are one function, with one product for all their A and one gradient
of the input. The modules stay PEFT's: only their forward is replaced, so names, saving and merging are
unchanged. The plain reference is `lora_plain`.

Shape suffixes of names: N tokens, I features of the input, O of a layer's output, R rank of its adapter, Q
the sum of all layers' ranks.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that read the same input, by the names that Transformers' decoders give them."""


class _LoraLinears(torch.autograd.Function):
    """`lora_linears`; `tensors` are its weights, biases, A and B, one after the other.

    Kept for the backward pass: the adapters' input, A and B in the input's dtype, x·Aᵀ, and the base weights
    (not copied). The gradients of frozen weights and biases are never computed. With G the gradient of y:

        U = s · G·B,  grad A = Uᵀ·x,  grad B = s · Gᵀ·(x·Aᵀ),  grad x = G·W + U·A
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, scalings: tuple[float, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        n = len(scalings)
        weights_OI, biases_O, a_RI, wide_b_OR = (tensors[i * n : (i + 1) * n] for i in range(4))
        x_NI = x.reshape(-1, x.shape[-1])
        source_NI = x_NI if dropped is None else dropped.reshape(-1, x.shape[-1])
        # The adapter's weights are fp32 and products are in the base's dtype: one cast a step, not one a use.
        a_QI = torch.cat([each.to(x.dtype) for each in a_RI])
        b_OR = [each.to(x.dtype) for each in wide_b_OR]
        ranks = [len(each) for each in a_RI]
        down_NR = (source_NI @ a_QI.T).split(ranks, dim=1)  # all layers' x·Aᵀ in one product, then views
        outs = []
        for i in range(n):
            out_NO = linear(x_NI, weights_OI[i], biases_O[i])
            out_NO.addmm_(down_NR[i], b_OR[i].T, alpha=scalings[i])  # in place: no (N, O) tensor of its own
            outs.append(out_NO.view(*x.shape[:-1], -1))
        ctx.save_for_backward(source_NI, a_QI, *down_NR, *weights_OI, *b_OR)
        ctx.scalings, ctx.ranks, ctx.dtype, ctx.separate = scalings, ranks, a_RI[0].dtype, dropped is not None
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.scalings)
        source_NI, a_QI, *rest = ctx.saved_tensors
        down_NR, weights_OI, b_OR = (rest[i * n : (i + 1) * n] for i in range(3))
        shape = (*gradients[0].shape[:-1], source_NI.shape[1])
        g_NO = [each.reshape(-1, each.shape[-1]) for each in gradients]
        up_NQ = torch.cat([(g_NO[i] @ b_OR[i]).mul_(ctx.scalings[i]) for i in range(n)], dim=1)
        grad_a_RI = (up_NQ.T @ source_NI).to(ctx.dtype).split(ctx.ranks)
        grad_b_OR = [(g_NO[i].T @ down_NR[i]).mul_(ctx.scalings[i]).to(ctx.dtype) for i in range(n)]
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = g_NO[0] @ weights_OI[0]
            for i in range(1, n):
                grad_x_NI.addmm_(g_NO[i], weights_OI[i])
            if not ctx.separate:
                grad_x_NI.addmm_(up_NQ, a_QI)
            grad_x = grad_x_NI.view(shape)
        if ctx.separate and ctx.needs_input_grad[1]:  # dropout's own backward takes it from here
            grad_dropped = (up_NQ @ a_QI).view(shape)
        frozen = [None] * (2 * n)
        return grad_x, grad_dropped, None, *frozen, *grad_a_RI, *grad_b_OR


def lora_linears(
    x: Tensor,
    dropped: Tensor | None,
    scalings: Sequence[float],
    weights_OI: Sequence[Tensor],
    biases_O: Sequence[Tensor | None],
    a_RI: Sequence[Tensor],
    b_OR: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """n linear layers with LoRA (Hu et al., 2021, equation 3) on one input.

    Args:
        x: (…, I), of the weights' dtype.
        dropped: x after dropout, which then goes through the adapters in place of x; None without dropout.
        scalings: s of each layer: α/r, or α/√r for rsLoRA.
        weights_OI, biases_O: frozen. O and R may differ among the layers.
        a_RI, b_OR: trained, often in a wider dtype than x.

    Returns:
        For each layer y, (…, O), of x's dtype.
    """
    return _LoraLinears.apply(x, dropped, tuple(scalings), *weights_OI, *biases_O, *a_RI, *b_OR)


def lora_plain(
    x: Tensor, dropped: Tensor | None, scalings: Sequence[float], *layers: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The plain reference of `lora_linears`, whose arguments it takes."""
    source = x if dropped is None else dropped
    return tuple(
        linear(x, weight, bias) + s * linear(linear(source, a.to(x.dtype)), b.to(x.dtype))
        for s, weight, bias, a, b in zip(scalings, *layers, strict=True)
    )


class _Group:
    """Layers on one input: the first one called computes for all, the others find their output waiting.

    The input is told by identity, since siblings are handed the very same tensor. Outputs made without
    gradients do not serve a call with them (a checkpoint computes the forward again).
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.adapters = list(layers[0].active_adapters)
        self._waiting: dict[int, Tensor] = {}
        self._for: tuple[Tensor | None, bool] = (None, False)

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
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

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        layers, (name,) = self.layers, self.adapters
        bases = [layer.base_layer for layer in layers]
        x = x.to(bases[0].weight.dtype)
        dropout = layers[0].lora_dropout[name]  # one mask for all, as the input is one
        dropped = dropout(x) if layers[0].training and not isinstance(dropout, torch.nn.Identity) else None
        return lora_linears(
            x,
            dropped,
            [layer.scaling[name] for layer in layers],
            [base.weight for base in bases],
            [base.bias for base in bases],
            [layer.lora_A[name].weight for layer in layers],
            [layer.lora_B[name].weight for layer in layers],
        )


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`peft.tuners.lora.Linear.forward` for the case that is fast; any other goes to PEFT's own.

    Another adapter than the one that was looked at may be of a kind that is not covered.
    """
    group = self.fintune_group
    if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != group.adapters:
        return type(self).forward(self, x, *args, **kwargs)
    return group(self, x)


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
    """Make the layers of a PEFT model fast where they can be, for the adapter that is active now.

    Returns (layers made fast, LoRA layers in all). DoRA, quantized bases, trained biases and layers that are
    not linear keep PEFT's own forward.
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
