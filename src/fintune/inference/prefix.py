"""What all prompts of a task begin with (its instruction), computed once and kept as keys and values.

Knows token ids and models, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fintune.data.batching import common_prefix_length

KEPT = 16
"""Prefixes kept at once: a task has one with the adapter and one without."""


@dataclass(frozen=True)
class Prefix:
    """`length` tokens and, of each layer, their keys and values (1, Hkv, length, D); none if length is 0."""

    length: int = 0
    states: list[tuple[Any, Any]] = field(default_factory=list)

    def cache(self) -> Any:
        """A Transformers cache that begins with the prefix; adding to it leaves the prefix as it is."""
        from transformers import DynamicCache

        return DynamicCache(self.states) if self.length else DynamicCache()


class PrefixStore:
    """The prefixes of one model. With `keep` they outlive a call, which needs weights that do not change."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._known: dict[tuple[bool, tuple[int, ...]], Prefix] = {}

    def find(self, model: Any, prompts: Sequence[Sequence[int]], adapter: bool) -> Prefix:
        """The prefix that all `prompts` share; computed by `model` if it is not known yet."""
        import torch

        length = common_prefix_length(prompts) if len(prompts) > 1 else 0
        if length == 0:
            return Prefix()
        key = (adapter, tuple(prompts[0][:length]))
        if not self.keep:
            self._known.clear()
        if key not in self._known:
            ids = torch.tensor([key[1]], device=model.device)
            cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).cache
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = Prefix(length, [(layer.keys, layer.values) for layer in cache.layers])
        return self._known[key]
