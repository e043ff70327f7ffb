"""Lets a Transformers model write texts token by token: their keys and values, and the next logits.

`PackedTexts` is for models with block attention, `PaddedTexts` for all others; both compute the same. They
know token ids and models, no tasks. Shapes: B texts, T positions of the longest, V tokens of the vocabulary,
Hkv key/value heads of size D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from fintune.inference.decoding import Watch
from fintune.inference.prefix import Prefix
from fintune.inference.recording import Recorder, Repeated
from fintune.kernels.attention import Decode
from fintune.kernels.forward import cache_name, row_inputs
from fintune.kernels.packing import pack, parts

WATCHED_TOKENS = 256
"""The most tokens of a pass that needs all logits: with 49,152 vocabulary tokens these take 50 MB."""


class _Slots(DynamicLayer):
    """A layer's keys and values in buffers (B, Hkv, room, D), of which a step sees those filled so far.

    Transformers' own layer concatenates, which copies everything in every step.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keys, self._values = keys, values
        self._show(used)

    @property
    def seen(self) -> int:
        """How many positions the next step sees, its own among them."""
        return self.keys.shape[2] + 1

    def _show(self, used: int) -> None:
        self.keys, self.values = self._keys[:, :, :used], self._values[:, :, :used]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used = self.keys.shape[2]
        self._keys[:, :, used : used + 1] = key_states
        self._values[:, :, used : used + 1] = value_states
        self._show(used + 1)
        return self.keys, self.values

    def narrow(self, rows: torch.Tensor, begin: int) -> None:
        """Keep these rows, from position `begin` on."""
        used = self.keys.shape[2] - begin
        self._keys, self._values = self._keys[rows, :, begin:], self._values[rows, :, begin:]
        self._show(used)


class _FixedSlots(_Slots):
    """The same, but a step sees the whole buffers, so that all steps use the same memory and shapes.

    `place`, (1,) on the device, is where the next token goes; the attention hides what is after it.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor) -> None:
        self._place = place
        super().__init__(keys, values, 0)

    @property
    def seen(self) -> int:
        return self.keys.shape[2]

    def _show(self, used: int) -> None:
        self.keys, self.values = self._keys, self._values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            self._keys.index_copy_(2, self._place, key_states),
            self._values.index_copy_(2, self._place, value_states),
        )


@dataclass(eq=False)
class _Prompt:
    """A prompt that is being computed."""

    ids: Sequence[int]
    states: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Each layer's keys and values, (Hkv, tokens, D), once all are computed."""
    cache: DynamicCache | None = None
    """The computed beginning of a prompt that is longer than a pass."""
    watch: Watch | None = None
    logits: torch.Tensor | None = None
    """(1, V) logits after its last token."""


