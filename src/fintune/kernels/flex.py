"""Block attention over a row by PyTorch's FlexAttention (Dong et al., 2024), for GPUs with Triton.

One kernel per row computes only the non-empty tiles of its mask, without the padding and the copies of the
prefix that `attention.fused_blocks` needs. The host finds these tiles from lengths alone, once per row for
all layers. The plain references are `attention.attention_plain`, and for the tiles FlexAttention's own
`create_block_mask`, which looks at every (query, key) pair.

Shape suffixes of names: T tokens of a row, H query heads, G key heads, D width of a head, M tiles of `TILE`
tokens.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from fintune.kernels.packing import Block, moved, spans_of
from fintune.kernels.rule import Rule

TILE = 128
"""Queries and keys per tile, FlexAttention's default."""

_masks: WeakKeyDictionary[Block, list[tuple[list[ref[Block]], int | None, Any]]] = WeakKeyDictionary()
"""A row's first block → its blocks, a window, and FlexAttention's mask, built once for all layers. The
values refer to blocks weakly too: one is the key, which would otherwise never be freed."""
_failures: list[Exception] = []
_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether FlexAttention's kernels can be compiled here."""
    return not _failures and _has_triton()


def give_up(error: Exception) -> None:
    """Use `attention.fused_blocks` for the rest of this process, and log why."""
    _failures.append(error)
    _log.warning("FlexAttention cannot be used here, so attention is padded instead: %s", error)


@functools.cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(torch.cuda.is_available() and has_triton())


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex.flex_attention, dynamic=True)


def attend(
    query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, layout: Sequence[Block], rule: Rule
) -> Tensor:
    """A row's attention, (T, H, D)."""
    kernel = _compiled() if query_THD.is_cuda else flex.flex_attention
    q_1HTD, k_1GTD, v_1GTD = (states.transpose(0, 1)[None] for states in (query_THD, key_TGD, value_TGD))
    options: dict[str, Any] = {"scale": rule.scale, "enable_gqa": key_TGD.shape[1] != query_THD.shape[1]}
    if rule.cap is not None:
        options["score_mod"] = _capped(rule.cap)
    mask = block_mask(layout, rule.window)
    if rule.sinks_H is None:
        return kernel(q_1HTD, k_1GTD, v_1GTD, block_mask=mask, **options)[0].transpose(0, 1)
    mixed_1HTD, aux = kernel(
        q_1HTD, k_1GTD, v_1GTD, block_mask=mask, return_aux=flex.AuxRequest(lse=True), **options
    )
    # A sink adds one score s to the denominator: scale the result by e^lse / (e^lse + e^s).
    share_1HT = (aux.lse - rule.sinks_H.detach()[None, :, None]).sigmoid().to(mixed_1HTD.dtype)
    return (mixed_1HTD * share_1HT[..., None])[0].transpose(0, 1)


@functools.cache  # one function per cap: each new function object would be compiled again
def _capped(cap: float) -> Callable[..., Tensor]:
    return lambda score, batch, head, query, key: cap * torch.tanh(score / cap)


def block_mask(layout: Sequence[Block], window: int | None = None) -> Any:
    """FlexAttention's mask of a row, built without looking at (T, T) entries."""
    blocks = tuple(layout)
    if window is not None and window >= max(block.reach for block in blocks):
        window = None
    known = _masks.setdefault(blocks[0], [])
    for those, width, mask in known:
        if width == window and [each() for each in those] == list(blocks):  # blocks compare by identity
            return mask
    mask = _block_mask(blocks, window)
    known.append(([ref(block) for block in blocks], window, mask))
    return mask


