"""The backend of a Transformers model in this process, with its packed rows and kept prefixes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.inference.prefix import Prefix, PrefixStore
from fintune.kernels.packing import common_prefix_length

if TYPE_CHECKING:
    from fintune.inference.decoding import Allowed, Generated

ROW_TOKENS = 8192
"""Prompt tokens computed in one forward pass at most (one prompt may be longer)."""
DECODED_TOKENS = 4 * ROW_TOKENS
"""Prompt tokens of the texts that are written together at most: their keys and values stand in memory."""


@dataclass
class _Texts:
    """Left-padded texts over one cache: `ids` (B, T) are to be computed next."""

    ids: Any
    mask: Any
    cache: Any


class Builtin:
    """A causal LM of Transformers, perhaps with adapters of PEFT on it."""

    texts = None

    def __init__(self, model: Any, pad: int, keep_prefixes: bool = False) -> None:
        """
        Args:
            pad: the id of the padding token.
            keep_prefixes: of earlier calls, which needs weights that do not change.
        """
        from fintune.kernels import attention, likelihood, lora, norm
        from fintune.models import adapters

        self.model = model
        self.pad = pad
        self.prefixes = PrefixStore(keep_prefixes)
        self.by_blocks = attention.enable(model)
        self.fast_layers = lora.enable(model)
        norm.enable(model)
        with adapters.mixed_precision(model, self.peft_forwards):
            self.head = likelihood.frozen_head(model)
        self._use_adapter = True

    @property
    def context(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def peft_forwards(self) -> bool:
        """Whether some LoRA layers are not on the fast path."""
        fast, layers = self.fast_layers
        return fast < layers

    @contextlib.contextmanager
    def session(self, use_adapter: bool = True) -> Iterator[None]:
        import torch

        from fintune.models.adapters import mixed_precision, without_adapter

        model, was_training = self.model, self.model.training
        off = not use_adapter and hasattr(model, "disable_adapter")
        adapter = without_adapter(model) if off else contextlib.nullcontext()
        with torch.no_grad(), adapter, mixed_precision(model, self.peft_forwards):
            if was_training:
                model.eval()
            self._use_adapter = use_adapter
            self.prefixes.begin()
            try:
                yield
            finally:
                if was_training:
                    model.train()

    def batch_limits(self, size: int, scoring: bool) -> tuple[int, int]:
        if scoring:
            return (size if self.by_blocks else 1), ROW_TOKENS
        return size, DECODED_TOKENS

    def shared(self, prompts: Sequence[Sequence[int]]) -> int:
        return common_prefix_length(prompts) if self.by_blocks and len(prompts) > 1 else 0

    def lookups(self) -> tuple[int, int]:
        return self.prefixes.hits, self.prefixes.misses

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int = 0
    ) -> list[list[float]]:
        from fintune.inference.scoring import log_likelihoods

        prefix = self._prefix(prompts, shared)
        return log_likelihoods(self.model, prompts, answers, self.by_blocks, self.head, prefix)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        end: int,
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        from fintune.inference.decoding import greedy, greedy_plain

        if not self.by_blocks:
            return greedy_plain(self.model, prompts, max_new_tokens, end, self.pad, allowed)
        prefix = self._prefix(prompts, shared)
        return greedy(self.model, prompts, prefix, max_new_tokens, end, ROW_TOKENS, allowed)

    def _prefix(self, prompts: Sequence[Sequence[int]], shared: int) -> Prefix:
        return self.prefixes.get(self.model, prompts[0][:shared], self._use_adapter)

    def begin(self, prompts: Sequence[Sequence[int]]) -> _Texts:
        import torch
        from transformers import DynamicCache

        longest = max(map(len, prompts))
        rows = [[self.pad] * (longest - len(each)) + list(each) for each in prompts]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in prompts]
        device = self.model.device
        return _Texts(torch.tensor(rows, device=device), torch.tensor(mask, device=device), DynamicCache())

    def advance(self, texts: _Texts, tokens: Sequence[int] | None) -> Any:
        import torch

        from fintune.kernels.likelihood import cache_name

        if tokens is not None:
            texts.ids = torch.tensor(tokens, device=self.model.device)[:, None]
            texts.mask = torch.cat([texts.mask, texts.mask.new_ones(len(tokens), 1)], dim=1)
        positions = (texts.mask.cumsum(1) - 1).clamp(min=0)[:, -texts.ids.shape[1] :]
        return self.model(
            input_ids=texts.ids,
            attention_mask=texts.mask,
            position_ids=positions,
            **{cache_name(): texts.cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def keep(self, texts: _Texts, rows: Sequence[int]) -> None:
        import torch

        index = torch.tensor(rows, dtype=torch.int64, device=texts.ids.device)
        texts.ids, texts.mask = texts.ids[index], texts.mask[index]
        if rows and texts.cache.get_seq_length():
            texts.cache.batch_select_indices(index)
