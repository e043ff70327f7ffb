"""Find layers that get the very same input, and those that are computed last, by running one token.

This does not depend on layer names, or on how many are fused into one: queries, keys and values of one module
read one tensor in every family.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fintune.kernels.forward import one_token

MARK = "fintune_place"

_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """Where in a forward pass a layer is computed.

    Attributes:
        source: the number of its input, shared with its siblings.
        turn: how many layers were computed before it; -1 if the token did not reach it.
    """

    source: int
    turn: int


def place(layer: Any) -> Place:
    """The place of a LoRA layer if `look` has seen it; otherwise one without siblings."""
    found: Place | None = layer.base_layer.__dict__.get(MARK)
    return found or Place(next(_numbers), -1)


def look(model: Any, layers: list[Any]) -> None:
    """Find the places of LoRA layers, once: the base's layers keep them for later adapters.

    In a model with shapes only (`meta`) nothing is found.
    """
    if all(MARK in layer.base_layer.__dict__ for layer in layers) or model.device.type == "meta":
        return
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    held: list[Any] = []  # keep inputs alive: a freed input's id could be reused by another

    def base_alone(layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        seen[id(layer)].append((id(x), len(held)))
        held.append(x)
        return layer.base_layer(x, *args, **kwargs)

    before = [(layer, layer.__dict__.get("forward")) for layer in layers]
    try:
        for layer in layers:
            layer.forward = functools.partial(base_alone, layer)
        one_token(model)
    finally:
        for layer, forward in before:
            del layer.forward
            if forward is not None:
                layer.forward = forward
    numbers: dict[tuple[int, ...], int] = defaultdict(lambda: next(_numbers))
    for layer in layers:
        calls = seen.get(id(layer), [])
        source = numbers[tuple(tensor for tensor, _ in calls)] if calls else next(_numbers)
        layer.base_layer.__dict__[MARK] = Place(source, calls[-1][1] if calls else -1)


def lasts(model: Any, places: dict[int, Place]) -> dict[int, Any]:
    """Id of a layer that is computed last in a checkpointable decoder layer → that decoder layer.

    Args:
        places: the LoRA layers' places, by id.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = {}
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            inside = [id(module) for module in block.modules() if id(module) in places]
            seen = [layer for layer in inside if places[layer].turn >= 0]
            if seen:
                found[max(seen, key=lambda layer: places[layer].turn)] = block
    return found
