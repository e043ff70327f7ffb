"""Decides when a run validates, and which weights it keeps.

Validation costs a fixed share of the run whatever the data: its interval follows from the tokens of the
held-out examples and of a step, so it does not depend on the machine. The loss is computed more often than
answers, because the answers of text tasks must be generated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fintune.config import TrainingConfig
from fintune.errors import ConfigError, hint
from fintune.prompts import TokenizedExample
from fintune.tasks import TaskSet

GENERATED = 8
"""Validation examples per text task that are generated and scored; the loss uses all of them."""
LOSS_SHARE, ANSWERS_SHARE = 0.08, 0.04
"""Approximate shares of a run's computing for validation if the recipe sets no interval."""
AT_MOST = 20
"""The most validations of such a run."""
_FORWARD, _GENERATED_TOKEN = 0.5, 10
"""Cost of a token in a forward pass, and of a generated token, relative to a training token."""
FILE = "best.safetensors"
"""The file of the best weights so far, in a checkpoint."""


@dataclass(frozen=True)
class Figure:
    """The validation figure that decides which weights are better."""

    name: str
    """Its name in validation's logs, such as `eval_loss`."""
    higher: bool = False
    of_answers: bool = False
    """Whether it needs answers; losses do not."""

    @property
    def title(self) -> str:
        return self.name.removeprefix("eval_")


def figure_of(training: TrainingConfig, tasks: TaskSet, names: Sequence[str], shown: Sequence[str]) -> Figure:
    """Resolve `training.metric_for_best_model`.

    Args:
        names: the tasks that have validation examples.
        shown: the objective's figures.

    Raises:
        ConfigError: validation has no such figure.
    """
    known = {"loss": Figure("eval_loss")}
    for name in names:
        known |= {f"{name}_{key}": Figure(f"eval_{name}_{key}") for key in shown}
        for measure in tasks[name].measures:
            if not measure.further and measure.better != "neither":
                key = f"{name}_{measure.name}"
                known[key] = Figure(f"eval_{key}", measure.better == "higher", of_answers=True)
    asked = training.metric_for_best_model
    if (found := known.get(asked.removeprefix("eval_"))) is None:
        raise ConfigError(
            f"training.metric_for_best_model is {asked}, which validation does not compute"
            f"{hint(asked, list(known))}"
        )
    return found


@dataclass(frozen=True)
class Intervals:
    """Optimizer steps between two validations, and between two that also compute answers."""

    loss: int
    answers: int


def intervals(
    training: TrainingConfig,
    figure: Figure,
    tasks: TaskSet,
    held_out: Mapping[str, Sequence[TokenizedExample]],
    step_tokens: float,
    steps: int,
) -> Intervals:
    """The recipe's interval, or else intervals that keep validation within its shares.

    Args:
        step_tokens: tokens of a step in one process.
    """
    if training.eval_steps:
        return Intervals(training.eval_steps, training.eval_steps)
    loss = sum(_FORWARD * _tokens(examples) for examples in held_out.values())
    answers = 0.0
    for name, examples in held_out.items():
        task = tasks[name]
        if task.decoding == "candidates":
            answers += _FORWARD * _tokens(examples)
        else:
            written = min(GENERATED, len(examples)) * task.max_new_tokens
            answers += _FORWARD * _tokens(examples[:GENERATED]) + _GENERATED_TOKEN * written
    shortest = math.ceil(steps / AT_MOST)
    if figure.of_answers:
        every = max(shortest, math.ceil((loss + answers) / ((LOSS_SHARE + ANSWERS_SHARE) * step_tokens)))
        return Intervals(every, every)
    every = max(shortest, math.ceil(loss / (LOSS_SHARE * step_tokens)))
    return Intervals(every, every * max(1, math.ceil(answers / (ANSWERS_SHARE * step_tokens * every))))


def _tokens(examples: Sequence[TokenizedExample]) -> int:
    return sum(map(len, examples))


@dataclass
class Best:
    """The trained weights of the best step so far and its figure; step 0 means none yet."""

    step: int = 0
    value: float = math.nan
    weights: dict[str, Any] = field(default_factory=dict)

    def is_worse_than(self, value: float, figure: Figure) -> bool:
        """Whether a later step with this value replaces it; the earliest wins a tie."""
        if not math.isfinite(value):
            return False
        return not self.step or (value > self.value if figure.higher else value < self.value)

    def take(self, model: Any, step: int, value: float) -> None:
        """Keep a copy of the model's trained weights (if sharded, this process's part). With None as model,
        keep only step and value."""
        for name, parameter in _trained(model) if model else ():
            kept = self.weights.get(name)
            if kept is None:
                self.weights[name] = parameter.detach().clone()
            else:
                kept.copy_(parameter.detach())
        self.step, self.value = step, value

    def give_back(self, model: Any) -> None:
        """Copy the kept weights back into the model."""
        import torch

        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(self.weights[name])

    def save(self, checkpoint: Path) -> None:
        """Write them beside a checkpoint's own weights, so that a resumed run has them."""
        from safetensors.torch import save_file

        if self.step:
            about = {"step": str(self.step), "value": str(self.value)}
            save_file({name: value.cpu() for name, value in self.weights.items()}, checkpoint / FILE, about)

    @classmethod
    def load(cls, checkpoint: Path | None) -> Best:
        """Read what `save` wrote; empty if the checkpoint has none."""
        from safetensors import safe_open

        if checkpoint is None or not (checkpoint / FILE).is_file():
            return cls()
        with safe_open(checkpoint / FILE, "pt") as file:
            about = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(int(about["step"]), float(about["value"]), weights)


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]
