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

SHORT = 256
"""Suffixes up to this many tokens are computed explicitly on a CPU: the backward pass of PyTorch's fused
CPU attention took 12 times as long there (32 suffixes of 65 tokens), and their scores need little memory."""


def register() -> str:
    """Make the attention known to Transformers; return its name for `config._attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def enable(model: Any) -> bool:
    """Switch a model to block attention; False where the model cannot (it then keeps its own)."""
    config = model.config
    if getattr(config, "_attn_implementation", None) not in ("sdpa", NAME):
        return False
    if getattr(config, "sliding_window", None) or getattr(config, "attn_logit_softcapping", None):
        return False  # the layout knows of neither
    model.set_attn_implementation(register())
    return True


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
    p = layout.prefix_length
    batch, longest = layout.gather.shape
    heads, dim = query.shape[1], query.shape[3]
    grouped = key.shape[1] != heads
    scale = scaling if scaling is not None else dim**-0.5

    def by_suffix(states: Any) -> Any:
        """(1, H, T, D) → (B, H, L, D)"""
        flat = _spread(states[0, :, p:].transpose(0, 1), layout.scatter, batch * longest)
        return flat.view(batch, longest, -1, dim).transpose(1, 2)

    own = [by_suffix(states) for states in (query, key, value)]
    shared = [states[:, :, :p] for states in (key, value)]
    if query.device.type == "cpu" and longest <= SHORT:
        suffix = _explicit(*own, *shared, layout.mask, scale)
    else:
        if p:
            own[1:] = [
                torch.cat([prefix.expand(batch, -1, -1, -1), states], dim=2)
                for prefix, states in zip(shared, own[1:], strict=True)
            ]
        suffix = sdpa(*own, attn_mask=layout.mask, scale=scale, enable_gqa=grouped)
    suffix = _Collect.apply(suffix.transpose(1, 2).reshape(-1, heads, dim), layout.scatter)
    if not p:
        return suffix[None]
    prefix = sdpa(query[:, :, :p], *shared, is_causal=True, scale=scale, enable_gqa=grouped)
    return torch.cat([prefix.transpose(1, 2), suffix[None]], dim=1)


def _explicit(query: Any, key: Any, value: Any, key0: Any, value0: Any, mask: Any, scale: float) -> Any:
    """softmax(q·kᵀ)·v in plain products; the prefix is one product for all suffixes and never copied.

    Args:
        query: (B, H, L, D); key, value: (B, Hkv, L, D); key0, value0: (1, Hkv, p, D) of the prefix.
        mask: (B, 1, L, p + L) bool.

    Returns: (B, H, L, D).
    """
    batch, heads, longest, dim = query.shape
    groups, p = key.shape[1], key0.shape[2]
    query = (query * scale).reshape(batch, groups, -1, dim)  # (B, Hkv, H/Hkv · L, D)
    rows = query.shape[2]
    scores = query @ key.transpose(2, 3)
    if p:
        every = query.transpose(0, 1).reshape(groups, batch * rows, dim)
        before = (every @ key0[0].transpose(1, 2)).view(groups, batch, rows, p).transpose(0, 1)
        scores = torch.cat([before, scores], dim=3)
    # The prefix is always seen, so with one the softmax has a finite entry in every row.
    scores = scores.view(batch, heads, longest, -1).masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=3, dtype=torch.float32).to(value.dtype).view(batch, groups, rows, -1)
    mixed = weights[..., p:] @ value
    if p:
        every = weights[..., :p].transpose(0, 1).reshape(groups, batch * rows, p)
        mixed = mixed + (every @ value0[0]).view(groups, batch, rows, dim).transpose(0, 1)
    return mixed.view(batch, heads, longest, dim)


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
    p, total = layout.prefix_length, query.shape[2]
    longest = layout.gather.shape[1]
    allowed = torch.zeros(total, total, dtype=torch.bool)
    allowed[:p, :p] = torch.ones(p, p).tril().bool()
    flat = [divmod(int(i), longest) for i in layout.scatter]
    for row, (b, i) in enumerate(flat):
        allowed[p + row, :p] = True
        for column, (c, j) in enumerate(flat):
            allowed[p + row, p + column] = b == c and bool(layout.mask[b, 0, i, p + j])
    mixed = sdpa(
        query, key, value, attn_mask=allowed, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
    )
    return mixed.transpose(1, 2)
