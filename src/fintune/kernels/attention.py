"""Attention over a packed row by blocks, registered with Transformers under one name.

A block's prefix attends to itself causally; every suffix attends to the prefix and to itself. Only these
scores are computed, P² + B · L · (P + L) instead of T²: on a CPU by `attention_cpu`, on a GPU by `flex` or
`fused_blocks`. Any model of Transformers that hands its keyword arguments on to the attention interface can
be used; without a layout (generation, plain PEFT) the call goes to SDPA unchanged. The plain reference is
`attention_plain` under the mask `allowed_plain`.

Shape suffixes of names:
    T  tokens of a row                         B  suffixes of a block, or texts of a batch
    H  query heads                             P  tokens of a block's prefix
    G  key heads, each read by H / G of them   L  tokens of the longest suffix
    D  width of a head                         K  keys that a suffix sees, P + L
and q, k, v queries, keys and values, w attention's probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fintune.kernels import attention_cpu, flex
from fintune.kernels.packing import Block, spans_of

NAME = "fintune_shared_prefix"


def register() -> str:
    """Make the attention known to Transformers; return its name for `config._attn_implementation`."""
    return _register(NAME, attention_forward)


def _register(name: str, forward: Callable[..., tuple[Tensor, None]]) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def enable(model: Any) -> bool:
    """Switch a model to block attention; False where the model cannot (it then keeps its own)."""
    config = model.config.get_text_config()
    own = getattr(config, "_attn_implementation", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (
        own not in ("sdpa", NAME)
        or kinds != {"full_attention"}  # windows, convolutions and state spaces reach across examples
        or getattr(model, "_is_stateful", False)
        or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        or getattr(config, "attn_logit_softcapping", None)
    ):
        return False
    if own == "sdpa" and not _layout_arrives(model):
        model.set_attn_implementation(own)
        return False
    model.set_attn_implementation(register())
    return config._attn_implementation == NAME


def _layout_arrives(model: Any) -> bool:
    """Whether every attention layer is handed the layout and has values as wide as its keys, on one token.

    StableLM's and Nemotron's layers do not hand it on, so a row's examples would see each other; multi-head
    latent attention (DeepSeek-V3) has narrower values. It leaves the model set to the probe.
    """
    if model.device.type == "meta":  # laid out only: nothing can be computed
        return True
    seen: list[bool] = []

    def probe(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("layout") is not None and key.shape[3] == value.shape[3])
        batch, heads, tokens, _ = query.shape
        return query.new_zeros(batch, tokens, heads, value.shape[3]), None

    model.set_attn_implementation(_register(f"{NAME}_probe", probe))
    try:
        one_token(model, layout=[])
    except TypeError:  # a forward that takes no further arguments
        return False
    return bool(seen) and all(seen)


@torch.no_grad()
def one_token(model: Any, **inputs: Any) -> Any:
    """What a model answers to one token in evaluation mode: the cheapest way to see what it computes."""
    was_training = model.training
    model.eval()
    try:
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        return model(input_ids=token, use_cache=False, **inputs)
    finally:
        model.train(was_training)


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention contract: query (1, H, T, D), key and value (1, G, T, D) → (1, T, H, D).

    With a `Decode` layout: query (B, H, 1, D), key and value (B, G, T, D) → (B, 1, H, D). Where there is a
    layout, dropout of attention's probabilities is left out.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )  # a window is in the mask
    if isinstance(layout, Decode):
        return decode_attention(query, key, value, layout, scaling), None
    # Keys that a cache put before the row's own are the prefix of its one block (`PackedRow.after_prefix`).
    # Its queries are zeros whose output is dropped: attention is cheap beside the projections that are saved.
    cached = key.shape[2] - query.shape[2]
    if cached:
        query = pad(query, (0, 0, cached, 0))  # (1, H, cached + T, D)
    return block_attention(query, key, value, layout, scaling, sliding_window)[:, cached:], None


@dataclass
class Decode:
    """One new token for each text of a left-padded batch; hidden: (B, 1, 1, T) bool, True at padding."""

    hidden: Tensor


def decode_attention(
    q_BH1D: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, layout: Decode, scaling: float | None = None
) -> Tensor:
    """Attention of one query a text, (B, 1, H, D), without copies of the keys for each query head."""
    scale = scaling if scaling is not None else q_BH1D.shape[3] ** -0.5
    if q_BH1D.device.type != "cpu":
        return _fused((q_BH1D, k_BGTD, v_BGTD), scale, attn_mask=~layout.hidden).transpose(1, 2)
    return attention_cpu.decode(q_BH1D, k_BGTD, v_BGTD, layout.hidden, scale)


def block_attention(
    q_1HTD: Tensor,
    k_1GTD: Tensor,
    v_1GTD: Tensor,
    layout: Sequence[Block],
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of a row by its blocks, (1, T, H, D), as fast as the device can; `window` as of `Mask`."""
    scale = scaling if scaling is not None else q_1HTD.shape[3] ** -0.5
    q_THD, k_TGD, v_TGD = (states[0].transpose(0, 1) for states in (q_1HTD, k_1GTD, v_1GTD))
    if q_THD.device.type == "cpu":
        return attention_cpu.blocks(q_THD, k_TGD, v_TGD, layout, scale, window)[None]
    if flex.available():
        try:
            return flex.attend(q_THD, k_TGD, v_TGD, layout, scale, window)[None]
        except (RuntimeError, NotImplementedError) as error:  # a head size or card its kernels do not cover
            if isinstance(error, torch.OutOfMemoryError):
                raise
            flex.give_up(error)
    return fused_blocks(q_THD, k_TGD, v_TGD, layout, scale, window)[None]


