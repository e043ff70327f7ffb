"""Computes a run's task mix: how the sampling strategy draws from tasks, and how much of each is trained.

Training uses the same `draw` and `steps`, so the mix shown here is the mix that is trained on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.config import Recipe
from fintune.data.sampling import quotas, schedule, shares
from fintune.errors import DataError
from fintune.training.fit import epoch_size, few_steps, fitted

if TYPE_CHECKING:
    from fintune.data.prepare.dataset import PreparedDataset

SAMPLED = 2000
"""Training examples per task that are tokenized; their mean length stands for all."""
MANY = 10
"""A task whose examples are seen more often than this in a run gets a warning."""


@dataclass(frozen=True)
class Draw:
    """The examples that an epoch takes of each task (tasks without any are left out), and loss weights."""

    per_epoch: dict[str, int]
    loss_weights: dict[str, float]
    step_size: int
    """Examples per optimizer step."""

    @property
    def steps_per_epoch(self) -> float:
        """A fraction if the last step is short."""
        return sum(self.per_epoch.values()) / self.step_size


def draw(recipe: Recipe, sizes: Mapping[str, int]) -> Draw:
    """How a fitted recipe mixes tasks, given each task's number of training examples.

    Raises:
        DataError: no task has both examples and a weight.
    """
    mix, training = recipe.multi_task, recipe.training
    weights = {name: mix.task_weights.get(name, 1.0) for name in sizes}
    drawn_from = {name: size if weights[name] > 0 else 0 for name, size in sizes.items()}
    sampling = mix.sampling_weights or weights
    try:
        share = shares(drawn_from, mix.sampling_strategy, sampling, mix.temperature)
    except ValueError as error:
        raise DataError(f"Nothing to train on: {error}.") from None
    per_epoch = quotas(share, epoch_size(recipe, sizes))
    weighs_loss = mix.sampling_strategy != "weighted" or mix.sampling_weights
    return Draw(
        per_epoch={name: count for name, count in per_epoch.items() if count},
        loss_weights=weights if weighs_loss else dict.fromkeys(weights, 1.0),
        step_size=training.per_device_train_batch_size * training.gradient_accumulation_steps,
    )


def steps(recipe: Recipe, drawn: Draw, task_of: Sequence[str]) -> list[list[int]]:
    """The run's optimizer steps, each a list of indices into `task_of`, the task of every example."""
    training = recipe.training
    found = schedule(task_of, drawn.per_epoch, training.num_train_epochs, drawn.step_size, training.seed)
    return found[: training.max_steps] if training.max_steps > 0 else found


@dataclass(frozen=True)
class TaskMix:
    """One task's part of a run."""

    name: str
    examples: int
    """Its training examples."""
    per_epoch: int
    """Examples that an epoch takes of them."""
    tokens: float
    """Mean tokens per example (prompt and completion), after truncation to `training.max_length`."""
    sampled: int
    """Number of examples that `tokens` averages."""
    cut: float
    """The share of these that were truncated."""
    loss_weight: float
    seen: int
    """Examples that the whole run takes."""

    @property
    def repeats(self) -> float:
        """How often the run sees each of its examples."""
        return self.seen / self.examples


@dataclass(frozen=True)
class Mix:
    """All tasks of a run, and its optimizer steps."""

    tasks: list[TaskMix]
    steps: int
    step_size: int

    def share(self, task: TaskMix, of: Callable[[TaskMix], float]) -> float:
        """The task's share of a quantity per epoch, such as `tokens`."""
        return of(task) / sum(of(other) for other in self.tasks)

    def warnings(self) -> list[str]:
        """A warning for each task that is seen too often, and one for too few steps, with what to change."""
        often = [
            f"{task.name}: each of its {task.examples:,} training examples is seen {task.repeats:.1f} times "
            f"(over {MANY} the model memorizes them). Add data, lower its share "
            "(multi_task.sampling_strategy: proportional or temperature, or its sampling weight), "
            "or train less (training.num_train_epochs, multi_task.samples_per_epoch)."
            for task in self.tasks
            if task.repeats > MANY
        ]
        return [*often, *filter(None, [few_steps(self.steps)])]


