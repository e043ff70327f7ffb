"""What is computed of trained weights (their casts, DoRA's norms), once for each state of the weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")

_steps = [0]
"""Steps of any optimizer so far: one that writes through pointers (bitsandbytes) leaves no other trace."""


def _count(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count)


class Derived(Generic[T]):
    """A value kept until the weights change: in place, by another storage, or by an optimizer's step.

    Nothing is kept for other tensors than the ones it was made with. FSDP2 puts the gathered weights in place
    of them at each pass, and gives these one version for all steps.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self._kept: tuple[Hashable, T] | None = None

    def get(self, weights: Sequence[Tensor], key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, without gradients, of the weights as they are now; `key`: what else it depends on."""
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
            if own is not weight or weight.is_inference():  # which counts no versions
                return None
        places = tuple((weight.data_ptr(), weight._version) for weight in weights)
        # What is made in inference mode cannot be kept for a backward pass.
        return places, key, _steps[0], torch.is_inference_mode_enabled()
