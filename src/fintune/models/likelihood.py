"""Log-likelihoods of answers: the one computation under the training loss and label scoring."""

from __future__ import annotations

from typing import Any


def span_log_likelihoods(logits: Any, targets: Any, owner: Any, spans: int) -> Any:
    """log p(completion | prompt) of each span, in nats.

    Args:
        logits: (N, vocab) at the positions that predict `targets`.
        targets: (N,) token ids.
        owner: (N,) the span each target belongs to.
        spans: the number of spans S.

    Returns: (S,) float32.
    """
    import torch

    nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return torch.zeros(spans, dtype=nll.dtype, device=nll.device).index_add(0, owner, -nll)


def span_mean_nll(logits: Any, targets: Any, owner: Any, spans: int) -> Any:
    """The mean negative log-likelihood of each span's tokens; shapes as in `span_log_likelihoods`."""
    import torch

    counts = torch.zeros(spans, device=owner.device).index_add(
        0, owner, torch.ones(owner.shape[0], device=owner.device)
    )
    return -span_log_likelihoods(logits, targets, owner, spans) / counts


def row_logits(model: Any, row: Any, by_blocks: bool = True) -> Any:
    """(N, vocab) logits at the N `logit_positions` of a `PackedRow`; the LM head runs nowhere else.

    Args:
        by_blocks: the model has block attention (`attention.enable`); without it a row must hold one
            prompt with one completion, for which plain causal attention is the same.
    """
    inputs = {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "logits_to_keep": row.logit_positions,
        "use_cache": False,
    }
    if by_blocks:
        # A 4-d mask is passed through untouched, so Transformers builds no (T, T) mask of its own.
        inputs |= {"layout": row.layout, "attention_mask": row.input_ids.new_zeros(1, 1, 1, 1)}
    return model(**inputs).logits[0]
