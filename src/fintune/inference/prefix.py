"""Computes the common beginning of a task's prompts (its instruction) once and keeps its keys and values.

Knows token ids and models, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

KEPT = 16
"""Prefixes kept at once: each task has one with the adapter and one without."""


@dataclass(frozen=True)
class Prefix:
    """The keys and values of `length` tokens, (1, Hkv, length, D) per layer; no layers if length is 0.

    Hkv is the number of key/value heads, D their size.
    """

    length: int = 0
    states: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def cache(self) -> DynamicCache:
        """A Transformers cache that begins with the prefix; adding to it leaves the prefix as it is."""
        from transformers import DynamicCache

        return DynamicCache(self.states) if self.length else DynamicCache()


class PrefixStore:
    """The prefixes of one model.

    With `keep` prefixes survive the session, which is right only while the weights do not change.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self.hits = self.misses = 0
        self._known: dict[tuple[bool, tuple[int, ...]], Prefix] = {}

    def begin(self) -> None:
        """Start a session: forget the prefixes of earlier ones, unless `keep` is set."""
        if not self.keep:
            self._known.clear()

    def get(self, model: PreTrainedModel, ids: Sequence[int], adapter: bool) -> Prefix:
        """The prefix of these tokens; `model` computes it if it is not cached yet.

        Args:
            adapter: whether the adapter is active, because it changes the keys and values.
        """
        import torch
        from transformers import DynamicCache

        from fintune.kernels.forward import cache_name

        if not ids:
            return Prefix()
        key = (adapter, tuple(ids))
        if key in self._known:
            self.hits += 1
        else:
            self.misses += 1
            row = torch.tensor([key[1]], device=model.device)  # (1, length)
            cache = DynamicCache()  # the model's own would keep only a layer's window
            model(input_ids=row, **{cache_name(): cache}, use_cache=True, logits_to_keep=1)
            if len(self._known) >= KEPT:  # the oldest makes room
                del self._known[next(iter(self._known))]
            self._known[key] = Prefix(len(ids), [(layer.keys, layer.values) for layer in cache.layers])
        return self._known[key]
