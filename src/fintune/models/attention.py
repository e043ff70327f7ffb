"""Attention over a packed row by blocks, registered with Transformers under one name.

A row's prefix attends to itself causally; every suffix attends to the prefix and to itself. Only these
blocks are computed, so work is prefix² + B · L · (prefix + L) instead of (prefix + Σ lengths)². Any model
of Transformers that dispatches through its attention interface can be used; without a layout (generation,
plain PEFT) the call is passed on to SDPA unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

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
    """Transformers' attention contract: query (1, H, T, D), key and value (1, Hkv, T, D) → (1, T, H, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return block_attention(query, key, value, layout, scaling), None


def block_attention(query: Any, key: Any, value: Any, layout: Any, scaling: float | None = None) -> Any:
    """The blocks' attention, (1, T, H, D); equal to `dense_attention` and tested against it."""
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    parts = []
    start = 0
    for block in layout:
        part = slice(start, start + block.tokens)
        parts += _one_block(query[:, :, part], key[:, :, part], value[:, :, part], block, scale)
        start += block.tokens
    return torch.cat(parts)[None]


def _one_block(query: Any, key: Any, value: Any, block: Any, scale: float) -> list[Any]:
    """[(p, H, D) of the prefix, if there is one, (tokens - p, H, D) of the suffixes]."""
    p = block.prefix_length
    batch, _, longest, _ = block.mask.shape
    attend = _cpu_attention if query.device.type == "cpu" else _fused_attention

    def by_suffix(states: Any) -> Any:
        """(1, H, tokens, D) → (B, H, L, D)"""
        flat = _spread(states[0, :, p:].transpose(0, 1), block.places, batch * longest)
        return flat.unflatten(0, (batch, longest)).transpose(1, 2)

    own_query, own_key, own_value = (by_suffix(states) for states in (query, key, value))
    key0, value0 = key[:, :, :p], value[:, :, :p]
    suffix = attend(own_query, own_key, own_value, key0, value0, block, scale)
    suffix = _Collect.apply(suffix.transpose(1, 2).flatten(0, 1), block.places)
    if not p:
        return [suffix]
    prefix = attend(query[:, :, :p], key0, value0, None, None, None, scale)
    return [prefix[0].transpose(0, 1), suffix]


def _fused_attention(
    query: Any, key: Any, value: Any, key0: Any, value0: Any, block: Any, scale: float
) -> Any:
    """The suffixes of a block or (without a block) its prefix, by PyTorch's fused attention."""
    settings = {"scale": scale, "enable_gqa": key.shape[1] != query.shape[1]}
    if block is None:
        return sdpa(query, key, value, is_causal=True, **settings)
    if block.prefix_length:
        key = torch.cat([key0.expand(key.shape[0], -1, -1, -1), key], dim=2)
        value = torch.cat([value0.expand(key.shape[0], -1, -1, -1), value], dim=2)
    return sdpa(query, key, value, attn_mask=block.mask, **settings)


def _cpu_attention(query: Any, key: Any, value: Any, key0: Any, value0: Any, block: Any, scale: float) -> Any:
    """The same by `_Attention`."""
    if block is None:
        p = key.shape[2]
        later = torch.ones(1, 1, p, p, dtype=torch.bool).triu_(1)
        return _Attention.apply(query, key, value, None, None, later, scale)
    if not block.prefix_length:
        key0 = value0 = None
    return _Attention.apply(query, key, value, key0, value0, block.hidden, scale)


