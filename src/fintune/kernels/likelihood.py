"""Log-likelihoods of answers: the one computation behind the training loss and label scoring.

In a small model, the LM head is the largest product and its logits the largest tensor. So it runs only at
targets, `chunk` at a time, and no logits are kept for the backward pass. The plain references are
`nll_plain` for the head and `log_likelihoods_plain` for a whole packed row.

Shape suffixes of names: N targets of a row, E width of the hidden states, V tokens of the vocabulary, S spans
(completions), C targets of a chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from fintune.kernels.forward import one_token, row_inputs
from fintune.kernels.packing import PackedRow, padded

CHUNK_BYTES = 48 << 20
"""Bytes of fp32 logits in memory at once; a few tensors have this size."""

SMALL = 2.0**-14
"""Factor of a loss that passes through a capped model: for small z, cap · tanh(z / cap) is z."""


def chunk(vocabulary: int) -> int:
    """C: how many targets' logits are in memory at once, 256 for 49,152 tokens; at least 96, because each
    chunk reads all of the head's weights."""
    return max(96, CHUNK_BYTES // (4 * vocabulary))


@dataclass(frozen=True)
class Head:
    """A frozen LM head, and what the model does with its output z: cap · tanh(scale · z / cap), or scale · z
    without a cap."""

    module: torch.nn.Linear
    scale: float = 1.0
    cap: float | None = None

    def logits(self, z: Tensor) -> Tensor:
        """The model's logits for the module's output."""
        return self.scale * z if self.cap is None else self.cap * torch.tanh(self.scale * z / self.cap)

    def carried(self, nll_N: Tensor) -> Tensor:
        """What the module must return so that the model returns `nll_N`, which `arrived` recovers."""
        return nll_N if self.plain else nll_N * (SMALL / self.scale)

    def arrived(self, logits_N: Tensor) -> Tensor:
        return logits_N if self.plain else logits_N / SMALL

    @property
    def plain(self) -> bool:
        return self.scale == 1 and self.cap is None

    def nll(self, hidden_NE: Tensor, targets_N: Tensor) -> Tensor:
        """(N,) −log softmax(logits)[target] in nats, float32 (float64 of float64)."""
        return head_nll(hidden_NE, self.module.weight, self.module.bias, targets_N, self.scale, self.cap)


class _HeadNLL(torch.autograd.Function):
    """`head_nll`. The forward pass, which has the logits, also computes the gradient of the hidden states and
    keeps only that: (softmax − onehot)·W, times the backward pass's scalar (as in Liger, Hsu et al., 2024).
    So memory is (N, E) and one chunk's (C, V), never (N, V).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        hidden_dtype, hidden_NE = hidden_NE.dtype, hidden_NE.to(weight_VE.dtype)
        # (scale · h)·Wᵀ is scale · (h·Wᵀ), with a pass over (N, E) instead of (N, V). tanh needs z / cap.
        scale = scale if cap is None else scale / cap
        if scale != 1:
            hidden_NE = scale * hidden_NE
            bias_V = None if bias_V is None else scale * bias_V
        # log_softmax sums over the vocabulary: bfloat16's 8 bits would lose the sum, so at least fp32.
        wide = torch.promote_types(weight_VE.dtype, torch.float32)
        nll_N = torch.empty(len(hidden_NE), dtype=wide, device=hidden_NE.device)
        gradient_NE = torch.empty_like(hidden_NE) if ctx.needs_input_grad[0] else None
        parts = -(-len(hidden_NE) // chunk(len(weight_VE)))  # rounded up
        step = max(1, -(-len(hidden_NE) // max(1, parts)))  # chunks of similar size
        for begin in range(0, len(hidden_NE), step):
            part = slice(begin, begin + step)
            own_C1 = targets_N[part, None]
            logits_CV = linear(hidden_NE[part], weight_VE, bias_V)
            if cap is not None:
                tanh_CV = logits_CV.to(wide).tanh_()
                logits_CV = cap * tanh_CV
            log_p_CV = logits_CV.log_softmax(dim=1, dtype=wide)
            nll_N[part] = -log_p_CV.gather(1, own_C1)[:, 0]
            if gradient_NE is not None:
                slope_CV = log_p_CV.exp_()  # in place: the probabilities, then softmax − onehot
                slope_CV.scatter_add_(1, own_C1, slope_CV.new_full((), -1.0).expand_as(own_C1))
                if cap is not None:
                    slope_CV *= tanh_CV.square_().neg_().add_(1).mul_(cap)
                gradient_NE[part] = slope_CV.to(weight_VE.dtype) @ weight_VE
        if gradient_NE is not None and scale != 1:
            gradient_NE *= scale
        ctx.hidden_dtype = hidden_dtype
        ctx.save_for_backward(gradient_NE)
        return nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NE,) = ctx.saved_tensors
        return (gradient_NE * grad_N[:, None]).to(ctx.hidden_dtype), *[None] * 5


def head_nll(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """(N,) −log softmax(logits)[target] in nats, float32 (float64 of float64); W and b frozen.

    The logits are scale · (h·Wᵀ + b), or with a cap those of `Head`.
    """
    return _HeadNLL.apply(hidden_NE, weight_VE, bias_V, targets_N, scale, cap)


def nll_plain(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The plain reference of `head_nll`, given all logits; float32 (float64 for float64)."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return cross_entropy(logits_NV.to(wide), targets_N, reduction="none")


def frozen_head(model: Any) -> Head | None:
    """The LM head if `head_nll` can do its work; else None, and logits are computed as usual.

    It can for a plain frozen linear layer whose output the model at most scales or caps, which is tested with
    one token.
    """
    module = model.get_output_embeddings()
    if type(module) is not torch.nn.Linear or module.weight.requires_grad or module.weight.is_meta:
        return None
    if module.bias is not None and module.bias.requires_grad:
        return None
    some, huge = torch.arange(-8.0, 9.0), torch.tensor([-1e9, -1e8, 1e8, 1e9])
    probe = torch.cat([some, huge]).to(module.weight.device)
    with _replaced(module, lambda hidden: probe):
        found = one_token(model).logits.float()
    if found.shape != probe.shape:
        return None
    bounded = bool(found[-1] == found[-2] == -found[-3] == -found[-4])
    cap = float(found[-1]) if bounded else None
    one = found[9].double()  # the model's result for the head output 1
    scale = float(one if cap is None else cap * torch.atanh(one / cap))
    head = Head(module, 1.0 if torch.equal(found, probe) else scale, cap)
    return head if torch.allclose(found, head.logits(probe), rtol=1e-5, atol=1e-5) else None


@contextlib.contextmanager
def _replaced(head: torch.nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Temporarily replace the head's forward."""
    before = head.__dict__.get("forward")  # from another wrapper
    head.forward = forward  # on the instance, where it hides the class's method
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
    head: Head | None = None,
    cache: Any | None = None,
) -> Tensor:
    """(N,) float32 −log p, in nats, of the N `targets` of a row; float64 for a float64 model.

    Args:
        by_blocks: the model has block attention (`attention.enable`); without it the row's completions are
            run as a padded batch, each after its prompt.
        head: the model's LM head if `frozen_head` found it; None computes the logits as the model does.
        cache: Transformers' cache with the keys of the prefix that `PackedRow.after_prefix` left out.
    """
    if not by_blocks:
        return _padded_nll(model, row, head)
    inputs = row_inputs(row, cache)
    if head is None:
        return nll_plain(model(**inputs).logits[0], row.targets)
    # Inside the model's own forward, so that wrappers (DDP, FSDP) find the head where they expect it. The
    # head gets (1, N, E), thanks to `logits_to_keep`, and the model returns its (N,) as "logits".
    with _replaced(head.module, lambda hidden: head.carried(head.nll(hidden[0], row.targets))):
        return head.arrived(model(**inputs).logits)


