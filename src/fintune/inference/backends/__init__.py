"""What computes for the engine: one interface, and a module for each library behind it.

A backend knows token ids and nothing of tasks: prompts, label decisions, calibration and parsing stay in the
engine, so that every backend is asked and read in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fintune.inference.decoding import Allowed, Generated

NAMES = ("builtin", "llama.cpp", "vllm")


class Backend(Protocol):
    """One model, perhaps with an adapter; everything but `context` is asked within a `session`."""

    @property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer together; None is not known."""

    def session(self, use_adapter: bool = True) -> AbstractContextManager[None]:
        """What holds while the model computes; not to be entered twice at once.

        Args:
            use_adapter: False asks the untuned base.

        Raises:
            ModelError: this backend has no untuned base.
        """

    def batch_limits(self, size: int, scoring: bool) -> tuple[int, int]:
        """How many prompts, and how many of their tokens, are one call, where `size` prompts are wished."""

    def shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many of the tokens that all `prompts` begin with are computed once; for the calls below."""

    def lookups(self) -> tuple[int, int]:
        """How often what prompts share was known, and how often it had to be computed, since the start."""

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int = 0
    ) -> list[list[float]]:
        """For each prompt log p(answer | prompt) of each answer, in nats: of all its tokens, whole."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        end: int,
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        """The likeliest token again and again, until `end` or `max_new_tokens`; in the prompts' order.

        Args:
            allowed: which tokens may come next, where not all may.
        """

    # For texts that are written a token a step, among other work.

    @property
    def texts(self) -> int | None:
        """How many can be written at once; None is any number, 0 is none."""

    def begin(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Texts after these prompts; what comes back is for `advance` and `keep`."""

    def advance(self, texts: Any, tokens: Sequence[int] | None) -> Any:
        """(B, V) logits after each text and its next token; `tokens` is None the first time."""

    def keep(self, texts: Any, rows: Sequence[int]) -> None:
        """Go on with these texts alone, and free what the others take; [] ends them all."""
