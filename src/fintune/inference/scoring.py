"""Computes the log-likelihood of every candidate answer after every prompt, in few forward passes.

Knows token ids and models, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fintune.inference.prefix import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fintune.kernels.likelihood import Head
    from fintune.kernels.packing import PackedRow


def log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    head: Head | None,
    prefix: Prefix,
) -> list[list[float]]:
    """For each of B prompts, log p(answer | prompt) of each of K answers: the sum over its tokens, in nats.

    Args:
        model: with block attention (`attention.enable`).
        head: the LM head from `likelihood.frozen_head`, or None.
        prefix: the common beginning of all prompts, from `PrefixStore.get`.
    """
    from fintune.kernels.packing import pack

    cache = None
    # One row of B prompts, each followed by its K answers as branches: B · K spans, prompt by prompt.
    row = pack(prompts, [answers] * len(prompts), prefix=prefix.length or None)
    if prefix.length:
        row, cache = row.after_prefix(), prefix.cache()
    return _by_prompt(_scores(model, row, head, True, cache), len(answers))


def log_likelihoods_unpacked(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    head: Head | None,
    row_tokens: int,
) -> list[list[float]]:
    """The same for a model without block attention, in padded batches.

    Args:
        row_tokens: about the most tokens per batch; 0 gives each pair its own pass.
    """
    from fintune.kernels.packing import pack, parts

    pairs = [(prompt, answer) for prompt in prompts for answer in answers]
    scores: list[float] = []
    for part in parts([len(prompt) + len(answer) for prompt, answer in pairs], row_tokens):
        chosen = [pairs[i] for i in part]
        row = pack([prompt for prompt, _ in chosen], [[answer] for _, answer in chosen], share=False)
        scores += _scores(model, row, head, False)
    return _by_prompt(scores, len(answers))


def _scores(
    model: PreTrainedModel, row: PackedRow, head: Head | None, by_blocks: bool, cache: Any = None
) -> list[float]:
    from fintune.kernels.likelihood import span_log_likelihoods, target_nll

    row = row.to(model.device)
    nll = target_nll(model, row, by_blocks, head, cache)  # (targets,): each token of each answer
    scores: list[float] = span_log_likelihoods(nll, row.owner, row.spans).tolist()
    return scores


def _by_prompt(scores: list[float], k: int) -> list[list[float]]:
    return [scores[i : i + k] for i in range(0, len(scores), k)]