class PackedTexts:
    """Computes prompts as packed rows, their common beginning once; writes tokens into buffers in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix,
        row_tokens: int,
        max_new_tokens: int,
        watched: Mapping[int, Watch] | None = None,
        record: Recorder | None = None,
    ) -> None:
        """
        Args:
            model: with block attention (`attention.enable`).
            prefix: the common beginning of all prompts, from `PrefixStore.get`.
            row_tokens: the most prompt tokens per forward pass; a longer prompt takes several passes.
            watched: as in `Backend.begin`; such a prompt is computed alone.
            record: records the steps, which is right only if all are in one session; None runs each anew.
        """
        self._model, self._prompts, self._prefix = model, [_Prompt(each) for each in prompts], prefix
        for row, watch in (watched or {}).items():
            self._prompts[row].watch = watch
        self._row_tokens, self._room = row_tokens, max_new_tokens
        self._layers: list[_Slots] = []
        self._fixed = record is not None
        self._repeated = Repeated(self._step, record)
        # A step reads these tensors and changes only the caches, so that a recording can be repeated.
        self._tokens: torch.Tensor  # (B, 1) the newest
        self._place: torch.Tensor  # (1,) where they go in the caches
        self._padding: torch.Tensor  # (B,) positions before each text: texts are left-padded

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor | None:
        if tokens is None:
            return self._prefill()
        self._tokens.copy_(torch.tensor(tokens)[:, None])
        logits = self._repeated()
        self._place.add_(1)
        return logits

    def _step(self) -> torch.Tensor:
        """(B, V) logits after the newest tokens. Running it twice is running it once."""
        places = torch.arange(self._layers[0].seen, device=self._place.device)
        hidden = places < self._padding[:, None]  # (B, places)
        if self._fixed:
            hidden = hidden | (places > self._place)
        logits: torch.Tensor = self._model(
            input_ids=self._tokens,
            position_ids=(self._place - self._padding)[:, None],
            attention_mask=hidden.new_zeros(1, 1, 1, 1),  # a 4-d mask is used unchanged
            **{cache_name(): self._cache},
            use_cache=True,
            layout=Decode(hidden[:, None, None], self._place if self._fixed else None),
        ).logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        self._prompts = [self._prompts[i] for i in rows]
        if not self._layers:
            return
        self._repeated.forget()
        index = torch.tensor(rows, dtype=torch.int64, device=self._model.device)
        self._tokens, self._padding = self._tokens[index], self._padding[index]
        begin = int(self._padding.min()) if rows else 0  # what is padding in all remaining texts goes
        self._padding -= begin
        self._place -= begin  # in place: the caches hold it too
        for layer in self._layers:
            layer.narrow(index, begin)

    def _prefill(self) -> torch.Tensor | None:
        """Compute one pass of the prompts; (B, V) logits once all are computed, None before."""
        if waiting := [prompt for prompt in self._prompts if prompt.logits is None]:
            waiting = [prompt for prompt in waiting if not prompt.watch] or waiting[:1]
            part = parts([len(prompt.ids) - self._prefix.length for prompt in waiting], self._row_tokens)[0]
            if len(part) == 1:
                self._compute_on(waiting[0])
            else:
                self._compute([waiting[i] for i in part])
        if any(prompt.logits is None for prompt in self._prompts):
            return None
        self._fill()
        return torch.cat([prompt.logits for prompt in self._prompts if prompt.logits is not None])

    def _compute(self, prompts: Sequence[_Prompt]) -> None:
        """Compute prompts as one packed row: first the prefix's keys, then the rest of each prompt."""
        p = begin = self._prefix.length
        ids = [prompt.ids for prompt in prompts]
        row = pack(ids, [[[0]]] * len(ids), prefix=p).to(self._model.device)  # any target: it is never read
        found = self._model(**row_inputs(row.after_prefix() if p else row, cache=self._prefix.cache()))
        layers = getattr(found, cache_name()).layers
        for prompt, logits in zip(prompts, found.logits[0].split(1), strict=True):
            end = begin + len(prompt.ids) - p
            prompt.states = [
                (_ends(layer.keys[0], p, begin, end), _ends(layer.values[0], p, begin, end))
                for layer in layers
            ]
            prompt.logits, begin = logits, end

    def _compute_on(self, prompt: _Prompt) -> None:
        """Compute the next tokens of one prompt, as many as fit one pass."""
        cache = prompt.cache = prompt.cache or self._prefix.cache()
        begin = cache.get_seq_length()
        ids = torch.tensor([prompt.ids[begin : begin + self._row_tokens]], device=self._model.device)
        end = begin + ids.shape[1]
        positions = torch.arange(begin, end, device=ids.device)[None]
        found = self._model(
            input_ids=ids,
            position_ids=positions,
            **{cache_name(): cache},
            use_cache=True,
            logits_to_keep=0 if prompt.watch else 1,  # 0 keeps all
        )
        if prompt.watch:
            prompt.watch(found.logits[0])
        if end == len(prompt.ids):
            prompt.states = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
            prompt.logits, prompt.cache = found.logits[0, -1:], None

    def _fill(self) -> None:
        """Move the prompts' keys and values into left-padded buffers with `room` for new tokens."""
        prompts, device = self._prompts, self._model.device
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        longest = int(lengths.max())
        self._place = torch.tensor([longest], device=device)
        self._padding = (longest - lengths).to(device)
        self._tokens = self._padding.new_zeros(len(prompts), 1)
        while prompts[0].states:  # layer by layer; each is then freed from the prompts
            own = [prompt.states.pop(0) for prompt in prompts]
            buffers = []
            for kind in (0, 1):
                heads, _, dim = own[0][kind].shape
                # Zeros: what is hidden still takes part, with weight 0.
                buffer = own[0][kind].new_zeros(len(prompts), heads, longest + self._room, dim)
                for row, states in zip(buffer, own, strict=True):
                    row[:, longest - states[kind].shape[1] : longest] = states[kind]
                buffers.append(buffer)
            keys, values = buffers
            self._layers.append(
                _FixedSlots(keys, values, self._place) if self._fixed else _Slots(keys, values, longest)
            )
        self._cache = DynamicCache()
        self._cache.layers = self._layers


def _ends(states: torch.Tensor, prefix: int, begin: int, end: int) -> torch.Tensor:
    """(Hkv, tokens, D): a copy of the first `prefix` positions and of those from `begin` to `end`."""
    return torch.cat([states[:, :prefix], states[:, begin:end]], dim=1)


class PaddedTexts:
    """Left-padded texts over Transformers' own cache, for models without block attention."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        pad: int,
        row_tokens: int | None = None,
        watched: Mapping[int, Watch] | None = None,
    ) -> None:
        """
        Args:
            pad: id of the padding token.
            row_tokens: about the most tokens per forward pass; None is no limit. If a model's state is more
                than keys and values, its prompts are computed in one pass.
            watched: as in `Backend.begin`.
        """
        longest = max(map(len, prompts))
        rows = [[pad] * (longest - len(each)) + list(each) for each in prompts]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in prompts]
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
        split = kinds <= {"full_attention", "sliding_attention"} and not getattr(model, "_is_stateful", False)
        self._model, self._cache = model, DynamicCache(config=model.config)
        self._watched = dict(watched or {})
        self._padding = [longest - len(each) for each in prompts]
        self._pass = max(1, row_tokens // len(prompts)) if row_tokens and split else longest
        self._ids = torch.tensor(rows, device=model.device)  # (B, new tokens): to be computed next
        self._mask = torch.tensor(mask, device=model.device)  # (B, T)

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor | None:
        if tokens is not None:
            self._ids = torch.tensor(tokens, device=self._model.device)[:, None]
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        watching = tokens is None and bool(self._watched)
        left = max(0, self._ids.shape[1] - self._pass)
        now, self._ids = self._ids[:, : self._pass], self._ids[:, self._pass :]
        end = self._mask.shape[1] - left
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, end - now.shape[1] : end]
        logits: torch.Tensor = self._model(
            input_ids=now,
            attention_mask=self._mask[:, :end],
            position_ids=positions,
            **{cache_name(): self._cache},
            use_cache=True,
            logits_to_keep=0 if watching else 1,  # 0 keeps all
        ).logits
        for row, watch in self._watched.items() if watching else ():
            if (own := min(now.shape[1], end - self._padding[row])) > 0:  # those after the padding
                watch(logits[row, -own:])
        return None if left else logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, dtype=torch.int64, device=self._ids.device)
        self._watched = {i: self._watched[row] for i, row in enumerate(rows) if row in self._watched}
        self._padding = [self._padding[row] for row in rows]
        self._ids, self._mask = self._ids[index], self._mask[index]
        if rows:
            self._cache.reorder_cache(index)
