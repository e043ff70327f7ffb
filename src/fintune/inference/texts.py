"""Texts that a Transformers model writes a token at a time: their keys and values, and the next logits.

`PackedTexts` is for models with block attention, `PaddedTexts` for any other; both compute the same. They
know token ids and models, no tasks. Shapes: B texts, T places of the longest, V tokens of the vocabulary,
Hkv key/value heads of size D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from fintune.inference.prefix import Prefix
from fintune.kernels.attention import Decode
from fintune.kernels.likelihood import cache_name, row_inputs
from fintune.kernels.packing import pack


class _Slots(DynamicLayer):
    """A layer's keys and values in buffers (B, Hkv, room, D) of which the first `used` places are filled.

    Transformers' own layer concatenates, which copies everything at every step.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keys, self._values = keys, values
        self._show(used)

    def _show(self, used: int) -> None:
        self.keys, self.values = self._keys[:, :, :used], self._values[:, :, :used]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used = self.keys.shape[2]
        end = used + key_states.shape[2]
        self._keys[:, :, used:end] = key_states
        self._values[:, :, used:end] = value_states
        self._show(end)
        return self.keys, self.values

    def narrow(self, rows: torch.Tensor, begin: int) -> None:
        """Keep these rows, from place `begin` on."""
        used = self.keys.shape[2] - begin
        self._keys, self._values = self._keys[rows, :, begin:], self._values[rows, :, begin:]
        self._show(used)


class PackedTexts:
    """Prompts are computed as packed rows, their common beginning once; tokens go into buffers in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix,
        row_tokens: int,
        max_new_tokens: int,
    ) -> None:
        """
        Args:
            model: with block attention (`attention.enable`).
            prefix: what all prompts begin with, as `PrefixStore.get` gave it.
            row_tokens: the most prompt tokens of one forward pass (one prompt may be longer).
        """
        self._model, self._prompts, self._prefix = model, list(prompts), prefix
        self._row_tokens, self._room = row_tokens, max_new_tokens
        self._layers: list[_Slots] = []
        self._hidden: torch.Tensor  # (B, longest + room) bool, True at padding
        self._positions: torch.Tensor  # (B,) of the next token

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor:
        if tokens is None:
            return self._prefill()
        ids = torch.tensor(tokens, device=self._model.device)[:, None]  # (B, 1)
        used = self._layers[0].keys.shape[2] + 1  # with the place of the new token
        logits: torch.Tensor = self._model(
            input_ids=ids,
            position_ids=self._positions[:, None],
            attention_mask=ids.new_zeros(1, 1, 1, 1),  # a 4-d mask is passed through untouched
            **{cache_name(): self._cache},
            use_cache=True,
            layout=Decode(self._hidden[:, None, None, :used]),
        ).logits[:, -1]
        self._positions = self._positions + 1
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        self._prompts = [self._prompts[i] for i in rows]
        if not self._layers:
            return
        index = torch.tensor(rows, dtype=torch.int64, device=self._model.device)
        self._hidden, self._positions = self._hidden[index], self._positions[index]
        # Texts are left-padded: places that none of those which stay has written are dropped.
        begin = int(self._hidden.sum(dim=1).min()) if rows else 0
        self._hidden = self._hidden[:, begin:]
        for layer in self._layers:
            layer.narrow(index, begin)

    def _prefill(self) -> torch.Tensor:
        """Compute the prompts into left-padded buffers with `room` for new tokens; returns (B, V) logits."""
        model, prompts, device = self._model, self._prompts, self._model.device
        p, longest = self._prefix.length, max(map(len, prompts))
        outputs = []
        buffers: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer (B, Hkv, longest + room, D)
        for part in _parts([len(prompt) - p for prompt in prompts], self._row_tokens):
            chosen = [prompts[i] for i in part]
            row = pack(chosen, [[[0]]] * len(chosen), prefix=p).to(device)  # any target: none is read
            row = row.after_prefix() if p else row
            found = model(**row_inputs(row, cache=self._prefix.cache()))
            outputs.append(found.logits[0])
            # The row's keys stand as prefix, first prompt's rest, second prompt's rest, …: `places`
            # (b, longest) says where each prompt's tokens are among them; padding may point anywhere, it is
            # hidden.
            begin, places = p, []
            for prompt in chosen:
                own = len(prompt) - p
                padding = [0] * (longest - len(prompt))
                places.append([*padding, *range(p), *range(begin, begin + own)])
                begin += own
            index = torch.tensor(places, device=device)
            into = slice(part[0], part[-1] + 1)
            for i, layer in enumerate(getattr(found, cache_name()).layers):
                if i == len(buffers):
                    heads, dim = layer.keys.shape[1], layer.keys.shape[3]
                    shape = (len(prompts), heads, longest + self._room, dim)
                    buffers.append((layer.keys.new_empty(shape), layer.values.new_empty(shape)))
                for buffer, states in zip(buffers[i], (layer.keys, layer.values), strict=True):
                    # states[0]: (Hkv, tokens, D) → (Hkv, b, longest, D) → (b, Hkv, longest, D)
                    buffer[into, :, :longest] = states[0][:, index].transpose(0, 1)
        self._layers = [_Slots(keys, values, longest) for keys, values in buffers]
        self._cache = DynamicCache()
        self._cache.layers = self._layers
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        hidden = torch.arange(longest + self._room)[None, :] < (longest - lengths)[:, None]
        self._hidden, self._positions = hidden.to(device), lengths.to(device)
        return torch.cat(outputs)


class PaddedTexts:
    """Left-padded texts over Transformers' own cache, for models without block attention."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        """
        Args:
            pad: the id of the padding token.
        """
        longest = max(map(len, prompts))
        rows = [[pad] * (longest - len(each)) + list(each) for each in prompts]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in prompts]
        self._model, self._cache = model, DynamicCache()
        self._ids = torch.tensor(rows, device=model.device)  # (B, new tokens): what is to be computed next
        self._mask = torch.tensor(mask, device=model.device)  # (B, T)

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor:
        if tokens is not None:
            self._ids = torch.tensor(tokens, device=self._model.device)[:, None]
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
        logits: torch.Tensor = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=positions,
            **{cache_name(): self._cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, dtype=torch.int64, device=self._ids.device)
        self._ids, self._mask = self._ids[index], self._mask[index]
        if rows and self._cache.get_seq_length():
            self._cache.batch_select_indices(index)


def _parts(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive indices in groups whose sizes add up to `limit` at most (one alone may be larger)."""
    parts: list[list[int]] = []
    total = 0
    for i, size in enumerate(sizes):
        if not parts or total + size > limit:
            parts.append([])
            total = 0
        parts[-1].append(i)
        total += size
    return parts
