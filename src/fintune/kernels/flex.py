"""Attention over a row's blocks by PyTorch's FlexAttention (Dong et al., 2024), for GPUs with Triton.

One kernel a block computes only the tiles of its mask that hold anything: neither padding nor copies of the
prefix, which `attention.fused_blocks` pays for. The plain references are `attention.attention_plain`, and for
the tiles FlexAttention's own `create_block_mask`, which looks at every (query, key) pair.

Shape suffixes of names: T tokens of a block, P of its prefix, B suffixes, H query heads, G key heads, D width
of a head, M tiles of `TILE` tokens.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from fintune.kernels.packing import Block

TILE = 128
"""Queries and keys of a tile, as FlexAttention's kernels cut them by default."""

_masks: WeakKeyDictionary[Block, Any] = WeakKeyDictionary()
"""A block's mask, made once and used by every layer."""
_failures: list[Exception] = []
_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether FlexAttention's kernels can be compiled here."""
    return not _failures and _has_triton()


def give_up(error: Exception) -> None:
    """Use `attention.fused_blocks` for the rest of this process, and say why."""
    _failures.append(error)
    _log.warning("FlexAttention cannot be used here, so attention is padded instead: %s", error)


@functools.cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(torch.cuda.is_available() and has_triton())


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex.flex_attention, dynamic=True)


def attend(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, block: Block, scale: float) -> Tensor:
    """A block's attention, (T, H, D)."""
    kernel = _compiled() if query_THD.is_cuda else flex.flex_attention
    q_1HTD, k_1GTD, v_1GTD = (states.transpose(0, 1)[None] for states in (query_THD, key_TGD, value_TGD))
    grouped = key_TGD.shape[1] != query_THD.shape[1]
    mixed_1HTD = kernel(q_1HTD, k_1GTD, v_1GTD, block_mask=block_mask(block), scale=scale, enable_gqa=grouped)
    return mixed_1HTD[0].transpose(0, 1)


def block_mask(block: Block) -> Any:
    """FlexAttention's mask of a block, found without looking at (T, T) entries."""
    if block not in _masks:
        _masks[block] = _block_mask(block)
    return _masks[block]


def allowed(block: Block) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as a function of a query's and a key's place in the block, FlexAttention's `mask_mod`."""
    in_prefix_P = block.places.new_full((block.prefix_length,), -1)
    suffix_T = torch.cat([in_prefix_P, block.places // block.longest])  # -1 in the prefix
    branch_T = torch.cat([in_prefix_P, block.branch])

    # It reads tensors alone: a Python number would be compiled in, and each new one would compile again.
    def reaches(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        trunk_or_own_branch = (branch_T[key] == 0) | (branch_T[key] == branch_T[query])
        own = (suffix_T[key] == suffix_T[query]) & trunk_or_own_branch
        return (key <= query) & ((suffix_T[key] < 0) | own)

    return reaches


def _block_mask(block: Block) -> Any:
    """Which tiles hold an allowed pair, and `allowed` for the pairs inside them.

    The row is causal and its suffixes are contiguous, so a tile of queries reaches the tiles of the prefix,
    and those from where its first query's suffix begins up to itself: later queries' suffixes begin later.
    """
    p, device = block.prefix_length, block.places.device
    # Where each token's suffix begins, as a place in the block; 0 for the prefix, which begins at 0.
    _, lengths_B = torch.unique_consecutive(block.places // block.longest, return_counts=True)
    begins_B = torch.cat([lengths_B.new_full((1,), p), p + lengths_B.cumsum(0)[:-1]])
    begins_T = torch.cat([lengths_B.new_zeros(p), begins_B.repeat_interleave(lengths_B)])
    tile_M = torch.arange(-(-block.tokens // TILE), device=device)  # rounded up
    own_from_M = begins_T[tile_M * TILE] // TILE  # the tile where the suffix of the tile's first query begins
    in_prefix = (tile_M * TILE < p)[None]
    touched_MM = (in_prefix | (tile_M[None] >= own_from_M[:, None])) & (tile_M[None] <= tile_M[:, None])
    # FlexAttention wants for each tile of queries how many tiles of keys it visits, and their numbers first
    # in a row of all numbers: a stable sort of the not touched (1) behind the touched (0).
    order_MM = (~touched_MM).to(torch.int8).argsort(dim=1, stable=True)
    return flex.BlockMask.from_kv_blocks(
        touched_MM.sum(1, dtype=torch.int32)[None, None],
        order_MM.to(torch.int32)[None, None],
        BLOCK_SIZE=TILE,
        mask_mod=allowed(block),
        seq_lengths=(block.tokens, block.tokens),
    )
