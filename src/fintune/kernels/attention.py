"""Block attention over a packed row, registered with Transformers under one name.

A block's prefix attends to itself causally; every suffix attends to the prefix and to itself. Only these
scores are computed, P² + B · L · (P + L) instead of T²: on a CPU by `attention_cpu`, on a GPU by `flex` or
`fused_blocks`. This works for any Transformers model that passes its keyword arguments on to the attention
interface (`probing` finds out); without a layout (generation, plain PEFT) the call goes to SDPA unchanged.
The plain reference is `attention_plain` with the mask `allowed_plain`.

Shape suffixes of names:
    T  tokens of a row                         B  suffixes of a block, or texts of a batch
    H  query heads                             P  tokens of a block's prefix
    G  key heads, each read by H / G of them   L  tokens of the longest suffix
    D  width of a head                         K  keys that a suffix sees, P + L
and q, k, v are queries, keys and values, w the attention probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fintune.kernels import attention_cpu, flex, probing
from fintune.kernels.attention_plain import attention_plain
from fintune.kernels.packing import Block, spans_of
from fintune.kernels.rule import Rule

NAME = "fintune_shared_prefix"


def register(forward: Callable[..., tuple[Tensor, None]] | None = None) -> str:
    """Register the attention with Transformers; return its name for `config._attn_implementation`."""
    from transformers.masking_utils import sdpa_mask

    return probing.register(NAME, forward or attention_forward, sdpa_mask)


def stay_outside_graphs() -> None:
    """Exclude attention from compiled layers (`compiled`): each pass has a new layout."""
    register(torch.compiler.disable(attention_forward))


def enable(model: Any) -> probing.Support:
    """Switch a model to block attention if that computes the same; otherwise leave it unchanged."""
    if getattr(model.config.get_text_config(), "_attn_implementation", None) == NAME:
        return probing.Support("packed")
    found = probing.support(model)
    if found:
        model.set_attn_implementation(register())
    return found


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Sequence[Block] | Decode | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention contract: query (1, H, T, D), key and value (1, G, T, D) → (1, T, H, D).

    With a `Decode` layout: query (B, H, 1, D), key and value (B, G, T, D) → (B, 1, H, D). With a layout, a
    cap or a sink, dropout of the attention probabilities is not applied.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    rule = Rule(scale, sliding_window, softcap, s_aux)
    if layout is None and rule.plain:  # a window is in the mask
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if layout is None:
        queries, keys = query.shape[2], key.shape[2]
        if attention_mask is None:  # Transformers omits a causal mask
            attention_mask = query.new_ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
        return attention_plain(query, key, value, attention_mask, rule), None
    if isinstance(layout, Decode):
        return decode_attention(query, key, value, layout, rule), None
    # Keys from a cache before the row's own are the prefix of its only block (`PackedRow.after_prefix`). Its
    # queries are zeros, and their output is dropped: attention is cheap beside the saved projections.
    cached = key.shape[2] - query.shape[2]
    if cached:
        query = pad(query, (0, 0, cached, 0))  # (1, H, cached + T, D)
    return block_attention(query, key, value, layout, rule)[:, cached:], None


@dataclass
class Decode:
    """One new token per text of a left-padded batch.

    Attributes:
        hidden: (B, 1, 1, T) bool, True at padding and after the new tokens.
        place: (1,) which of the T positions the new tokens have; None is the last.
    """

    hidden: Tensor
    place: Tensor | None = None


def decode_attention(q_BH1D: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, layout: Decode, rule: Rule) -> Tensor:
    """Attention of one query per text, (B, 1, H, D), without copying the keys for each query head."""
    hidden, place, window = layout.hidden, layout.place, rule.window
    # All texts' new tokens have one place, so a window hides the same keys in each.
    if window is not None and place is not None:
        hidden = hidden | (torch.arange(hidden.shape[3], device=hidden.device) <= place - window)
    elif window is not None:
        k_BGTD, v_BGTD = (states[:, :, -window:] for states in (k_BGTD, v_BGTD))
        hidden = hidden[..., -window:]
    if q_BH1D.device.type == "cpu":
        return attention_cpu.decode(q_BH1D, k_BGTD, v_BGTD, hidden, rule)
    return decode_fused(q_BH1D, k_BGTD, v_BGTD, hidden, rule)


def decode_fused(q_BH1D: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, hidden: Tensor, rule: Rule) -> Tensor:
    """The result of `attention_cpu.decode`, by PyTorch's fused attention, for GPUs."""
    if not rule.plain:
        return _fused((q_BH1D, k_BGTD, v_BGTD), rule, attn_mask=~hidden).transpose(1, 2)
    # The query heads that read one key head become its queries: they see the same keys.
    q_BGRD = q_BH1D.reshape(len(q_BH1D), k_BGTD.shape[1], -1, q_BH1D.shape[3])
    mixed_BGRD = _fused((q_BGRD, k_BGTD, v_BGTD), rule, attn_mask=~hidden)
    return mixed_BGRD.reshape(len(q_BH1D), 1, -1, v_BGTD.shape[3])