def fused_blocks(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Any, scale: float, window: int | None = None
) -> Tensor:
    """What `attention_cpu.blocks` computes, by PyTorch's fused attention and autograd: for other GPUs."""
    parts_THD = []
    for begin, middle, end, block in spans_of(layout):
        prefix, suffixes = slice(begin, middle), slice(middle, end)
        if block.prefix_length:
            own_1HPD = (states[prefix].transpose(0, 1)[None] for states in (q_THD, k_TGD, v_TGD))
            mask = block.mask(window, in_prefix=True)
            seen = {"is_causal": True} if mask.window is None else {"attn_mask": ~mask.whole}
            parts_THD.append(_fused(own_1HPD, scale, **seen)[0].transpose(0, 1))
        q_BLHD = block.padded(q_THD[suffixes])
        k_BKGD, v_BKGD = (
            torch.cat([states[prefix].expand(len(q_BLHD), -1, -1, -1), block.padded(states[suffixes])], dim=1)
            for states in (k_TGD, v_TGD)
        )
        states_BHLD = (states.transpose(1, 2) for states in (q_BLHD, k_BKGD, v_BKGD))
        mixed_BHLD = _fused(states_BHLD, scale, attn_mask=~block.mask(window).whole)
        parts_THD.append(mixed_BHLD.transpose(1, 2).flatten(0, 1).index_select(0, block.places))
    return torch.cat(parts_THD)


def _fused(states: Iterable[Tensor], scale: float, **mask: Any) -> Tensor:
    """PyTorch's fused attention of queries (B, H, L, D), keys and values (B, G, K, D) → (B, H, L, D)."""
    q_BHLD, k_BGKD, v_BGKD = states
    grouped = k_BGKD.shape[1] != q_BHLD.shape[1]
    return sdpa(q_BHLD, k_BGKD, v_BGKD, scale=scale, enable_gqa=grouped, **mask)


def attention_plain(
    q_BHTD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, allowed: Tensor, scaling: float | None = None
) -> Tensor:
    """The plain reference, softmax(scaling · q·kᵀ)·v → (B, T, H, D); `allowed` broadcasts to (B, H, T, K)."""
    scale = scaling if scaling is not None else q_BHTD.shape[3] ** -0.5
    share = q_BHTD.shape[1] // k_BGKD.shape[1]
    k_BHKD, v_BHKD = (states.repeat_interleave(share, dim=1) for states in (k_BGKD, v_BGKD))
    scores_BHTK = scale * q_BHTD @ k_BHKD.transpose(2, 3)
    w_BHTK = scores_BHTK.masked_fill(~allowed, float("-inf")).softmax(dim=3)
    return (w_BHTK @ v_BHKD).transpose(1, 2)


def allowed_plain(layout: Sequence[Block], window: int | None = None) -> Tensor:
    """(T, T) bool, what each token of a row may attend to, by the rule that `packing` states; with a window a
    token sees itself and the window − 1 before it in its sequence."""
    total = sum(block.tokens for block in layout)
    allowed_TT = torch.zeros(total, total, dtype=torch.bool)
    for begin, middle, end, block in spans_of(layout):
        suffix, token, branch = block.places // block.longest, block.places % block.longest, block.branch
        same_suffix, not_after = suffix[:, None] == suffix, token[:, None] >= token
        trunk_or_own_branch = (branch == 0) | (branch[:, None] == branch)
        prefix = torch.arange(block.prefix_length)
        allowed_TT[begin:middle, begin:middle] = prefix[:, None] >= prefix
        allowed_TT[middle:end, begin:middle] = True
        allowed_TT[middle:end, middle:end] = same_suffix & not_after & trunk_or_own_branch
        position = torch.cat([prefix, block.positions])
        near = position[:, None] - position < (window or total + 1)
        allowed_TT[begin:end, begin:end] &= near
    return allowed_TT