def _padded_nll(model: Any, row: PackedRow, head: Head | None) -> Tensor:
    """`target_nll` for a padded batch; logits are computed only at the targets."""
    ids_SL, places_N = padded(row)
    inputs = {"input_ids": ids_SL, "use_cache": False}
    module = model.get_output_embeddings()
    if module is None:
        return nll_plain(model(**inputs).logits.flatten(0, 1)[places_N], row.targets)
    own = module.forward

    def at_targets(hidden_SLE: Tensor) -> Tensor:
        hidden_NE = hidden_SLE.flatten(0, 1)[places_N]
        return own(hidden_NE[None]) if head is None else head.carried(head.nll(hidden_NE, row.targets))

    with _replaced(module, at_targets):
        found = model(**inputs).logits
    return nll_plain(found[0], row.targets) if head is None else head.arrived(found)


def log_likelihoods_plain(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """The plain reference of a packed row: (S,) log p(completion | prompt) in nats, one forward pass per
    completion; arguments as in `packing.pack`."""
    found = []
    for prompt, answers in zip(prompts, completions, strict=True):
        for answer in answers:
            ids = torch.tensor([[*prompt, *answer]], device=model.device)
            # Logits at i predict token i + 1: the prompt's last position predicts the answer's first token.
            logits_NV = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            found.append(-nll_plain(logits_NV, ids[0, len(prompt) :]).sum())
    return torch.stack(found)


def span_log_likelihoods(nll: Tensor, owner: Tensor, spans: int) -> Tensor:
    """(S,) log p(completion | prompt) of each span, in nats: the sum over its tokens.

    Args:
        nll: (N,) of each target token.
        owner: (N,) each target's span.
        spans: the number of spans S.
    """
    return torch.zeros(spans, dtype=nll.dtype, device=nll.device).index_add(0, owner, -nll)


def span_mean_nll(nll: Tensor, owner: Tensor, spans: int) -> Tensor:
    """(S,) each span's mean over its tokens of −log p, in nats; arguments as in `span_log_likelihoods`."""
    counts_S = span_log_likelihoods(torch.ones_like(nll), owner, spans)  # both negative
    return span_log_likelihoods(nll, owner, spans) / counts_S
