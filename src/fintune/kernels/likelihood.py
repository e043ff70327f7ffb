"""Log-likelihoods of answers: the one computation under the training loss and label scoring.

The LM head is the largest product of a small model and its logits the largest tensor, so it runs at targets
only, `CHUNK` of them at a time, and no logits are kept for the backward pass.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

CHUNK = 256
"""Targets whose logits stand in memory at once."""


class _TargetNLL(torch.autograd.Function):
    """−log softmax(h·Wᵀ + b)[target], the head frozen.

    hidden: (N, H); weight: (V, H); bias: (V,) or None; targets: (N,) int64. Returns (N,) float32 (float64 of
    float64). The gradient of the hidden states is computed in the forward pass, where the logits are at hand:
    (softmax − onehot)·W times the scalar that the backward pass brings (as in Liger, Hsu et al., 2024).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
        hidden_dtype, hidden = hidden.dtype, hidden.to(weight.dtype)
        wide = torch.promote_types(weight.dtype, torch.float32)
        nll = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for begin in range(0, hidden.shape[0], CHUNK):
            part = slice(begin, begin + CHUNK)
            own = targets[part, None]
            log_probabilities = linear(hidden[part], weight, bias).log_softmax(dim=1, dtype=wide)
            nll[part] = -log_probabilities.gather(1, own)[:, 0]
            if gradient is not None:
                slope = log_probabilities.exp_()
                slope.scatter_add_(1, own, slope.new_full((), -1.0).expand_as(own))
                gradient[part] = slope.to(weight.dtype) @ weight
        ctx.hidden_dtype = hidden_dtype
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0][:, None]).to(ctx.hidden_dtype), None, None, None


def frozen_head(model: Any) -> Any | None:
    """The LM head, where its work can be left to `_TargetNLL`; else None, and logits are computed as usual.

    That is the case for a plain frozen linear layer whose output the model returns as its logits: a probe of
    one token finds models that scale or cap it afterwards.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad or head.weight.is_meta:
        return None
    if head.bias is not None and head.bias.requires_grad:
        return None
    token = torch.zeros(1, 1, dtype=torch.int64, device=head.weight.device)
    was_training = model.training
    model.eval()
    try:
        probe = torch.arange(-8.0, 9.0, device=head.weight.device)
        with torch.no_grad(), _replaced(head, lambda hidden: probe):
            unchanged = torch.equal(model(input_ids=token, use_cache=False).logits, probe)
    finally:
        model.train(was_training)
    return head if unchanged else None


@contextlib.contextmanager
def _replaced(head: Any, forward: Any) -> Iterator[None]:
    before = head.__dict__.get("forward")  # another wrapper's
    head.forward = forward  # on the instance, where it hides the class's
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def target_nll(
    model: Any, row: Any, by_blocks: bool = True, head: Any | None = None, cache: Any | None = None
) -> Any:
    """(N,) float32 −log p, in nats, of the N `targets` of a `PackedRow`; float64 in a float64 model.

    Args:
        by_blocks: the model has block attention (`attention.enable`); without it a row must hold one
            prompt with one completion, for which plain causal attention is the same.
        head: the model's LM head if `frozen_head` found it; None computes all logits at once.
        cache: Transformers' cache with the keys of the prefix that `PackedRow.after_prefix` left out.
    """
    inputs = row_inputs(row, by_blocks, cache)
    if head is None:
        logits = model(**inputs).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(logits, row.targets, reduction="none")
    # Inside the model's own forward, so that what wraps it (DDP, FSDP) finds the head where it expects it.
    with _replaced(head, lambda hidden: _TargetNLL.apply(hidden[0], head.weight, head.bias, row.targets)):
        return model(**inputs).logits


@functools.cache
def cache_name() -> str:
    """What Transformers calls a model's cache: `cache` since 5.24, before that `past_key_values`."""
    import transformers

    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "cache" if release >= (5, 24) else "past_key_values"


def row_inputs(row: Any, by_blocks: bool = True, cache: Any | None = None) -> dict[str, Any]:
    """What a model's forward is told of a row; arguments as of `target_nll`."""
    inputs = {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "logits_to_keep": row.logit_positions,
        "use_cache": cache is not None,
    }
    if cache is not None:
        inputs[cache_name()] = cache
    if by_blocks:
        # A 4-d mask is passed through untouched, so Transformers builds no (T, T) mask of its own.
        inputs |= {"layout": row.layout, "attention_mask": row.input_ids.new_zeros(1, 1, 1, 1)}
    return inputs


def span_log_likelihoods(nll: Any, owner: Any, spans: int) -> Any:
    """(S,) log p(completion | prompt) of each span, in nats.

    Args:
        nll: (N,) of each target token.
        owner: (N,) the span each of them belongs to.
        spans: the number of spans S.
    """
    return torch.zeros(spans, dtype=nll.dtype, device=nll.device).index_add(0, owner, -nll)


def span_mean_nll(nll: Any, owner: Any, spans: int) -> Any:
    """(S,) the mean of each span's tokens; arguments as of `span_log_likelihoods`."""
    counts = torch.zeros(spans, dtype=nll.dtype, device=nll.device).index_add(0, owner, torch.ones_like(nll))
    return -span_log_likelihoods(nll, owner, spans) / counts
