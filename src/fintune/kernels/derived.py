"""Cache values derived from trained weights (their casts, DoRA's norms) until the weights change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")

_steps = [0]
"""Counts steps of any optimizer: one that writes through pointers (bitsandbytes) leaves no other trace."""


def _count(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count)


class Derived(Generic[T]):
    """A value cached until the weights change: in place, by new storage, or by an optimizer's step.

    Valid only for the tensors it was created with. FSDP2 replaces them by the gathered weights at each pass,
    and these keep one version across steps.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self._kept: tuple[Hashable, T] | None = None

    def get(self, weights: Sequence[Tensor], key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()` without gradients on the current weights; `key`: what else the value depends on."""
        state = None if torch.compiler.is_compiling() else self._state(weights, key)
        if state is not None and self._kept is not None and self._kept[0] == state:
            return self._kept[1]
        with torch.no_grad():
            value = compute()
        if state is not None:
            self._kept = state, value
        return value

    def _state(self, weights: Sequence[Tensor], key: Hashable) -> Hashable:
        for own, weight in zip(self.weights, weights, strict=True):
            if own is not weight or weight.is_inference():  # inference tensors have no version counter
                return None
        places = tuple((weight.data_ptr(), weight._version) for weight in weights)
        # Values made in inference mode cannot be saved for a backward pass.
        return places, key, _steps[0], torch.is_inference_mode_enabled()
