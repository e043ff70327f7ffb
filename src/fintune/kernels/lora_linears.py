"""LoRA linear layers in few passes over memory: y = x·Wᵀ + bias + s · (x·Aᵀ)·Bᵀ as one autograd function.

PEFT's layer runs four products, a scaling, a sum and their gradients as separate operations, each a pass over
a (tokens × features) tensor; on a CPU those passes cost as much as the products. Here the update is
accumulated into the base product, and its gradient into the base's. Layers with the same input (queries, keys
and values; gate and up) form one function, with one product for all their A and one gradient of the input. A
quantized weight is dequantized once per pass and not kept. With DoRA (Liu et al., 2024) everything before the
bias is multiplied by c = m / ‖W + s·BA‖. The plain reference is `lora_plain`.

Shape suffixes of names: N tokens, I features of the input, O of a layer's output, R rank of its adapter, Q
the sum of all layers' ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from fintune.kernels.frozen import Quantized, Weight, dense, product

ROWS = 1024
"""Rows of W whose norms are computed at once."""

Cast = tuple[Tensor, Sequence[Tensor]]
"""All A, (Q, I), and each B, in the dtype of the products."""


class _Kept(torch.autograd.Function):
    """A node that saves what `_LoraLinears` needs for its backward pass, created before its products.

    Checkpointing stops recomputing a layer once all saved tensors are there. So the layer's last product,
    which nobody needs, is skipped.
    """

    @staticmethod
    def forward(ctx: Any, trained: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        return trained.new_empty(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise AssertionError("nothing reads what this node returns")


class _LoraLinears(torch.autograd.Function):
    """`lora_linears`; `tensors` are, n of each: dense weights, biases, norms, x·Aᵀ, cast B, A, B, magnitudes.

    Saved for the backward pass: the adapters' input, A and B in the input's dtype, x·Aᵀ, and the dense base
    weights (not copied); with DoRA z, the outputs before their factor. The gradients of frozen weights and
    biases are never computed. With G the gradient of y, and c = 1 without DoRA:

        U = s · (c·G)·B,  grad A = Uᵀ·x,  grad B = s · (c·G)ᵀ·(x·Aᵀ),  grad x = (c·G)·W + U·A,  grad c = Σ G·z
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        scalings: tuple[float, ...],
        quantized: Sequence[Quantized | None],
        kept: Any,
        a_QI: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        parts = _split(tensors, len(scalings))
        weights_OI, biases_O, norms_O, down_NR, b_OR, a_RI, wide_b_OR, magnitudes_O = parts
        b_OR = [wide if b is None else b for b, wide in zip(b_OR, wide_b_OR, strict=True)]
        weights = [own or weight for own, weight in zip(quantized, weights_OI, strict=True)]
        outs, factors_O, z_NO = _outputs(
            x, dropped, scalings, weights, biases_O, down_NR, b_OR, magnitudes_O, norms_O, exact=True
        )
        source_NI = _flat(x if dropped is None else dropped)
        ctx.kept = kept
        if kept is None:
            ctx.save_for_backward(source_NI, a_QI, *weights_OI, *down_NR, *b_OR, *factors_O, *norms_O, *z_NO)
        ctx.scalings, ctx.quantized, ctx.separate = scalings, quantized, dropped is not None
        ctx.ranks, ctx.dtype = [len(each) for each in a_RI], a_RI[0].dtype
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.scalings)
        kept = ctx if ctx.kept is None else ctx.kept
        source_NI, a_QI, *rest = kept.saved_tensors
        weights_OI, down_NR, b_OR, factors_O, norms_O, z_NO = _split(rest, n)
        shape = (*gradients[0].shape[:-1], source_NI.shape[1])
        g_NO = [_flat(each) for each in gradients]
        cg_NO = [g if c is None else _times(g, c) for g, c in zip(g_NO, factors_O, strict=True)]
        up_NQ = torch.cat([(cg_NO[i] @ b_OR[i]).mul_(ctx.scalings[i]) for i in range(n)], dim=1)
        grad_a_RI = (up_NQ.T @ source_NI).to(ctx.dtype).split(ctx.ranks)
        grad_b_OR = [(cg_NO[i].T @ down_NR[i]).mul_(ctx.scalings[i]).to(ctx.dtype) for i in range(n)]
        grad_m_O = [
            z if z is None else (g * z).sum(0, dtype=norm.dtype) / norm
            for g, z, norm in zip(g_NO, z_NO, norms_O, strict=True)
        ]
        need_x, need_dropped = ctx.needs_input_grad[0], ctx.separate and ctx.needs_input_grad[1]
        grad_x_NI = grad_dropped_NI = None
        for i in range(n if need_x or need_dropped else 0):
            by_factor = need_dropped and factors_O[i] is not None
            weight_OI = dense(ctx.quantized[i] or weights_OI[i], source_NI.dtype)
            if need_x:
                grad_x_NI = _plus(grad_x_NI, (g_NO if ctx.separate else cg_NO)[i], weight_OI)
            if by_factor:
                grad_dropped_NI = _plus(grad_dropped_NI, cg_NO[i] - g_NO[i], weight_OI)
            del weight_OI  # before the next one is created
        if need_dropped:  # from here on dropout's own backward continues
            grad_dropped_NI = _plus(grad_dropped_NI, up_NQ, a_QI)
        elif need_x and not ctx.separate:
            grad_x_NI = _plus(grad_x_NI, up_NQ, a_QI)
        inputs = [None if grad is None else grad.view(shape) for grad in (grad_x_NI, grad_dropped_NI)]
        return *inputs, *[None] * (4 + 5 * n), *grad_a_RI, *grad_b_OR, *grad_m_O


