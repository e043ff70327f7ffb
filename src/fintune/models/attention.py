"""Attention over a packed row by blocks, registered with Transformers under one name.

A row's prefix attends to itself causally; every suffix attends to the prefix and to itself. Only these
blocks are computed, so work is prefix² + B · L · (prefix + L) instead of (prefix + Σ lengths)². Any model
of Transformers that dispatches through its attention interface can be used; without a layout (generation,
plain PEFT) the call is passed on to SDPA unchanged.
"""

from __future__ import annotations

from typing import Any

NAME = "fintune_shared_prefix"


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
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    p = layout.prefix_length
    heads, dim = query.shape[1], query.shape[3]
    grouped = key.shape[1] != heads

    def by_suffix(states: Any) -> Any:
        """(1, H, T, D) → (B, H, L, D)"""
        flat = states[0, :, p:].transpose(0, 1)
        return flat[layout.gather].transpose(1, 2)

    def with_prefix(states: Any) -> Any:
        """(1, H, T, D) → (B, H, p + L, D)"""
        own = by_suffix(states)
        if not p:
            return own
        return torch.cat([states[:, :, :p].expand(own.shape[0], -1, -1, -1), own], dim=2)

    own = sdpa(
        by_suffix(query),
        with_prefix(key),
        with_prefix(value),
        attn_mask=layout.mask,
        scale=scaling,
        enable_gqa=grouped,
    )
    suffix = own.transpose(1, 2).reshape(-1, heads, dim)[layout.scatter]
    if not p:
        return suffix[None]
    prefix = sdpa(
        query[:, :, :p], key[:, :, :p], value[:, :, :p], is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return torch.cat([prefix.transpose(1, 2), suffix[None]], dim=1)


def dense_attention(query: Any, key: Any, value: Any, layout: Any, scaling: float | None = None) -> Any:
    """The plain reference: one (T, T) mask. Slow; for tests."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

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
