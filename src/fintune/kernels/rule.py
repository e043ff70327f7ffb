"""How a layer turns attention scores into weights, apart from what the row's layout hides.

Shape suffix of names: H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rule:
    """softmax over s = cap · tanh(scale · q·k / cap) and each head's sink, whose share is discarded.

    Attributes:
        scale: factor of the product of a query and a key.
        window: as in `packing.Mask`.
        cap: the bound of the scores (Gemma 2); None sets no bound.
        sinks_H: a constant extra score per head in the softmax's denominator (gpt-oss); None adds none.
    """

    scale: float
    window: int | None = None
    cap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the scores have neither cap nor sink."""
        return self.cap is None and self.sinks_H is None