def allowed(
    layout: Sequence[Block], window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as a function of query and key positions in the row, FlexAttention's `mask_mod`."""
    parts = list(segments(layout))
    device = layout[0].places.device
    # For each token: where its block begins, where its block's prefix ends, where its segment begins.
    table = torch.tensor([(part.block_begin, part.middle, part.begin) for part in parts], dtype=torch.int32)
    counts = torch.tensor([part.end - part.begin for part in parts])
    (bounds_3T,) = moved([table.repeat_interleave(counts, dim=0).T.contiguous()], device)
    begin_T, middle_T, own_T = bounds_3T
    branch_T, position_T = (
        torch.cat([part for pair in pairs for part in pair]).int()
        for pairs in (
            [(block.branch.new_zeros(block.prefix_length), block.branch) for block in layout],
            [(torch.arange(b.prefix_length, device=device), b.positions) for b in layout],
        )
    )
    # A tensor, because a Python number would be compiled in, and each new one would recompile.
    width = position_T.new_full((), torch.iinfo(torch.int32).max if window is None else window)

    def reaches(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own_block = (key >= begin_T[query]) & (key <= query)
        prefix_or_own = (key < middle_T[query]) | (key >= own_T[query])
        trunk_or_own_branch = (branch_T[key] == 0) | (branch_T[key] == branch_T[query])
        near = position_T[query] - position_T[key] < width
        return own_block & prefix_or_own & trunk_or_own_branch & near

    return reaches


class Segment(NamedTuple):
    """Adjacent tokens of a row that attend to each other: a prefix or a suffix, begin … end.

    Attributes:
        block_begin, middle: where the block begins and where its prefix ends.
        trunk: the number of the segment's tokens before its first branch.
    """

    begin: int
    end: int
    block_begin: int
    middle: int
    trunk: int


def segments(layout: Sequence[Block]) -> Iterator[Segment]:
    """A row's segments in order."""
    for begin, middle, _, block in spans_of(layout):
        if middle > begin:
            yield Segment(begin, middle, begin, middle, middle - begin)
        place = middle
        for length, trunk in zip(block.lengths, block.trunks, strict=True):
            yield Segment(place, place + length, begin, middle, trunk)
            place += length


def _block_mask(layout: Sequence[Block], window: int | None) -> Any:
    """Which tiles contain an allowed pair, which are fully allowed, and `allowed` for the rest.

    A segment's queries in a tile see their prefix and their own segment up to themselves: two ranges of keys,
    each a range of tiles.
    """
    total = sum(block.tokens for block in layout)
    count = -(-total // TILE)  # rounded up
    touched_MM = np.zeros((count, count), dtype=bool)
    full_MM = np.zeros((count, count), dtype=bool)
    far = total if window is None else window
    for part in segments(layout):
        shared = part.middle - part.block_begin if part.begin >= part.middle else 0  # P, if it has a prefix
        for tile in range(part.begin // TILE, -(-part.end // TILE)):
            first, last = max(part.begin, tile * TILE), min(part.end, (tile + 1) * TILE) - 1
            # The lowest position among these queries: a branch's tokens come after its trunk's.
            lowest = shared + min(first - part.begin, part.trunk)
            skipped = max(0, lowest - far + 1)  # positions that a window hides from all these queries
            if skipped < shared:
                touched_MM[tile, (part.block_begin + skipped) // TILE : (part.middle - 1) // TILE + 1] = True
            own = part.begin + max(0, skipped - shared)
            touched_MM[tile, own // TILE : last // TILE + 1] = True
            if window is None and last - first == TILE - 1 and last < part.begin + part.trunk:
                # A whole tile of one trunk: it sees everything before it, in the prefix and in the trunk.
                if shared:
                    full_MM[tile, -(-part.block_begin // TILE) : part.middle // TILE] = True
                full_MM[tile, -(-part.begin // TILE) : tile] = True
    touched_MM &= ~full_MM
    device = layout[0].places.device
    tables = moved([*_counted(touched_MM), *_counted(full_MM)], device)
    return flex.BlockMask.from_kv_blocks(
        *tables, BLOCK_SIZE=TILE, mask_mod=allowed(layout, window), seq_lengths=(total, total)
    )


def _counted(tiles_MM: Any) -> tuple[Tensor, Tensor]:
    """FlexAttention's format: for each tile of queries, the number of key tiles it visits, and the indices of
    all tiles with the visited ones first: a stable sort of the unvisited ones (1) behind them (0)."""
    order_MM = np.argsort(~tiles_MM, axis=1, kind="stable").astype(np.int32)
    counts_M = tiles_MM.sum(axis=1, dtype=np.int32)
    return torch.from_numpy(counts_M)[None, None], torch.from_numpy(order_MM)[None, None]
