"""Attention over a packed row by blocks, registered with Transformers under one name.

A row's prefix attends to itself causally; every suffix attends to the prefix and to itself. Only these
blocks are computed, so work is prefix² + B · L · (prefix + L) instead of (prefix + Σ lengths)². Any model
of Transformers that dispatches through its attention interface can be used; without a layout (generation,
plain PEFT) the call is passed on to SDPA unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fintune.kernels import flex

NAME = "fintune_shared_prefix"

CHUNK = 256
"""Queries computed at once on a CPU, so that scores of a long text never stand in memory as a whole."""


def register() -> str:
    """Make the attention known to Transformers; return its name for `config._attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def enable(model: Any) -> bool:
    """Switch a model to block attention; False where the model cannot (it then keeps its own)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (
        getattr(config, "_attn_implementation", None) not in ("sdpa", NAME)
        or kinds != {"full_attention"}  # windows, convolutions and state spaces reach across examples
        or getattr(model, "_is_stateful", False)
        or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        or getattr(config, "attn_logit_softcapping", None)
    ):
        return False
    model.set_attn_implementation(register())
    return config._attn_implementation == NAME


def attention_forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Transformers' attention contract: query (1, H, T, D), key and value (1, Hkv, T, D) → (1, T, H, D).

    Keys that a cache put before the row's own are the prefix of its one block (`PackedRow.after_prefix`).
    With a `Decode` layout: query (B, H, 1, D), key and value (B, Hkv, T, D) → (B, 1, H, D).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if isinstance(layout, Decode):
        return decode_attention(query, key, value, layout, scaling), None
    cached = key.shape[2] - query.shape[2]
    if cached:  # queries of the prefix are asked for nothing: attention is cheap beside the projections
        query = torch.nn.functional.pad(query, (0, 0, cached, 0))
    return block_attention(query, key, value, layout, scaling)[:, cached:], None


@dataclass
class Decode:
    """One new token for each text of a left-padded batch; hidden: (B, 1, 1, T) bool, True at padding."""

    hidden: Any


def decode_attention(query: Any, key: Any, value: Any, layout: Decode, scaling: float | None = None) -> Any:
    """Attention of one query a text, (B, 1, H, D), without copies of the keys for each query head."""
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    if query.device.type != "cpu":
        return _fused(query, key, value, scale, attn_mask=~layout.hidden).transpose(1, 2)
    grouped = _heads_first(query.transpose(1, 2), key.shape[1], scale)
    return _tokens_first(_weights(grouped, key, layout.hidden) @ value, 1)


def block_attention(query: Any, key: Any, value: Any, layout: Any, scaling: float | None = None) -> Any:
    """The blocks' attention, (1, T, H, D); equal to `dense_attention` and tested against it."""
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if q.device.type == "cpu":
        return _CpuBlocks.apply(q, k, v, layout, scale)[None]
    if flex.available():
        try:
            return flex_blocks(q, k, v, layout, scale)[None]
        except (RuntimeError, NotImplementedError) as error:  # a head size or card its kernels do not cover
            if isinstance(error, torch.OutOfMemoryError):
                raise
            flex.give_up(error)
    return fused_blocks(q, k, v, layout, scale)[None]


def flex_blocks(query: Any, key: Any, value: Any, layout: Any, scale: float) -> Any:
    """What `_CpuBlocks` computes, by FlexAttention: for GPUs with Triton."""
    return torch.cat(
        [
            flex.attend(query[begin:end], key[begin:end], value[begin:end], block, scale)
            for begin, _, end, block in _spans(layout)
        ]
    )


def fused_blocks(query: Any, key: Any, value: Any, layout: Any, scale: float) -> Any:
    """What `_CpuBlocks` computes, by PyTorch's fused attention and autograd: for other GPUs."""
    parts = []
    for begin, middle, end, block in _spans(layout):
        prefix, suffixes = slice(begin, middle), slice(middle, end)
        if block.prefix_length:
            q, k, v = (states[prefix].transpose(0, 1)[None] for states in (query, key, value))
            parts.append(_fused(q, k, v, scale, is_causal=True)[0].transpose(0, 1))
        q = _spread(query[suffixes], block).transpose(1, 2)
        k, v = (
            torch.cat(
                [
                    states[prefix].expand(q.shape[0], -1, -1, -1),
                    _spread(states[suffixes], block),
                ],
                1,
            )
            for states in (key, value)
        )
        mixed = _fused(q, k.transpose(1, 2), v.transpose(1, 2), scale, attn_mask=block.mask)
        parts.append(mixed.transpose(1, 2).flatten(0, 1).index_select(0, block.places))
    return torch.cat(parts)


def _spans(layout: Any) -> Iterator[tuple[int, int, int, Any]]:
    """(begin, end of the prefix, end, block) of each block in the row."""
    begin = 0
    for block in layout:
        yield begin, begin + block.prefix_length, begin + block.tokens, block
        begin += block.tokens


def _fused(query: Any, key: Any, value: Any, scale: float, **mask: Any) -> Any:
    """PyTorch's fused attention on (B, H, L, D)."""
    return sdpa(query, key, value, scale=scale, enable_gqa=key.shape[1] != query.shape[1], **mask)


def _spread(flat: Any, block: Any) -> Any:
    """(N, H, D) of the suffixes' tokens → (B, L, H, D), padded with 0."""
    batch, _, longest, _ = block.mask.shape
    spread = flat.new_zeros(batch * longest, *flat.shape[1:]).index_copy(0, block.places, flat)
    return spread.unflatten(0, (batch, longest))


class _CpuBlocks(torch.autograd.Function):
    """Attention of a whole row on a CPU, in plain products: PyTorch's fused attention is slow backwards there
    (12 times these products for 32 suffixes of 65 tokens), and autograd would fill, copy and add whole rows
    for every slice.

    query: (T, H, D); key, value: (T, Hkv, D); returns (T, H, D). Each block is two problems of `_attend`: the
    prefix on itself, and the suffixes, each with the prefix's keys before its own.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, layout: Any, scale: float) -> Any:
        out = torch.empty(query.shape, dtype=query.dtype)
        saved = []
        for begin, middle, end, block in _spans(layout):
            if block.prefix_length:
                own = [states[begin:middle][None] for states in (query, key, value)]
                q, k, v = _heads_first(own[0], key.shape[1], scale), *(_heads_first(x) for x in own[1:])
                mixed, weights = _attend(q, k, v, block.hidden_in_prefix)
                out[begin:middle] = _tokens_first(mixed, block.prefix_length)[0]
                saved += [q, k, v, weights]
            q = _heads_first(_spread(query[middle:end], block), key.shape[1], scale)
            k, v = (_with_prefix(states, begin, middle, end, block) for states in (key, value))
            mixed, weights = _attend(q, k, v, block.hidden)
            own = _tokens_first(mixed, block.mask.shape[2]).flatten(0, 1)
            torch.index_select(own, 0, block.places, out=out[middle:end])
            saved += [q, k, v, weights]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale, ctx.groups = layout, scale, key.shape[1]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        saved = iter(ctx.saved_tensors)
        out = gradients[0]
        grad_query = torch.empty(out.shape, dtype=out.dtype)
        shape = (out.shape[0], ctx.groups, out.shape[2])
        grad_key, grad_value = (torch.empty(shape, dtype=out.dtype) for _ in range(2))
        for begin, middle, end, block in _spans(ctx.layout):
            p, longest = block.prefix_length, block.mask.shape[2]
            if p:
                q, k, v, weights = (next(saved) for _ in range(4))
                own = _heads_first(out[begin:middle][None], ctx.groups)
                dq, dk, dv = _attend_backward(own, q, k, v, weights, block.hidden_in_prefix)
                torch.mul(_tokens_first(dq, p)[0], ctx.scale, out=grad_query[begin:middle])
                grad_key[begin:middle], grad_value[begin:middle] = (_tokens_first(x, p)[0] for x in (dk, dv))
            q, k, v, weights = (next(saved) for _ in range(4))
            own = _heads_first(_spread(out[middle:end], block), ctx.groups)
            dq, dk, dv = _attend_backward(own, q, k, v, weights, block.hidden)
            dq = _tokens_first(dq, longest).flatten(0, 1).mul_(ctx.scale)
            torch.index_select(dq, 0, block.places, out=grad_query[middle:end])
            for grad, own in ((grad_key, dk), (grad_value, dv)):
                if p:
                    grad[begin:middle] += own[:, :, :p].sum(0).transpose(0, 1)
                own = _tokens_first(own, p + longest).flatten(0, 1)
                torch.index_select(own, 0, block.places_with_prefix, out=grad[middle:end])
        return grad_query, grad_key, grad_value, None, None


def _heads_first(states: Any, groups: int | None = None, scale: float = 1.0) -> Any:
    """(B, L, H, D) → (B, groups, H/groups · L, D), scaled: the query heads of a key head together."""
    batch, _, heads, dim = states.shape
    groups = groups or heads
    by_group = states.unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)
    out = torch.empty(by_group.shape, dtype=states.dtype)
    torch.mul(by_group, scale, out=out) if scale != 1 else out.copy_(by_group)
    return out.view(batch, groups, -1, dim)


def _tokens_first(states: Any, longest: int) -> Any:
    """(B, groups, H/groups · L, D) → (B, L, H, D); the inverse of `_heads_first`."""
    batch, _, _, dim = states.shape
    return states.reshape(batch, -1, longest, dim).transpose(1, 2)


def _with_prefix(states: Any, begin: int, middle: int, end: int, block: Any) -> Any:
    """(T, Hkv, D) → (B, Hkv, p + L, D): the prefix's keys or values before each suffix's own."""
    batch, _, longest, _ = block.mask.shape
    width = block.prefix_length + longest
    wide = states.new_zeros(batch, width, *states.shape[1:])
    wide[:, : block.prefix_length] = states[begin:middle]
    wide.flatten(0, 1).index_copy_(0, block.places_with_prefix, states[middle:end])
    return _heads_first(wide)


def _attend(query: Any, key: Any, value: Any, hidden: Any) -> tuple[Any, Any]:
    """softmax(q·kᵀ)·v, and its probabilities where they are small enough to keep, else None.

    query: (B, Hkv, H/Hkv · L, D), scaled; key, value: (B, Hkv, p + L, D); hidden: (B, 1, L, p + L) bool, True
    where a query may not look, which is everywhere after the diagonal of the last L columns. Queries are
    taken `CHUNK` at a time, each with the keys up to its chunk's end.
    """
    longest, p = hidden.shape[2], hidden.shape[3] - hidden.shape[2]
    if longest <= CHUNK:
        weights = _weights(query, key, hidden)
        return weights @ value, weights
    out = torch.empty_like(query)
    for begin in range(0, longest, CHUNK):
        end = min(begin + CHUNK, longest)
        chunk = _queries(query, longest, begin, end).flatten(2, 3)
        weights = _weights(chunk, key[:, :, : p + end], hidden[:, :, begin:end, : p + end])
        part = _queries(out, longest, begin, end)
        part.copy_((weights @ value[:, :, : p + end]).view(part.shape))
    return out, None


def _attend_backward(
    gradient: Any, query: Any, key: Any, value: Any, weights: Any, hidden: Any
) -> tuple[Any, Any, Any]:
    """The gradients of the scaled query, key and value; probabilities that were not kept are computed again
    (Dao et al., 2022)."""
    longest, p = hidden.shape[2], hidden.shape[3] - hidden.shape[2]
    if weights is not None:
        return _gradients(gradient, query, key, value, weights)
    grad_query, grad_key, grad_value = (torch.zeros_like(states) for states in (query, key, value))
    for begin in range(0, longest, CHUNK):
        end = min(begin + CHUNK, longest)
        chunk, out = (_queries(states, longest, begin, end).flatten(2, 3) for states in (query, gradient))
        keys, values = key[:, :, : p + end], value[:, :, : p + end]
        weights = _weights(chunk, keys, hidden[:, :, begin:end, : p + end])
        dq, dk, dv = _gradients(out, chunk, keys, values, weights)
        part = _queries(grad_query, longest, begin, end)
        part.copy_(dq.view(part.shape))
        grad_key[:, :, : p + end] += dk
        grad_value[:, :, : p + end] += dv
    return grad_query, grad_key, grad_value


def _weights(query: Any, key: Any, hidden: Any) -> Any:
    """(B, Hkv, R, p + L) probabilities of scaled queries."""
    scores = query @ key.transpose(2, 3)
    by_head = scores.view(*scores.shape[:2], -1, hidden.shape[2], scores.shape[3])
    by_head.masked_fill_(hidden[:, :, None], float("-inf"))
    return scores.softmax(dim=3)


def _gradients(gradient: Any, query: Any, key: Any, value: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Those of query, key and value for probabilities at hand."""
    grad_weights = gradient @ value.transpose(2, 3)
    scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, 3, weights.dtype)
    return scores @ key, scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ gradient


def _queries(states: Any, longest: int, begin: int, end: int) -> Any:
    """(B, Hkv, H/Hkv · L, D) → a view of queries begin … end of every head, (B, Hkv, H/Hkv, …, D)."""
    return states.unflatten(2, (-1, longest))[:, :, :, begin:end]


def dense_attention(query: Any, key: Any, value: Any, layout: Any, scaling: float | None = None) -> Any:
    """The plain reference: one (T, T) mask. Slow; for tests."""
    total = query.shape[2]
    allowed = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for block in layout:
        p, longest = block.prefix_length, block.mask.shape[2]
        suffix = start + p
        allowed[start:suffix, start:suffix] = torch.ones(p, p).tril().bool()
        places = [divmod(int(i), longest) for i in block.places]
        for row, (b, i) in enumerate(places):
            allowed[suffix + row, start:suffix] = True
            for column, (c, j) in enumerate(places):
                allowed[suffix + row, suffix + column] = b == c and bool(block.mask[b, 0, i, p + j])
        start += block.tokens
    mixed = sdpa(
        query, key, value, attn_mask=allowed, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
    )
    return mixed.transpose(1, 2)
