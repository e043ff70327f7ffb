"""The built-in backend: a Transformers model in this process, with packed rows and cached prefixes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fintune.inference.prefix import Prefix, PrefixStore
from fintune.kernels.packing import common_prefix_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fintune.inference.decoding import Allowed, Generated, Texts, Watch
    from fintune.inference.recording import Recorder
    from fintune.models.source import Source

ROW_TOKENS = 8192
"""The most prompt tokens per forward pass (a single prompt with its labels may be longer)."""
STEP_TOKENS = {"cpu": 256}
"""The same for texts written token by token, because other work waits for the pass; 2,048 elsewhere."""
DECODED_TOKENS = 4 * ROW_TOKENS
"""The most prompt tokens of the texts written together: their keys and values stay in memory."""


def load(source: Source) -> Builtin:
    """The base with its adapter, or an exported model; see `BackendSpec.load`."""
    from fintune.models import adapters, base, gguf

    if source.kind == "gguf":
        assert source.path
        return Builtin(gguf.load(source.path), source.tokenizer.pad_token_id, keep_prefixes=True)
    model = base.load_base_model(source.recipe.base_model, source.dtype)
    if source.adapter:
        model = adapters.load_adapter(model, source.adapter)
        adapters.merge(model)
    return Builtin(model.eval(), source.tokenizer.pad_token_id, keep_prefixes=True)


class Builtin:
    """A causal LM of Transformers, perhaps with PEFT adapters."""

    texts = None

    def __init__(self, model: PreTrainedModel, pad: int, keep_prefixes: bool = False) -> None:
        """
        Args:
            pad: id of the padding token.
            keep_prefixes: keep prefixes between calls, which is right only if the weights do not change.
        """
        from fintune.kernels import attention, likelihood, lora, norm
        from fintune.models import adapters

        self.model = model
        self.pad = pad
        self.prefixes = PrefixStore(keep_prefixes)
        # Before anything is computed: on a CPU each pass of PEFT's DoRA layers over an 8-bit base makes a new
        # quantized weight and loses its scale, so that the second pass fails.
        self.fast_layers = lora.enable(model)
        self.support = attention.enable(model)
        self.by_blocks = bool(self.support)
        norm.enable(model)
        with adapters.mixed_precision(model, self.peft_forwards):
            self.head = likelihood.frozen_head(model)
        self._use_adapter = True

    @property
    def context(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def peft_forwards(self) -> bool:
        """Whether some LoRA layers do not use the fast path."""
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
            return (size if self.support.several else 1), ROW_TOKENS
        return size, DECODED_TOKENS

    def shared(self, prompts: Sequence[Sequence[int]]) -> int:
        return common_prefix_length(prompts) if self.by_blocks and len(prompts) > 1 else 0

    def lookups(self) -> tuple[int, int]:
        return self.prefixes.hits, self.prefixes.misses

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int = 0
    ) -> list[list[float]]:
        from fintune.inference.scoring import log_likelihoods, log_likelihoods_unpacked

        if self.by_blocks:
            return log_likelihoods(self.model, prompts, answers, self.head, self._prefix(prompts, shared))
        row_tokens = ROW_TOKENS if self.support.several else 0
        return log_likelihoods_unpacked(self.model, prompts, answers, self.head, row_tokens)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        ends: Collection[int],
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        from fintune.inference.decoding import greedy
        from fintune.inference.recording import recorder

        # Only here, where one session holds all steps: between those of `begin` adapters may change.
        record = recorder(self.model.device)
        texts = self._begin(prompts, max_new_tokens, shared, ROW_TOKENS, record=record)
        return greedy(texts, range(len(prompts)), max_new_tokens, ends, allowed)

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        watched: Mapping[int, Watch] | None = None,
    ) -> Texts:
        from fintune.inference.texts import WATCHED_TOKENS

        step = STEP_TOKENS.get(self.model.device.type, 2_048)
        return self._begin(
            prompts, max_new_tokens, 0, min(step, WATCHED_TOKENS) if watched else step, watched
        )

    def _begin(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        shared: int,
        step: int,
        watched: Mapping[int, Watch] | None = None,
        record: Recorder | None = None,
    ) -> Texts:
        from fintune.inference.texts import PackedTexts, PaddedTexts

        # PEFT's wrapper may be replaced while a text is written: when a server unloads its adapter and loads
        # it again. The model under it stays, and contains the adapter's layers.
        model = getattr(self.model, "get_base_model", lambda: self.model)()
        if not self.by_blocks:
            return PaddedTexts(model, prompts, self.pad, step, watched)
        prefix = self._prefix(prompts, shared)
        return PackedTexts(model, prompts, prefix, step, max_new_tokens, watched, record)

    def _prefix(self, prompts: Sequence[Sequence[int]], shared: int) -> Prefix:
        return self.prefixes.get(self.model, prompts[0][:shared], self._use_adapter)