def measure(recipe: Recipe, prepared: PreparedDataset, template: Any) -> Mix:
    """The mix of a recipe's run on its prepared data; `template` is the `PromptTemplate` of its base.

    Raises:
        DataError: no task has both examples and a weight.
    """
    tasks = prepared.task_set()
    sizes = {name: prepared.manifest["tasks"][name]["counts"]["train"] for name in tasks.names()}
    recipe = fitted(recipe, sizes)
    drawn = draw(recipe, sizes)
    task_of = [name for name in drawn.per_epoch for _ in range(sizes[name])]
    run = steps(recipe, drawn, task_of)
    seen = Counter(task_of[i] for step in run for i in step)
    found = []
    for name, count in drawn.per_epoch.items():
        records = prepared.records(name, "train")[:SAMPLED]
        examples = [template.example(tasks[name], record) for record in records]
        found.append(
            TaskMix(
                name=name,
                examples=sizes[name],
                per_epoch=count,
                tokens=sum(map(len, examples)) / len(examples),
                sampled=len(examples),
                cut=sum(example.truncated for example in examples) / len(examples),
                loss_weight=drawn.loss_weights[name],
                seen=seen[name],
            )
        )
    return Mix(found, len(run), drawn.step_size)


def as_dict(mix: Mix) -> dict[str, Any]:
    """The mix as `--json` prints it."""
    tasks = {
        task.name: {
            **{f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.name != "name"},
            "share_of_examples": mix.share(task, lambda t: t.per_epoch),
            "share_of_tokens": mix.share(task, lambda t: t.per_epoch * t.tokens),
            "share_of_loss": mix.share(task, lambda t: t.per_epoch * t.loss_weight),
            "repeats": task.repeats,
        }
        for task in mix.tasks
    }
    return {"steps": mix.steps, "step_size": mix.step_size, "tasks": tasks, "warnings": mix.warnings()}


def measure_prepared(recipe: Recipe) -> Mix:
    """The mix of a recipe, whose data is prepared if need be."""
    from fintune.data.prepare.dataset import prepare
    from fintune.models.base import load_tokenizer
    from fintune.prompts import PromptTemplate

    tokenizer = load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    return measure(recipe, prepare(recipe), PromptTemplate(tokenizer, recipe.training.max_length))


def show(recipe: Recipe, mix: Mix) -> None:
    """Print the mix and its warnings."""
    print(
        f"\n{'':15}{'training':>9}{'an epoch':>9}{'':>7}{'':>10}{'':>7}{'of the':>7}{'seen in':>9}{'':>6}\n"
        f"{'task':15}{'examples':>9}{'examples':>9}{'share':>7}{'tokens':>10}{'share':>7}{'loss':>7}"
        f"{'the run':>9}{'cut':>6}"
    )
    for task in mix.tasks:
        examples = mix.share(task, lambda t: t.per_epoch)
        tokens = mix.share(task, lambda t: t.per_epoch * t.tokens)
        loss = mix.share(task, lambda t: t.per_epoch * t.loss_weight)
        print(
            f"{task.name:15}{task.examples:>9,}{task.per_epoch:>9,}{examples:>7.1%}"
            f"{task.per_epoch * task.tokens:>10,.0f}{tokens:>7.1%}{loss:>7.1%}"
            f"{task.repeats:>8.1f}×{task.cut:>6.0%}"
        )
    epoch, run = sum(t.per_epoch for t in mix.tasks), sum(t.seen for t in mix.tasks)
    tokens_of_epoch = sum(t.per_epoch * t.tokens for t in mix.tasks)
    print(
        f"An epoch: {epoch:,} examples, about {tokens_of_epoch:,.0f} tokens. "
        f"The run: {mix.steps:,} steps of {mix.step_size} examples, {run:,} in all "
        f"({run / epoch:.2f} epochs; {recipe.multi_task.sampling_strategy} sampling)."
    )
    print("Seen in the run: how often each example is. Cut: examples longer than training.max_length.")
    part = [f"{t.sampled:,} of {t.examples:,} {t.name}" for t in mix.tasks if t.sampled < t.examples]
    if part:
        print(f"Tokens are estimated from a sample of the examples: {', '.join(part)}.")
    for warning in mix.warnings():
        print(f"Warning: {warning}")
