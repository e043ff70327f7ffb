"""Attention over a row's blocks by PyTorch's FlexAttention (Dong et al., 2024), for GPUs with Triton.

One kernel a block computes only the tiles of its mask that hold anything: neither padding nor copies of the
prefix, which `attention.fused_blocks` pays for.
"""

from __future__ import annotations

import functools
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.attention import flex_attention as flex

TILE = 128
"""Queries and keys of a tile, as FlexAttention's kernels cut them by default."""

_masks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
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


def attend(query: Any, key: Any, value: Any, block: Any, scale: float) -> Any:
    """A block's attention; query (T, H, D), key and value (T, Hkv, D) → (T, H, D)."""
    kernel = _compiled() if query.is_cuda else flex.flex_attention
    q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
    mixed = kernel(
        q, k, v, block_mask=block_mask(block), scale=scale, enable_gqa=key.shape[1] != query.shape[1]
    )
    return mixed[0].transpose(0, 1)


def block_mask(block: Any) -> Any:
    """FlexAttention's mask of a `Block`, found without looking at (T, T) entries."""
    if block not in _masks:
        _masks[block] = _block_mask(block)
    return _masks[block]


def allowed(block: Any) -> Any:
    """The mask as a function of a query's and a key's place in the block."""
    in_prefix = block.places.new_full((block.prefix_length,), -1)
    example = torch.cat([in_prefix, block.places // block.mask.shape[2]])
    branch = torch.cat([in_prefix, block.branch])

    def reaches(batch: Any, head: Any, query: Any, key: Any) -> Any:  # a number in it would be compiled in
        same_branch = (branch[key] == 0) | (branch[key] == branch[query])
        own = (example[key] == example[query]) & same_branch
        return (key <= query) & ((example[key] < 0) | own)

    return reaches


def _block_mask(block: Any) -> Any:
    p, longest, device = block.prefix_length, block.mask.shape[2], block.places.device
    # Where each token's example begins; the prefix begins at 0, and so does what it attends to.
    _, lengths = torch.unique_consecutive(block.places // longest, return_counts=True)
    begins = torch.cat([lengths.new_full((1,), p), p + lengths.cumsum(0)[:-1]]).repeat_interleave(lengths)
    begins = torch.cat([begins.new_zeros(p), begins])
    tile = torch.arange(-(-block.tokens // TILE), device=device)
    own_from = (begins[tile * TILE] // TILE)[:, None]
    touched = ((tile * TILE < p)[None] | (tile[None] >= own_from)) & (tile[None] <= tile[:, None])
    order = (~touched).to(torch.int8).argsort(dim=1, stable=True)
    return flex.BlockMask.from_kv_blocks(
        touched.sum(1, dtype=torch.int32)[None, None],
        order.to(torch.int32)[None, None],
        BLOCK_SIZE=TILE,
        mask_mod=allowed(block),
        seq_lengths=(block.tokens, block.tokens),
    )