def _outputs(
    x: Tensor,
    dropped: Tensor | None,
    scalings: Sequence[float],
    weights: Sequence[Weight],
    biases_O: Sequence[Tensor | None],
    down_NR: Sequence[Tensor],
    b_OR: Sequence[Tensor],
    magnitudes_O: Sequence[Tensor | None],
    norms_O: Sequence[Tensor | None],
    exact: bool,
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]:
    """y, c and z of each layer; `exact`: use dequantized weights."""
    x_NI, source_NI = _flat(x), _flat(x if dropped is None else dropped)
    outs, factors_O, z_NO = [], [], []
    for i, (weight, magnitude_O, norm_O) in enumerate(zip(weights, magnitudes_O, norms_O, strict=True)):
        used = dense(weight, x.dtype) if exact else weight
        factor_O = z = None
        if magnitude_O is None or norm_O is None:
            out_NO = product(x_NI, used, biases_O[i])
            out_NO.addmm_(down_NR[i], b_OR[i].T, alpha=scalings[i])  # in place: no extra (N, O) tensor
        else:
            factor_O = magnitude_O / norm_O
            z = product(source_NI, used, None).addmm_(down_NR[i], b_OR[i].T, alpha=scalings[i])
            out_NO = _times(z, factor_O)
            if dropped is not None:
                out_NO += product(x_NI - source_NI, used, None)
            if biases_O[i] is not None:
                out_NO += biases_O[i]
        outs.append(out_NO.view(*x.shape[:-1], -1))
        factors_O.append(factor_O)
        z_NO.append(z)
        del used  # before the next one is dequantized
    return outs, factors_O, z_NO


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _split(tensors: Sequence[Any], n: int) -> list[Sequence[Any]]:
    return [tensors[i : i + n] for i in range(0, len(tensors), n)]


def _times(out_NO: Tensor, factor_O: Tensor) -> Tensor:
    """Multiply in `out_NO`'s dtype without rounding the factor first: 1.001 would be 1 in bfloat16."""
    return torch.mul(out_NO, factor_O, out=torch.empty_like(out_NO))


