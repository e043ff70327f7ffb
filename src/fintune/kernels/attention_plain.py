"""Attention with a mask over every pair of tokens: the plain reference for the attention kernels.

Shape suffixes of names as in `attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fintune.kernels.packing import Block, spans_of
from fintune.kernels.rule import Rule


def attention_plain(q_BHTD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, allowed: Tensor, rule: Rule) -> Tensor:
    """softmax(s)·v → (B, T, H, D), with s as in `Rule`; `allowed` broadcasts to (B, H, T, K) and must
    include the window, because the rule's is ignored."""
    share = q_BHTD.shape[1] // k_BGKD.shape[1]
    k_BHKD, v_BHKD = (states.repeat_interleave(share, dim=1) for states in (k_BGKD, v_BGKD))
    s_BHTK = rule.scale * q_BHTD @ k_BHKD.transpose(2, 3)
    if rule.cap is not None:
        s_BHTK = rule.cap * torch.tanh(s_BHTK / rule.cap)
    s_BHTK = s_BHTK.masked_fill(~allowed, float("-inf"))
    if rule.sinks_H is not None:
        sinks_BHT1 = rule.sinks_H.to(s_BHTK.dtype)[None, :, None, None].expand(*s_BHTK.shape[:3], 1)
        s_BHTK = torch.cat([s_BHTK, sinks_BHT1], dim=3)
    w_BHTK = s_BHTK.softmax(dim=3)[..., : k_BHKD.shape[2]]
    return (w_BHTK @ v_BHKD).transpose(1, 2)


def allowed_plain(layout: Sequence[Block], window: int | None = None) -> Tensor:
    """(T, T) bool, what each token of a row may attend to, by the rule in `packing`; with a window a token
    sees itself and the window − 1 tokens before it in its sequence."""
    total = sum(block.tokens for block in layout)
    device = layout[0].places.device
    allowed_TT = torch.zeros(total, total, dtype=torch.bool, device=device)
    for begin, middle, end, block in spans_of(layout):
        suffix, token, branch = block.places // block.longest, block.places % block.longest, block.branch
        same_suffix, not_after = suffix[:, None] == suffix, token[:, None] >= token
        trunk_or_own_branch = (branch == 0) | (branch[:, None] == branch)
        prefix = torch.arange(block.prefix_length, device=device)
        allowed_TT[begin:middle, begin:middle] = prefix[:, None] >= prefix
        allowed_TT[middle:end, begin:middle] = True
        allowed_TT[middle:end, middle:end] = same_suffix & not_after & trunk_or_own_branch
        position = torch.cat([prefix, block.positions])
        near = position[:, None] - position < (window or total + 1)
        allowed_TT[begin:end, begin:end] &= near
    return allowed_TT
