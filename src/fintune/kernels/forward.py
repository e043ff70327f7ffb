"""Build the inputs for a Transformers model's forward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fintune.kernels.packing import PackedRow


@functools.cache
def cache_name() -> str:
    """Transformers' name of the cache argument: `cache` since 5.24, before that `past_key_values`."""
    import transformers

    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "cache" if release >= (5, 24) else "past_key_values"


def row_inputs(row: PackedRow, cache: Any | None = None) -> dict[str, Any]:
    """The model's arguments for a packed row, with block attention (`attention.enable`).

    Args:
        cache: Transformers' cache with the keys of the prefix that `PackedRow.after_prefix` left out.
    """
    inputs = {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "logits_to_keep": row.logit_positions,
        "use_cache": cache is not None,
        "layout": row.layout,
        # A 4-d mask is passed through unchanged, so Transformers builds no (T, T) mask.
        "attention_mask": row.input_ids.new_zeros(1, 1, 1, 1),
    }
    return inputs if cache is None else inputs | {cache_name(): cache}


@torch.no_grad()
def evaluated(model: Any, **inputs: Any) -> Any:
    """A model's output in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return model(**({"use_cache": False} | inputs))
    finally:
        model.train(was_training)


def one_token(model: Any) -> Any:
    """A model's output for one token: the cheapest way to see what it computes."""
    return evaluated(model, input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device))