class _Attention(torch.autograd.Function):
    """softmax(scale · q·kᵀ)·v in plain products on a CPU, where PyTorch's fused attention is slow backwards
    (12 times these products for 32 suffixes of 65 tokens).

    query: (B, H, L, D); key, value: (B, Hkv, L, D); key0, value0: (1, Hkv, p, D), the prefix that stands
    before each, or None; hidden: (B, 1, L, p + L) bool, True where a query may not look, which is everywhere
    after the diagonal of the last L columns. Returns (B, H, L, D). Queries are taken `CHUNK` at a time, each
    with the keys up to its chunk's end; where there are several chunks, probabilities are computed again in
    the backward pass (Dao et al., 2022).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Any, key: Any, value: Any, key0: Any, value0: Any, hidden: Any, scale: float
    ) -> Any:
        batch, heads, longest, dim = query.shape
        p = 0 if key0 is None else key0.shape[2]
        if p:
            key = torch.cat([key0.expand(batch, -1, -1, -1), key], dim=2)
            value = torch.cat([value0.expand(batch, -1, -1, -1), value], dim=2)
        groups = key.shape[1]
        out = torch.empty_like(query)
        weights = None
        for begin in range(0, longest, CHUNK):
            end = min(begin + CHUNK, longest)
            chunk = _grouped(query[:, :, begin:end] * scale, groups)
            weights = _weights(chunk, key[:, :, : p + end], hidden[:, :, begin:end, : p + end])
            mixed = weights @ value[:, :, : p + end]
            out[:, :, begin:end] = mixed.view(batch, heads, -1, dim)
        kept = weights if longest <= CHUNK else None
        ctx.save_for_backward(query, key, value, hidden, kept)
        ctx.scale, ctx.prefix = scale, p
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, hidden, kept = ctx.saved_tensors
        batch, _, longest, dim = query.shape
        groups, p = key.shape[1], ctx.prefix
        grad_query = torch.empty_like(query)
        grad_key: Any = None
        grad_value: Any = None
        for begin in range(0, longest, CHUNK):
            end = min(begin + CHUNK, longest)
            keys, values = key[:, :, : p + end], value[:, :, : p + end]
            chunk = _grouped(query[:, :, begin:end] * ctx.scale, groups)
            out = _grouped(gradients[0][:, :, begin:end], groups)
            weights = kept if kept is not None else _weights(chunk, keys, hidden[:, :, begin:end, : p + end])
            grad_weights = out @ values.transpose(2, 3)
            scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, 3, weights.dtype)
            own_value, own_key = weights.transpose(2, 3) @ out, scores.transpose(2, 3) @ chunk
            if longest <= CHUNK:
                grad_key, grad_value = own_key, own_value
            else:
                grad_key = torch.zeros_like(key) if grad_key is None else grad_key
                grad_value = torch.zeros_like(value) if grad_value is None else grad_value
                grad_key[:, :, : p + end] += own_key
                grad_value[:, :, : p + end] += own_value
            grad_query[:, :, begin:end] = (scores @ keys).mul_(ctx.scale).view(batch, -1, end - begin, dim)
        if not p:
            return grad_query, grad_key, grad_value, None, None, None, None
        return (
            grad_query,
            grad_key[:, :, p:],
            grad_value[:, :, p:],
            grad_key[:, :, :p].sum(0, keepdim=True),
            grad_value[:, :, :p].sum(0, keepdim=True),
            None,
            None,
        )


def _grouped(states: Any, groups: int) -> Any:
    """(B, H, L, D) → (B, Hkv, H/Hkv · L, D): the query heads that share a key head, one after the other."""
    return states.reshape(states.shape[0], groups, -1, states.shape[3])


def _weights(query: Any, key: Any, hidden: Any) -> Any:
    """(B, Hkv, R, p + L) probabilities of grouped, scaled queries."""
    scores = query @ key.transpose(2, 3)
    by_head = scores.view(*scores.shape[:2], -1, hidden.shape[2], scores.shape[3])
    by_head.masked_fill_(hidden[:, :, None], float("-inf"))
    return scores.softmax(dim=3)


def _spread(flat: Any, index: Any, size: int) -> Any:
    """(N, …) → (size, …): row i goes to place index[i], other places are 0. No place is named twice."""
    return flat.new_zeros(size, *flat.shape[1:]).index_copy(0, index, flat)


class _Collect(torch.autograd.Function):
    """The inverse of `_spread`. Its gradient is a copy too, where that of indexing would add."""

    @staticmethod
    def forward(ctx: Any, spread: Any, index: Any) -> Any:
        ctx.size = spread.shape[0]
        ctx.save_for_backward(index)
        return spread.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (index,) = ctx.saved_tensors
        return _spread(gradients[0], index, ctx.size), None


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
