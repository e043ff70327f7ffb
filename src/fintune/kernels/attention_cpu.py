"""Block attention over a row on a CPU, with plain matrix products and a custom backward pass.

PyTorch's fused attention has a slow backward pass on a CPU (12 times these products for 32 suffixes of 65
tokens), and autograd would fill, copy and add whole rows for every slice. The plain reference is
`attention.attention_plain`.

Shape suffixes of names as in `attention`, and R: queries of one key head, H / G · L; values may be narrower
than keys. q, k, v are queries, keys and values, w attention probabilities; g is the gradient of the output,
dq, dk and dv those of q, k and v.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fintune.kernels.packing import Block, Mask, spans_of
from fintune.kernels.rule import Rule

CHUNK = 256
"""Queries per head computed at once on a CPU: the scores of longer suffixes are never all in memory, but are
recomputed for the backward pass."""


class _CpuBlocks(torch.autograd.Function):
    """`blocks`. Each block is two problems for `_attend`: the prefix on itself, and the suffixes, each with
    the prefix's keys before its own.

    Saved for the backward pass of each problem: queries (scaled), keys and values as given to `_attend`, and
    the probabilities if `_attend` kept them.
    """

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Any, rule: Rule) -> Tensor:
        groups, scale, window = k_TGD.shape[1], rule.scale, rule.window
        out_THD = torch.empty(*q_THD.shape[:2], v_TGD.shape[2], dtype=q_THD.dtype)
        saved: list[Tensor | None] = []
        for begin, middle, end, block in spans_of(layout):
            if block.prefix_length:
                # One "suffix" of P tokens with no prefix of its own.
                q_1GRD = _heads_first(q_THD[None, begin:middle], groups, scale)
                k_1GPD, v_1GPD = (_heads_first(states[None, begin:middle]) for states in (k_TGD, v_TGD))
                mixed, weights = _attend(q_1GRD, k_1GPD, v_1GPD, block.mask(window, in_prefix=True), rule)
                out_THD[begin:middle] = _tokens_first(mixed, block.prefix_length)[0]
                saved += [q_1GRD, k_1GPD, v_1GPD, weights]
            q_BGRD = _heads_first(block.padded(q_THD[middle:end]), groups, scale)
            k_BGKD, v_BGKD = (_with_prefix(states[begin:end], block) for states in (k_TGD, v_TGD))
            mixed, weights = _attend(q_BGRD, k_BGKD, v_BGKD, block.mask(window), rule)
            mixed_of_places = _tokens_first(mixed, block.longest).flatten(0, 1)  # (B · L, H, D)
            torch.index_select(mixed_of_places, 0, block.places, out=out_THD[middle:end])
            saved += [q_BGRD, k_BGKD, v_BGKD, weights]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.rule, ctx.shapes = layout, rule, (q_THD.shape, k_TGD.shape, v_TGD.shape)
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_THD: Tensor) -> tuple[Tensor | None, ...]:
        saved, rule = iter(ctx.saved_tensors), ctx.rule
        groups = ctx.shapes[1][1]
        # Every element is written below, so nothing is filled with 0 first.
        dq_THD, dk_TGD, dv_TGD = (torch.empty(shape, dtype=g_THD.dtype) for shape in ctx.shapes)
        for begin, middle, end, block in spans_of(ctx.layout):
            p, longest = block.prefix_length, block.longest
            if p:
                q, k, v, weights = (next(saved) for _ in range(4))
                g_1GRD = _heads_first(g_THD[None, begin:middle], groups)
                mask = block.mask(rule.window, in_prefix=True)
                dq, dk, dv = _attend_backward(g_1GRD, q, k, v, weights, mask, rule)
                # q was scaled before the product, so its gradient is scaled after it.
                torch.mul(_tokens_first(dq, p)[0], rule.scale, out=dq_THD[begin:middle])
                dk_TGD[begin:middle], dv_TGD[begin:middle] = (_tokens_first(x, p)[0] for x in (dk, dv))
            q, k, v, weights = (next(saved) for _ in range(4))
            # Padding's gradient is 0, so that it does not contribute to the keys' and values' gradients.
            g_BGRD = _heads_first(block.padded(g_THD[middle:end]), groups)
            dq, dk, dv = _attend_backward(g_BGRD, q, k, v, weights, block.mask(rule.window), rule)
            dq = _tokens_first(dq, longest).flatten(0, 1).mul_(rule.scale)
            torch.index_select(dq, 0, block.places, out=dq_THD[middle:end])
            for grad_TGD, own_BGKD in ((dk_TGD, dk), (dv_TGD, dv)):
                if p:  # every suffix reads the prefix, so the sum of their gradients is added to its own
                    grad_TGD[begin:middle] += own_BGKD[:, :, :p].sum(0).transpose(0, 1)
                of_places = _tokens_first(own_BGKD, p + longest).flatten(0, 1)  # (B · K, G, D)
                torch.index_select(of_places, 0, block.places_with_prefix, out=grad_TGD[middle:end])
        return dq_THD, dk_TGD, dv_TGD, None, None


def blocks(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Sequence[Block], rule: Rule) -> Tensor:
    """Attention of a whole row by its blocks, (T, H, D)."""
    return _CpuBlocks.apply(q_THD, k_TGD, v_TGD, layout, rule)


def decode(q_BH1D: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, hidden_B11T: Tensor, rule: Rule) -> Tensor:
    """Attention of one query per text, (B, 1, H, D), to all keys that are not hidden; no gradients."""
    q_BGRD = _heads_first(q_BH1D.transpose(1, 2), k_BGTD.shape[1], rule.scale)
    return _tokens_first(_probabilities(q_BGRD, k_BGTD, hidden_B11T, rule) @ v_BGTD, 1)


def _heads_first(states_BLHD: Tensor, groups: int | None = None, scale: float = 1.0) -> Tensor:
    """(B, L, H, D) → (B, G, R, D), scaled; G is H if `groups` is None.

    Row h · L + i of a key head is query i of its h-th query head: all queries that read the same keys are in
    one product, and keys are never repeated for each query head.
    """
    batch, _, heads, dim = states_BLHD.shape
    groups = groups or heads
    by_group = states_BLHD.unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)
    out = torch.empty(by_group.shape, dtype=states_BLHD.dtype)  # products would copy to this order anyway
    torch.mul(by_group, scale, out=out) if scale != 1 else out.copy_(by_group)
    return out.view(batch, groups, -1, dim)


def _tokens_first(states_BGRD: Tensor, longest: int) -> Tensor:
    """(B, G, R, D) → (B, L, H, D), the inverse of `_heads_first`: rows count heads, then tokens."""
    batch, _, _, dim = states_BGRD.shape
    return states_BGRD.reshape(batch, -1, longest, dim).transpose(1, 2)


def _with_prefix(states_TGD: Tensor, block: Block) -> Tensor:
    """A block's keys or values → (B, G, K, D): the prefix's before each suffix's own, 0 at padding."""
    p = block.prefix_length
    wide_BKGD = states_TGD.new_zeros(len(block.lengths), p + block.longest, *states_TGD.shape[1:])
    wide_BKGD[:, :p] = states_TGD[:p]
    wide_BKGD.flatten(0, 1).index_copy_(0, block.places_with_prefix, states_TGD[p:])
    return _heads_first(wide_BKGD)


