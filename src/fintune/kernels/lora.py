"""A fast path for PEFT's LoRA layers: only their forward is replaced, by `lora_linears`.

Names, saving and merging stay PEFT's. It covers LoRA, rsLoRA and DoRA on frozen linear layers, dense or
quantized by bitsandbytes, and GPT-2's transposed ones; other layers keep PEFT's forward.
"""

from __future__ import annotations

import types
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fintune.kernels import siblings
from fintune.kernels.derived import Derived
from fintune.kernels.frozen import Quantized, reader_of
from fintune.kernels.lora_linears import Cast, cast_of, lora_linears, row_norms


class _Group:
    """Layers with the same input: the first one called computes the outputs of all.

    The same input is recognized by identity, since siblings get the very same tensor. Outputs computed
    without gradients are not used in a call with gradients (checkpointing recomputes the forward).

    Args:
        block: the checkpointable decoder layer in which these come last, if they do.
    """

    def __init__(self, layers: list[Any], block: Any) -> None:
        read = reader_of(layers[0].base_layer)
        assert read is not None
        self.layers = layers
        self.block = block
        self.adapters = list(layers[0].active_adapters)
        (self.name,) = self.adapters
        self.dora = self.name in layers[0].lora_variant
        self._read = read
        self.quantized = isinstance(read(layers[0].base_layer), Quantized)
        a, b = self._trained()
        self._cast: Derived[Cast] = Derived([*a, *b])
        self._norms: Derived[list[Tensor]] = Derived([*a, *b])
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

    def _trained(self) -> tuple[list[Tensor], list[Tensor]]:
        """The current A and B: FSDP exchanges them."""
        name = self.name
        a = [layer.lora_A[name].weight for layer in self.layers]
        return a, [layer.lora_B[name].weight for layer in self.layers]

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        layers, name = self.layers, self.name
        bases = [layer.base_layer for layer in layers]
        x = x.to(self._dtype(x))
        dropout = layers[0].lora_dropout[name]  # one mask for all, because they share one input
        dropped = dropout(x) if layers[0].training and not isinstance(dropout, torch.nn.Identity) else None
        scalings = [layer.scaling[name] for layer in layers]
        weights = [self._read(base) for base in bases]
        a, b = self._trained()
        cast = self._cast.get([*a, *b], x.dtype, lambda: cast_of(x.dtype, a, b))
        magnitudes = norms = None
        if self.dora:
            magnitudes = [layer.lora_magnitude_vector[name].weight for layer in layers]
            norms = self._norms.get(
                [*a, *b], tuple(scalings), lambda: list(map(row_norms, weights, a, b, scalings))
            )
        block = self.block
        return lora_linears(
            x,
            dropped,
            scalings,
            weights,
            [base.bias for base in bases],
            a,
            b,
            magnitudes,
            norms,
            cast=cast,
            early=block is not None and block.gradient_checkpointing and block.training,
        )

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the products."""
        if not self.quantized:
            return self.layers[0].base_layer.weight.dtype
        device = x.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The fast forward of a PEFT layer if it applies, else PEFT's own.

    The active adapter may have changed to a kind that is not covered.
    """
    group = self.fintune_group
    if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != group.adapters:
        return type(self).forward(self, x, *args, **kwargs)
    if torch.compiler.is_compiling():
        return _traced(self, x, group.name)
    return group(self, x)


def _traced(layer: Any, x: Tensor, name: str) -> Tensor:
    """The formula in plain operations for a compiler, which fuses what surrounds the products."""
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    x = x.to(base.weight.dtype)
    down = linear(dropout(x), layer.lora_A[name].weight.to(x.dtype))
    return linear(x, base.weight, base.bias) + layer.scaling[name] * linear(
        down, layer.lora_B[name].weight.to(x.dtype)
    )


def _covered(layer: Any) -> bool:
    """Whether a PEFT layer is LoRA or DoRA on a frozen linear layer, with one active adapter."""
    from peft.tuners.lora.variants import DoraLinearVariant

    names = layer.active_adapters
    if type(layer).__name__ not in ("Linear", "Linear4bit", "Linear8bitLt") or len(names) != 1:
        return False
    (name,) = names
    return (
        name in layer.lora_A
        and type(layer.lora_variant.get(name)) in (type(None), DoraLinearVariant)
        and layer.lora_B[name].bias is None
        and reader_of(layer.base_layer) is not None
    )


def enable(model: Any) -> tuple[int, int]:
    """Enable the fast path for a PEFT model's layers where possible, for the active adapter.

    Returns (fast layers, all LoRA layers).
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    fast = [layer for layer in layers if _covered(layer)]
    if fast:
        siblings.look(model, fast)
    for group in _groups(model, fast):
        for layer in group.layers:
            layer.forward = types.MethodType(_forward, layer)
            layer.fintune_group = group
    return len(fast), len(layers)


def stay_outside_graphs(model: Any) -> None:
    """Exclude groups from compiled layers (`compiled`), except for LoRA on dense weights."""
    outside = torch.compiler.disable(_forward)
    for module in model.modules():
        group = module.__dict__.get("fintune_group")
        if group is not None and (
            group.dora or group.quantized or type(module.base_layer) is not torch.nn.Linear
        ):
            module.forward = types.MethodType(outside, module)


def disable(model: Any) -> None:
    """Restore PEFT's forward in every layer, before enabling another adapter."""
    for module in model.modules():
        if module.__dict__.pop("fintune_group", None) is not None:
            module.__dict__.pop("forward", None)


def _groups(model: Any, fast: list[Any]) -> list[_Group]:
    """The layers of one module that share an input, in the order in which they are computed."""
    left = {id(layer): layer for layer in fast}
    places = {id(layer): siblings.place(layer) for layer in fast}
    lasts = siblings.lasts(model, places)
    groups = []
    for module in model.modules():
        together: dict[Any, list[Any]] = defaultdict(list)
        for layer in module.children():
            if left.pop(id(layer), None) is not None:
                together[places[id(layer)].source, *_kind(layer)].append(layer)
        for layers in together.values():
            layers.sort(key=lambda layer: places[id(layer)].turn)
            groups.append(_Group(layers, lasts.get(id(layers[-1]))))
    return groups


def _kind(layer: Any) -> tuple[Any, ...]:
    """What layers must have in common to be computed together."""
    (name,) = layer.active_adapters
    base, a = layer.base_layer, layer.lora_A[name].weight
    dropout = getattr(layer.lora_dropout[name], "p", 0.0)
    return type(base), base.weight.dtype, base.weight.device, dropout, layer.in_features, a.dtype