def _plus(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if total is None else total.addmm_(left, right)


def cast_of(dtype: torch.dtype, a_RI: Sequence[Tensor], b_OR: Sequence[Tensor]) -> Cast:
    """A and B in the dtype of the products."""
    return torch.cat([each.to(dtype) for each in a_RI]), [each.to(dtype) for each in b_OR]


def row_norms(weight: Weight, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """(O,) ‖W + s·BA‖ of each row, in fp32 or wider, a few rows at a time."""
    wide = torch.promote_types(a_RI.dtype, torch.float32)
    norms_O = torch.empty(len(b_OR), dtype=wide, device=b_OR.device)
    with torch.autocast(b_OR.device.type, enabled=False):
        weight_OI = dense(weight, a_RI.dtype)
        for begin in range(0, len(b_OR), ROWS):
            rows = slice(begin, begin + ROWS)
            whole = torch.addmm(weight_OI[rows].to(wide), b_OR[rows].to(wide), a_RI.to(wide), alpha=scaling)
            torch.linalg.vector_norm(whole, dim=1, out=norms_O[rows])
    return norms_O


def lora_linears(
    x: Tensor,
    dropped: Tensor | None,
    scalings: Sequence[float],
    weights_OI: Sequence[Weight],
    biases_O: Sequence[Tensor | None],
    a_RI: Sequence[Tensor],
    b_OR: Sequence[Tensor],
    magnitudes_O: Sequence[Tensor | None] | None = None,
    norms_O: Sequence[Tensor | None] | None = None,
    *,
    cast: Cast | None = None,
    early: bool = False,
) -> tuple[Tensor, ...]:
    """n linear layers with LoRA (Hu et al., 2021, equation 3) or DoRA on one input.

    Args:
        x: (…, I), in the dense weights' dtype; quantized weights are dequantized to x's.
        dropped: x after dropout, the adapters' input in place of x; None without dropout.
        scalings: s of each layer: α/r, or α/√r for rsLoRA.
        weights_OI, biases_O: frozen. O and R may differ among the layers.
        a_RI, b_OR: trained, often in a wider dtype than x.
        magnitudes_O, norms_O: with DoRA, m, trained, and ‖W + s·BA‖, a constant (`row_norms`).
        cast: `cast_of` A and B, if already computed.
        early: save what the backward pass needs before the outputs are computed (see `_Kept`).

    Returns:
        For each layer y, (…, O), in x's dtype. With gradients, or if no weight is quantized, it is exact for
        the dense weights; else bitsandbytes' forward pass computes x·Wᵀ.
    """
    n, source, grad = len(scalings), x if dropped is None else dropped, torch.is_grad_enabled()
    nothing = [None] * n
    magnitudes_O, norms_O = magnitudes_O or nothing, norms_O or nothing
    a_QI, narrow_b_OR = cast or cast_of(x.dtype, a_RI, b_OR)
    with torch.no_grad():  # all layers' x·Aᵀ in one product, then views
        source_NI = _flat(source)
        down_NR = (source_NI @ a_QI.T).split([len(each) for each in a_RI], dim=1)
    if not grad:
        outs, *_ = _outputs(
            x,
            dropped,
            scalings,
            weights_OI,
            biases_O,
            down_NR,
            narrow_b_OR,
            magnitudes_O,
            norms_O,
            exact=False,
        )
        return tuple(outs)
    quantized = tuple(weight if isinstance(weight, Quantized) else None for weight in weights_OI)
    dense_OI = [None if isinstance(weight, Quantized) else weight for weight in weights_OI]
    kept = None
    if early and magnitudes_O[0] is None and a_RI[0].requires_grad:
        tensors = (*dense_OI, *down_NR, *narrow_b_OR, *nothing, *nothing, *nothing)
        kept = _Kept.apply(a_RI[0], source_NI, a_QI, *tensors).grad_fn
    # `torch.compile` does not accept the same tensor twice.
    narrow = [None if own is wide else own for own, wide in zip(narrow_b_OR, b_OR, strict=True)]
    frozen = (*dense_OI, *biases_O, *norms_O, *down_NR, *narrow)
    out: tuple[Tensor, ...] = _LoraLinears.apply(
        x, dropped, tuple(scalings), quantized, kept, a_QI, *frozen, *a_RI, *b_OR, *magnitudes_O
    )
    return out


def lora_plain(
    x: Tensor, dropped: Tensor | None, scalings: Sequence[float], *layers: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The plain reference of `lora_linears`, with the same arguments (dense weights)."""
    source, outs = x if dropped is None else dropped, []
    for i, s in enumerate(scalings):
        weight, bias, a, b, *dora = (each[i] for each in layers)
        update = s * linear(linear(source, a.to(x.dtype)), b.to(x.dtype))
        out = linear(x, weight, bias)
        if dora:
            magnitude, norm = dora
            factor = magnitude / norm
            out, update = out + (factor - 1) * linear(source, weight), factor * update
        outs.append((out + update).to(x.dtype))
    return tuple(outs)
