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
