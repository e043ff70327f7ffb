"""What a recipe leaves to `auto`: batch, accumulation, epochs, warm-up by the data; row_tokens by the device.

Planning, training, `fintune data mix` and the model card all read the recipe that `fitted` returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fintune.config import AUTO, Recipe, TrainingConfig

STEPS = 150
"""Optimizer steps that a small set is brought to, by smaller steps and then by more epochs."""
FEW_STEPS = 50
"""A run of fewer is warned of."""
EPOCHS, MOST_EPOCHS = 3, 10
STEP_SIZES = (4, 16)
"""Examples of an optimizer step, at least and at most. docs/training.md says what larger ones lose."""
ROW_TOKENS = 4096
"""Tokens of a pass on a CPU, where more of them are no faster."""
WARMUP = 0.05
"""The share of the steps in which the learning rate rises."""
_UNKNOWN = 10_000


def epoch_size(recipe: Recipe, sizes: Mapping[str, int]) -> int:
    """Examples of an epoch, with these numbers of training examples of each task."""
    weights = recipe.multi_task.task_weights
    drawn = sum(size for name, size in sizes.items() if weights.get(name, 1.0) > 0)
    return recipe.multi_task.samples_per_epoch or drawn


def fitted(recipe: Recipe, sizes: Mapping[str, int]) -> Recipe:
    """The recipe with a number for each `auto`; what it sets itself stays.

    Args:
        sizes: each task's number of training examples; none of data that is not prepared yet, and is taken
            for large.
    """
    training = recipe.training
    examples = epoch_size(recipe, sizes) or _UNKNOWN
    batch, accumulation = _step(training, examples)
    size, epochs = batch * accumulation, training.num_train_epochs
    if epochs == AUTO and training.max_steps > 0:
        epochs = math.ceil(training.max_steps * size / examples)
    elif epochs == AUTO:
        epochs = min(MOST_EPOCHS, max(EPOCHS, math.ceil(STEPS * size / examples)))
    warmup = training.warmup_steps
    if warmup == AUTO:
        steps = math.ceil(round(epochs * examples) / size)
        warmup = round(WARMUP * (min(steps, training.max_steps) if training.max_steps > 0 else steps))
    numbers = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs,
        "warmup_steps": warmup,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=numbers)})


def with_row_tokens(recipe: Recipe, device: str | None = None) -> Recipe:
    """The recipe with a number for `training.row_tokens`, if that is `auto`: on a GPU what its free memory
    holds.

    Args:
        device: cpu or cuda; None is what this process computes on.

    Raises:
        ModelError: on a GPU, and the base's configuration cannot be read.
    """
    if recipe.training.row_tokens != AUTO:
        return recipe
    import torch

    tokens, cuda = ROW_TOKENS, torch.cuda.is_available()
    if cuda and device != "cpu":
        from fintune.training.memory import row_tokens_for

        tokens = row_tokens_for(recipe, torch.cuda.mem_get_info()[0])
    training = recipe.training.model_copy(update={"row_tokens": tokens})
    return recipe.model_copy(update={"training": training})


def row_size(asked: Recipe, made: Recipe, device: str | None = None) -> int:
    """Examples of a pass at most: on a GPU tokens alone decide, unless the recipe that was asked for says.

    Args:
        made: the recipe with numbers.
        device: as in `with_row_tokens`.
    """
    if _on_gpu(device) and asked.training.per_device_train_batch_size == AUTO:
        return int(made.training.row_tokens)
    return int(made.training.per_device_train_batch_size)


def _on_gpu(device: str | None) -> bool:
    import torch

    return device == "cuda" or (device is None and torch.cuda.is_available())


def small_passes(asked: Recipe, made: Recipe, tokens: float, device: str | None = None) -> str:
    """A line of a GPU that a named batch leaves idle; "" of any other run.

    Args:
        tokens: of an example, on average.
        made, device: as in `row_size`.
    """
    size, room = row_size(asked, made, device), made.training.row_tokens
    if not _on_gpu(device) or size * tokens > room / 2:
        return ""
    return (
        f"A pass holds {size} examples, about {size * tokens:,.0f} tokens of {room:,} that fit, since "
        f"training.per_device_train_batch_size is {size}. The loss does not depend on it: raise it, and "
        "lower training.gradient_accumulation_steps as much, for larger and fewer passes."
    )


def _step(training: TrainingConfig, examples: int) -> tuple[int, int]:
    """Batch and accumulation: their product is the largest power of two with which `STEPS` are reached."""
    batch, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    epochs = EPOCHS if training.num_train_epochs == AUTO else training.num_train_epochs
    low, high = STEP_SIZES
    wanted = low
    while wanted * 2 <= min(high, epochs * examples / STEPS):
        wanted *= 2
    if batch == AUTO:
        batch = wanted if accumulation == AUTO else max(1, wanted // accumulation)
    return batch, max(1, wanted // batch) if accumulation == AUTO else accumulation


def choices(asked: Recipe, recipe: Recipe) -> str:
    """What was made of `asked`, in a line; "" where nothing was left to it."""
    chosen = [
        f"{name} {getattr(recipe.training, name):g}"
        for name, value in asked.training
        if value == AUTO and getattr(recipe.training, name) != AUTO
    ]
    return f"Fitted to data and device (auto): {', '.join(chosen)}." if chosen else ""


def few_steps(steps: int) -> str:
    """A warning of a run with too few steps; "" of any other."""
    if steps >= FEW_STEPS:
        return ""
    return (
        f"Only {steps} optimizer steps: with fewer than {FEW_STEPS} an adapter learns little, often one "
        "answer to everything. Add rows, raise training.num_train_epochs, or lower "
        "training.gradient_accumulation_steps and training.per_device_train_batch_size; left out, or auto, "
        "all three fit the data."
    )
