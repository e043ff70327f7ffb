"""When a run validates, and which weights it keeps.

Validation costs a set share of the run whatever the data: its interval follows from the tokens of the
held-out examples and those of a step, and so does not depend on the machine. The loss comes more often than
answers, of which texts have to be generated.
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
"""Validation examples of a text task that are generated and scored; the loss uses all of them."""
LOSS_SHARE, ANSWERS_SHARE = 0.08, 0.04
"""The parts of a run's computing that go into validation, about, where the recipe names no interval."""
AT_MOST = 20
"""Validations of such a run."""
_FORWARD, _GENERATED_TOKEN = 0.5, 10
"""What a token costs in a forward pass, and one that is written, beside a token of training."""
FILE = "best.safetensors"
"""In a checkpoint: the weights that were best until then."""


@dataclass(frozen=True)
class Figure:
    """The figure of validation that says which weights are better."""

    name: str
    """As validation logs it, such as `eval_loss`."""
    higher: bool = False
    of_answers: bool = False
    """Whether the model has to answer for it; losses come without."""

    @property
    def title(self) -> str:
        return self.name.removeprefix("eval_")


def figure_of(training: TrainingConfig, tasks: TaskSet, names: Sequence[str], shown: Sequence[str]) -> Figure:
    """What `training.metric_for_best_model` means.

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
            f"training.metric_for_best_model is {asked}, which validation does not have"
            f"{hint(asked, list(known))}"
        )
    return found


@dataclass(frozen=True)
class Intervals:
    """Optimizer steps between two validations, and between two that ask for answers too."""

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
    """The recipe's interval, or those that keep to the shares.

    Args:
        step_tokens: of a step, in one process.
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
    """The trained weights of the best step so far, and its value of the figure; step 0 is none yet."""

    step: int = 0
    value: float = math.nan
    weights: dict[str, Any] = field(default_factory=dict)

    def is_worse_than(self, value: float, figure: Figure) -> bool:
        """Whether a later step with this value takes its place: of equals the earliest stays."""
        if not math.isfinite(value):
            return False
        return not self.step or (value > self.value if figure.higher else value < self.value)

    def take(self, model: Any, step: int, value: float) -> None:
        """Keep a copy of the model's trained weights (where they are sharded, of this process's part); of no
        model, the step and its value alone."""
        for name, parameter in _trained(model) if model else ():
            kept = self.weights.get(name)
            if kept is None:
                self.weights[name] = parameter.detach().clone()
            else:
                kept.copy_(parameter.detach())
        self.step, self.value = step, value

    def give_back(self, model: Any) -> None:
        """Put the weights kept into the model."""
        import torch

        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(self.weights[name])

    def save(self, checkpoint: Path) -> None:
        """Write them beside a checkpoint's own weights, so that a run that goes on has them."""
        from safetensors.torch import save_file

        if self.step:
            about = {"step": str(self.step), "value": str(self.value)}
            save_file({name: value.cpu() for name, value in self.weights.items()}, checkpoint / FILE, about)

    @classmethod
    def load(cls, checkpoint: Path | None) -> Best:
        """What `save` wrote; nothing yet where the checkpoint has none."""
        from safetensors import safe_open

        if checkpoint is None or not (checkpoint / FILE).is_file():
            return cls()
        with safe_open(checkpoint / FILE, "pt") as file:
            about = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(int(about["step"]), float(about["value"]), weights)


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]
