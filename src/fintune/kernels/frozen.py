"""The frozen weight of a linear layer, dense or quantized, as the (O, I) matrix for products.

Shape suffixes of names: O features of the output, I of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear


class Quantized:
    """A bitsandbytes linear layer. Its weight is dequantized for one product at a time and never kept: the
    allocator reuses the memory for the next layer."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(O, I), in one pass over memory (4 bit: bitsandbytes' kernel; 8 bit: integers times scales)."""
        raise NotImplementedError

    def product(self, x: Tensor, bias_O: Tensor | None) -> Tensor:
        """x·Wᵀ + bias (the layer's own, or None) by bitsandbytes' forward pass, without gradients.

        For a few tokens its kernels read only the quantized weight; in 8 bit it also rounds activations.
        """
        out: Tensor = self.base(x)
        return out if bias_O is not None or self.base.bias is None else out - self.base.bias


class FourBit(Quantized):
    """NF4 or FP4, also with quantized scales."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weight = self.base.weight
        # FSDP replaces the weight by a plain parameter; the layer then holds the quantization state.
        state = getattr(weight, "quant_state", None) or self.base.quant_state
        return dequantize_4bit(weight.data, state).to(dtype)


class EightBit(Quantized):
    """LLM.int8 weights with one scale per row."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        scale_O = self.base.state.SCB  # set by the first forward pass; before that, the weight has it
        scale_O = self.base.weight.SCB if scale_O is None else scale_O
        return self.base.weight.data.to(dtype).mul_((scale_O / 127)[:, None])


Weight: TypeAlias = Tensor | Quantized


READERS: dict[str, Callable[[Any], Weight]] = {
    "torch.nn.modules.linear.Linear": attrgetter("weight"),
    "transformers.pytorch_utils.Conv1D": attrgetter("weight.T"),
    "bitsandbytes.nn.modules.Linear4bit": FourBit,
    "bitsandbytes.nn.modules.Linear8bitLt": EightBit,
}


def reader_of(base: Any) -> Callable[[Any], Weight] | None:
    """A reader for a linear layer's weight, to call at each pass since FSDP exchanges it; None if the layer
    is of another kind or any of it, bias included, is trained."""
    reader = READERS.get(f"{type(base).__module__}.{type(base).__name__}")
    whole = reader is EightBit and base.weight.dtype != torch.int8  # quantized at each pass
    trained = any(parameter.requires_grad for parameter in base.parameters(recurse=False))
    return None if trained or whole else reader


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The (O, I) matrix; a dense weight keeps its own dtype."""
    return weight.dense(dtype) if isinstance(weight, Quantized) else weight


def product(x: Tensor, weight: Weight, bias_O: Tensor | None) -> Tensor:
    """x·Wᵀ + bias."""
    return weight.product(x, bias_O) if isinstance(weight, Quantized) else linear(x, weight, bias_O)
