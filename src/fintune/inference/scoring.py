"""The log-likelihood of every candidate answer after every prompt, in one forward pass a batch.

Knows token ids and models, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fintune.inference.prefix import Prefix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    by_blocks: bool,
    head: torch.nn.Module | None,
    prefix: Prefix,
) -> list[list[float]]:
    """For each of B prompts log p(answer | prompt) of each of K answers: the sum over its tokens, in nats.

    Args:
        by_blocks: the model has block attention; without it each pair is a forward pass of its own.
        head: the LM head that `likelihood.frozen_head` found, or None.
        prefix: what all prompts begin with, as `PrefixStore.get` gave it.
    """
    from fintune.kernels.likelihood import span_log_likelihoods, target_nll
    from fintune.kernels.packing import pack

    cache = None
    if by_blocks:
        # One row of B prompts, after each of them its K answers as branches: B · K spans, prompt by prompt.
        row = pack(prompts, [answers] * len(prompts), prefix=prefix.length or None)
        if prefix.length:
            row, cache = row.after_prefix(), prefix.cache()
        rows = [row]
    else:
        rows = [pack([prompt], [[answer]]) for prompt in prompts for answer in answers]
    scores: list[float] = []
    for row in rows:
        row = row.to(model.device)
        nll = target_nll(model, row, by_blocks, head, cache)  # (targets,), of every answer's every token
        scores += span_log_likelihoods(nll, row.owner, row.spans).tolist()
    k = len(answers)
    return [scores[i * k : (i + 1) * k] for i in range(len(prompts))]
