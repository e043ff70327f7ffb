"""Greedy decoding of many prompts at once, over a cache that is written in place.

Prompts are computed as packed rows, their common beginning once; then one token a step for every text that
is not at its end. Texts that are leave the batch, so that the long ones do not wait for them. Knows token
ids and models, no tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fintune.inference.prefix import Prefix
from fintune.kernels.attention import Decode
from fintune.kernels.likelihood import cache_name, row_inputs
from fintune.kernels.packing import pack

Allowed = Callable[[int, Sequence[int]], Any]
"""(Number of the prompt, the tokens it has so far) → the tokens that may come next, as a list or a tensor;
None is any."""

COMPACT = 0.75
"""When no more than this share of the batch still writes, the others' part of the cache is dropped."""


@dataclass
class Generated:
    """The tokens of one answer, end of text left out, and the log-probability of each (end included)."""

    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)

    @property
    def probability(self) -> float:
        """The geometric mean of the tokens' probabilities."""
        return math.exp(sum(self.log_probabilities) / max(1, len(self.log_probabilities)))


class _Slots(DynamicLayer):
    """A layer's keys and values in buffers (B, Hkv, room, D) of which the first `used` places are filled."""

    def __init__(self, keys: Any, values: Any, used: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keys, self._values = keys, values
        self._show(used)

    def _show(self, used: int) -> None:
        self.keys, self.values = self._keys[:, :, :used], self._values[:, :, :used]

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        used = self.keys.shape[2]
        end = used + key_states.shape[2]
        self._keys[:, :, used:end] = key_states
        self._values[:, :, used:end] = value_states
        self._show(end)
        return self.keys, self.values

    def narrow(self, rows: Any, begin: int) -> None:
        """Keep these rows, from place `begin` on."""
        used = self.keys.shape[2] - begin
        self._keys, self._values = self._keys[rows, :, begin:], self._values[rows, :, begin:]
        self._show(used)


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix,
    max_new_tokens: int,
    end: int,
    row_tokens: int,
    allowed: Allowed | None = None,
) -> list[Generated]:
    """The most likely next token again and again, until `end` or `max_new_tokens`; in the prompts' order.

    Args:
        model: with block attention (`attention.enable`).
        prefix: what all prompts begin with, as `PrefixStore.get` gave it.
        end: the id of the end-of-text token.
        row_tokens: prompt tokens computed in one forward pass at most (one prompt may be longer).
        allowed: which tokens may come next, where not all may.
    """
    answers = [Generated() for _ in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    logits, layers = _prefill(model, prompts, prefix, row_tokens, max_new_tokens)
    longest = int(lengths.max())
    cache = DynamicCache()
    cache.layers = layers
    hidden = torch.arange(longest + max_new_tokens)[None, :] < (longest - lengths)[:, None]
    hidden, positions = hidden.to(model.device), lengths.to(model.device)
    rows = list(range(len(prompts)))  # the prompt in each place of the batch
    writing = [True] * len(rows)
    for step in range(max_new_tokens):
        sofar = [answers[row].ids for row in rows]
        tokens, log_probabilities = most_likely(logits, rows, sofar, allowed)
        for place, (token, value) in enumerate(zip(tokens.tolist(), log_probabilities.tolist(), strict=True)):
            if writing[place]:
                answers[rows[place]].log_probabilities.append(value)
                writing[place] = token != end
            if writing[place]:
                answers[rows[place]].ids.append(token)
        if step == max_new_tokens - 1 or not any(writing):
            break
        if sum(writing) <= COMPACT * len(rows):
            kept = torch.tensor([place for place, more in enumerate(writing) if more], device=model.device)
            begin = int(hidden[kept].sum(dim=1).min())
            for layer in layers:
                layer.narrow(kept, begin)
            hidden, positions, tokens = hidden[kept, begin:], positions[kept], tokens[kept]
            rows = [row for row, more in zip(rows, writing, strict=True) if more]
            writing = [True] * len(rows)
        used = layers[0].keys.shape[2] + 1
        logits = model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=tokens.new_zeros(1, 1, 1, 1),  # a 4-d mask is passed through untouched
            **{cache_name(): cache},
            use_cache=True,
            layout=Decode(hidden[:, None, None, :used]),
        ).logits[:, -1]
        positions = positions + 1
    return answers


def greedy_plain(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: int,
    pad: int,
    allowed: Allowed | None = None,
) -> list[Generated]:
    """The same by Transformers' `generate`, for models without block attention; arguments as of `greedy`."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    everything = range(model.get_output_embeddings().weight.shape[0])

    def choice(row: int, sofar: Any) -> Any:
        found = allowed(row, sofar[longest:].tolist()) if allowed is not None else None
        return everything if found is None else found

    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
        prefix_allowed_tokens_fn=choice if allowed is not None else None,
    )
    answers = []
    for row, tokens in enumerate(output.sequences[:, longest:].tolist()):
        tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        values = [
            float(output.logits[step][row].float().log_softmax(0)[token]) for step, token in enumerate(tokens)
        ]
        answers.append(Generated([token for token in tokens if token != end], values))
    return answers


def most_likely(
    logits: Any, rows: Sequence[int], sofar: Sequence[Sequence[int]], allowed: Allowed | None
) -> tuple[Any, Any]:
    """(B,) the likeliest of the tokens that may come next, and (B,) its log-probability among all tokens."""
    logits = logits.float()
    scores = logits
    if allowed is not None:
        scores = logits.clone()
        for place, (row, ids) in enumerate(zip(rows, sofar, strict=True)):
            choice = allowed(row, ids)
            if choice is not None:
                chosen = torch.as_tensor(choice, device=logits.device)
                kept = scores[place, chosen]
                scores[place] = float("-inf")
                scores[place, chosen] = kept
    tokens = scores.argmax(dim=1)
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=1)


def _prefill(
    model: Any, prompts: Sequence[Sequence[int]], prefix: Prefix, row_tokens: int, room: int
) -> tuple[Any, list[_Slots]]:
    """(B, V) logits after each prompt, and each layer's keys and values, left-padded, with `room`."""
    p, longest = prefix.length, max(map(len, prompts))
    outputs = []
    buffers: list[tuple[Any, Any]] = []
    for part in _parts([len(prompt) - p for prompt in prompts], row_tokens):
        chosen = [prompts[i] for i in part]
        row = pack(chosen, [[[0]]] * len(chosen), prefix=p).to(model.device)  # any target: none is read
        row = row.after_prefix() if p else row
        found = model(**row_inputs(row, cache=prefix.cache()))
        outputs.append(found.logits[0])
        begin, places = p, []
        for prompt in chosen:
            own = len(prompt) - p
            padding = [0] * (longest - len(prompt))
            places.append([*padding, *range(p), *range(begin, begin + own)])
            begin += own
        index = torch.tensor(places, device=model.device)
        into = slice(part[0], part[-1] + 1)
        for i, layer in enumerate(getattr(found, cache_name()).layers):
            if i == len(buffers):
                heads, dim = layer.keys.shape[1], layer.keys.shape[3]
                shape = (len(prompts), heads, longest + room, dim)
                buffers.append((layer.keys.new_empty(shape), layer.values.new_empty(shape)))
            for buffer, states in zip(buffers[i], (layer.keys, layer.values), strict=True):
                buffer[into, :, :longest] = states[0][:, index].transpose(0, 1)
    return torch.cat(outputs), [_Slots(keys, values, longest) for keys, values in buffers]


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