def _attend(q_BGRD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, mask: Mask, rule: Rule) -> tuple[Tensor, Any]:
    """softmax(q·kᵀ)·v, (B, G, R, D), and its probabilities if they are small enough to keep, else None.

    query: scaled. Queries are processed in chunks of `CHUNK`, each with the keys up to the chunk's end,
    because query i sees no key after P + i.
    """
    longest, p = mask.queries, mask.before
    if longest <= CHUNK:
        w_BGRK = _probabilities(q_BGRD, k_BGKD, mask.whole, rule)
        return w_BGRK @ v_BGKD, w_BGRK
    out_BGRD = q_BGRD.new_empty(*q_BGRD.shape[:3], v_BGKD.shape[3])
    for begin in range(0, longest, CHUNK):
        end = min(begin + CHUNK, longest)
        chunk = _queries(q_BGRD, longest, begin, end).flatten(2, 3)
        weights = _probabilities(chunk, k_BGKD[:, :, : p + end], mask.hidden(begin, end), rule)
        part = _queries(out_BGRD, longest, begin, end)
        part.copy_((weights @ v_BGKD[:, :, : p + end]).view(part.shape))
    return out_BGRD, None


def _attend_backward(
    g_BGRD: Tensor, q_BGRD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, w_BGRK: Any, mask: Mask, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the scaled query, of key and value; probabilities that were not kept are recomputed
    chunk by chunk as in `_attend` (Dao et al., 2022)."""
    longest, p = mask.queries, mask.before
    if w_BGRK is not None:
        return _gradients(g_BGRD, q_BGRD, k_BGKD, v_BGKD, w_BGRK, rule)
    grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (q_BGRD, k_BGKD, v_BGKD))
    for begin in range(0, longest, CHUNK):
        end = min(begin + CHUNK, longest)
        chunk, grad = (_queries(x, longest, begin, end).flatten(2, 3) for x in (q_BGRD, g_BGRD))
        keys, values = k_BGKD[:, :, : p + end], v_BGKD[:, :, : p + end]
        weights = _probabilities(chunk, keys, mask.hidden(begin, end), rule)
        dq, dk, dv = _gradients(grad, chunk, keys, values, weights, rule)
        part = _queries(grad_query, longest, begin, end)
        part.copy_(dq.view(part.shape))
        grad_key[:, :, : p + end] += dk  # later chunks read these keys too
        grad_value[:, :, : p + end] += dv
    return grad_query, grad_key, grad_value


def _probabilities(q_BGRD: Tensor, k_BGKD: Tensor, hidden_B1LK: Tensor, rule: Rule) -> Tensor:
    """(B, G, R, K), the softmax of scaled queries over the keys that are not hidden.

    In the states' own dtype: a CPU's softmax computes in fp32 internally and rounds its result.
    """
    scores_BGRK = q_BGRD @ k_BGKD.transpose(2, 3)
    if rule.cap is not None:
        scores_BGRK.div_(rule.cap).tanh_().mul_(rule.cap)
    # R is heads × tokens: as (B, G, H / G, L, K), all heads share a token's mask.
    scores_BGhLK = scores_BGRK.view(*scores_BGRK.shape[:2], -1, hidden_B1LK.shape[2], scores_BGRK.shape[3])
    scores_BGhLK.masked_fill_(hidden_B1LK[:, :, None], float("-inf"))  # a view: scores_BGRK changes with it
    if rule.sinks_H is None:
        return scores_BGRK.softmax(dim=3)
    sinks_1Gh11 = rule.sinks_H.detach().to(scores_BGRK.dtype).view(1, scores_BGRK.shape[1], -1, 1, 1)
    with_sinks = torch.cat([scores_BGhLK, sinks_1Gh11.expand(*scores_BGhLK.shape[:4], 1)], dim=4)
    return with_sinks.softmax(dim=4)[..., :-1].reshape(scores_BGRK.shape)


def _gradients(
    g_BGRD: Tensor, q_BGRD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, w_BGRK: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, given the probabilities.

    The softmax's gradient is w · (g − Σ w · g) for g = grad·vᵀ, and 0 for hidden keys, since their w is 0;
    PyTorch has one operation for it. A sink's g is 0, so it needs no term. A cap's factor is 1 − tanh².
    """
    g_of_w_BGRK = g_BGRD @ v_BGKD.transpose(2, 3)
    s_BGRK = torch.ops.aten._softmax_backward_data(g_of_w_BGRK, w_BGRK, 3, w_BGRK.dtype)
    if rule.cap is not None:
        s_BGRK *= 1 - (q_BGRD @ k_BGKD.transpose(2, 3)).div_(rule.cap).tanh_().square_()
    return s_BGRK @ k_BGKD, s_BGRK.transpose(2, 3) @ q_BGRD, w_BGRK.transpose(2, 3) @ g_BGRD


def _queries(states_BGRD: Tensor, longest: int, begin: int, end: int) -> Tensor:
    """A view of queries begin … end of every head, (B, G, H / G, end − begin, D)."""
    return states_BGRD.unflatten(2, (-1, longest))[:, :, :, begin:end]
