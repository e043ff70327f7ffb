"""Log-likelihoods of answers: the one computation under the training loss and label scoring.

The LM head is the largest product of a small model and its logits the largest tensor, so it runs at targets
only, `CHUNK` of them at a time, and no logits are kept for the backward pass. The plain references are
`nll_plain` for the head and `log_likelihoods_plain` for a whole packed row.

Shape suffixes of names: N targets of a row, E width of the hidden states, V tokens of the vocabulary, S spans
(completions), C targets of a chunk.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from fintune.kernels.attention import one_token
from fintune.kernels.packing import PackedRow

CHUNK = 256
"""Targets whose logits are in memory at once."""


class _HeadNLL(torch.autograd.Function):
    """`head_nll`. The gradient of the hidden states is computed in the forward pass, where the logits are at
    hand, and is all that is kept: (softmax − onehot)·W, times the scalar that the backward pass brings (as in
    Liger, Hsu et al., 2024). So memory is (N, E) and one chunk's (C, V), never (N, V).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_N: Tensor
    ) -> Tensor:
        hidden_dtype, hidden_NE = hidden_NE.dtype, hidden_NE.to(weight_VE.dtype)
        # log_softmax sums over the vocabulary: in bfloat16 its 8 bits would be lost, so in fp32 at least.
        wide = torch.promote_types(weight_VE.dtype, torch.float32)
        nll_N = torch.empty(len(hidden_NE), dtype=wide, device=hidden_NE.device)
        gradient_NE = torch.empty_like(hidden_NE) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(hidden_NE), CHUNK):
            part = slice(begin, begin + CHUNK)
            own_C1 = targets_N[part, None]
            log_p_CV = linear(hidden_NE[part], weight_VE, bias_V).log_softmax(dim=1, dtype=wide)
            nll_N[part] = -log_p_CV.gather(1, own_C1)[:, 0]
            if gradient_NE is not None:
                slope_CV = log_p_CV.exp_()  # in place: the probabilities, then softmax − onehot
                slope_CV.scatter_add_(1, own_C1, slope_CV.new_full((), -1.0).expand_as(own_C1))
                gradient_NE[part] = slope_CV.to(weight_VE.dtype) @ weight_VE
        ctx.hidden_dtype = hidden_dtype
        ctx.save_for_backward(gradient_NE)
        return nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NE,) = ctx.saved_tensors
        return (gradient_NE * grad_N[:, None]).to(ctx.hidden_dtype), None, None, None


def head_nll(hidden_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """(N,) −log softmax(h·Wᵀ + b)[target] in nats, float32 (float64 of float64); W and b frozen."""
    return _HeadNLL.apply(hidden_NE, weight_VE, bias_V, targets_N)


def nll_plain(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The plain reference of `head_nll`, given all logits; float32 (float64 of float64)."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return cross_entropy(logits_NV.to(wide), targets_N, reduction="none")


def frozen_head(model: Any) -> torch.nn.Module | None:
    """The LM head, where its work can be left to `head_nll`; else None, and logits are computed as usual.

    That is the case for a plain frozen linear layer whose output the model returns as its logits: a probe of
    one token finds models that scale or cap it afterwards.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad or head.weight.is_meta:
        return None
    if head.bias is not None and head.bias.requires_grad:
        return None
    probe = torch.arange(-8.0, 9.0, device=head.weight.device)
    with _replaced(head, lambda hidden: probe):
        unchanged = torch.equal(one_token(model).logits, probe)
    return head if unchanged else None


@contextlib.contextmanager
def _replaced(head: torch.nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The head with another forward for a while."""
    before = head.__dict__.get("forward")  # another wrapper's
    head.forward = forward  # on the instance, where it hides the class's
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def target_nll(
    model: Any,
    row: PackedRow,
    by_blocks: bool = True,
    head: torch.nn.Module | None = None,
    cache: Any | None = None,
) -> Tensor:
    """(N,) float32 −log p, in nats, of the N `targets` of a row; float64 in a float64 model.

    Args:
        by_blocks: the model has block attention (`attention.enable`); without it a row must hold one
            prompt with one completion, for which plain causal attention is the same.
        head: the model's LM head if `frozen_head` found it; None computes all logits at once.
        cache: Transformers' cache with the keys of the prefix that `PackedRow.after_prefix` left out.
    """
    inputs = row_inputs(row, by_blocks, cache)
    if head is None:
        return nll_plain(model(**inputs).logits[0], row.targets)
    # Inside the model's own forward, so that what wraps it (DDP, FSDP) finds the head where it expects it.
    # The head is given (1, N, E), thanks to `logits_to_keep`, and the model returns its (N,) as "logits".
    with _replaced(head, lambda hidden: head_nll(hidden[0], head.weight, head.bias, row.targets)):
        return model(**inputs).logits


def log_likelihoods_plain(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """The plain reference of a packed row: (S,) log p(completion | prompt) in nats, a forward pass for each;
    arguments as of `packing.pack`."""
    found = []
    for prompt, answers in zip(prompts, completions, strict=True):
        for answer in answers:
            ids = torch.tensor([[*prompt, *answer]], device=model.device)
            # Logits at place i are of token i + 1: the prompt's last place predicts the answer's first token.
            logits_NV = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            found.append(-nll_plain(logits_NV, ids[0, len(prompt) :]).sum())
    return torch.stack(found)


@functools.cache
def cache_name() -> str:
    """What Transformers calls a model's cache: `cache` since 5.24, before that `past_key_values`."""
    import transformers

    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "cache" if release >= (5, 24) else "past_key_values"


def row_inputs(row: PackedRow, by_blocks: bool = True, cache: Any | None = None) -> dict[str, Any]:
    """The arguments of a model's forward for a row; arguments as of `target_nll`."""
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


def span_log_likelihoods(nll: Tensor, owner: Tensor, spans: int) -> Tensor:
    """(S,) log p(completion | prompt) of each span, in nats: the sum over its tokens.

    Args:
        nll: (N,) of each target token.
        owner: (N,) the span each of them belongs to.
        spans: the number of spans S.
    """
    return torch.zeros(spans, dtype=nll.dtype, device=nll.device).index_add(0, owner, -nll)


def span_mean_nll(nll: Tensor, owner: Tensor, spans: int) -> Tensor:
    """(S,) the mean over each span's tokens of −log p, in nats; arguments as of `span_log_likelihoods`."""
    counts_S = span_log_likelihoods(torch.ones_like(nll), owner, spans)  # both negative
    return span_log_likelihoods(nll, owner, spans) / counts_S
