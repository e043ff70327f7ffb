"""What a layer's attention makes of its scores, beside what the layout of the row hides.

Shape suffix of names: H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rule:
    """softmax over s = cap · tanh(scale · q·k / cap) and each head's sink, whose share goes nowhere.

    Attributes:
        scale: of the product of a query and a key.
        window: as of `packing.Mask`.
        cap: the bound of the scores (Gemma 2); None leaves them as they are.
        sinks_H: one more score a head in the softmax's denominator (gpt-oss), a constant; None is none.
    """

    scale: float
    window: int | None = None
    cap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the scores are neither capped nor shared with a sink."""
        return self.cap is None and self.sinks_H is None