def block_attention(
    q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, layout: Sequence[Block], rule: Rule
) -> Tensor:
    """Attention of a row by its blocks, (1, T, H, D), with the fastest kernel for the device."""
    q_THD, k_TGD, v_TGD = (states[0].transpose(0, 1) for states in (q_1HTD, k_1GTD, v_1GTD))
    if q_THD.device.type == "cpu":
        return attention_cpu.blocks(q_THD, k_TGD, v_TGD, layout, rule)[None]
    if flex.available():
        try:
            return flex.attend(q_THD, k_TGD, v_TGD, layout, rule)[None]
        except (RuntimeError, NotImplementedError) as error:  # unsupported head size or GPU
            if isinstance(error, torch.OutOfMemoryError):
                raise
            flex.give_up(error)
    return fused_blocks(q_THD, k_TGD, v_TGD, layout, rule)[None]


def fused_blocks(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Any, rule: Rule) -> Tensor:
    """The result of `attention_cpu.blocks`, by PyTorch's fused attention and autograd, for other GPUs."""
    parts_THD = []
    for begin, middle, end, block in spans_of(layout):
        prefix, suffixes = slice(begin, middle), slice(middle, end)
        if block.prefix_length:
            own_1HPD = (states[prefix].transpose(0, 1)[None] for states in (q_THD, k_TGD, v_TGD))
            mask = block.mask(rule.window, in_prefix=True)
            causal = mask.window is None and rule.plain
            seen = {"is_causal": True} if causal else {"attn_mask": ~mask.whole}
            parts_THD.append(_fused(own_1HPD, rule, **seen)[0].transpose(0, 1))
        q_BLHD = block.padded(q_THD[suffixes])
        k_BKGD, v_BKGD = (
            torch.cat([states[prefix].expand(len(q_BLHD), -1, -1, -1), block.padded(states[suffixes])], dim=1)
            for states in (k_TGD, v_TGD)
        )
        states_BHLD = (states.transpose(1, 2) for states in (q_BLHD, k_BKGD, v_BKGD))
        mixed_BHLD = _fused(states_BHLD, rule, attn_mask=~block.mask(rule.window).whole)
        parts_THD.append(mixed_BHLD.transpose(1, 2).flatten(0, 1).index_select(0, block.places))
    return torch.cat(parts_THD)


def _fused(states: Iterable[Tensor], rule: Rule, **mask: Any) -> Tensor:
    """Attention of queries (B, H, L, D), keys and values (B, G, K, D) → (B, H, L, D), fused if PyTorch
    supports the rule."""
    q_BHLD, k_BGKD, v_BGKD = states
    if not rule.plain:
        return attention_plain(q_BHLD, k_BGKD, v_BGKD, mask["attn_mask"], rule).transpose(1, 2)
    grouped = k_BGKD.shape[1] != q_BHLD.shape[1]
    return sdpa(q_BHLD, k_BGKD, v_BGKD, scale=rule.scale, enable_gqa=grouped, **mask)
