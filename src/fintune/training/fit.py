"""Replaces a recipe's `auto`: batch, accumulation, epochs, warm-up fit the data, row_tokens the device.

Planning, training, `fintune data mix` and the model card all use the recipe that `fitted` returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fintune.config import AUTO, Recipe, TrainingConfig

STEPS = 150
"""Optimizer steps that a small dataset should reach: first by smaller steps, then by more epochs."""
FEW_STEPS = 50
"""Runs with fewer steps get a warning."""
EPOCHS, MOST_EPOCHS = 3, 10
STEP_SIZES = (4, 16)
"""Least and most examples per optimizer step. docs/training.md says what larger steps cost."""
ROW_TOKENS = 4096
"""Tokens per pass on a CPU, where larger passes are no faster."""
WARMUP = 0.05
"""The share of the steps used for warm-up."""
_UNKNOWN = 10_000


def epoch_size(recipe: Recipe, sizes: Mapping[str, int]) -> int:
    """Examples per epoch, given each task's number of training examples."""
    weights = recipe.multi_task.task_weights
    drawn = sum(size for name, size in sizes.items() if weights.get(name, 1.0) > 0)
    return recipe.multi_task.samples_per_epoch or drawn


def fitted(recipe: Recipe, sizes: Mapping[str, int]) -> Recipe:
    """The recipe with a number for each `auto`; explicit settings stay.

    Args:
        sizes: each task's number of training examples; data that is not prepared yet has none and counts
            as large.
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
    return recipe.changed(
        "training",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        warmup_steps=warmup,
    )


def with_row_tokens(recipe: Recipe, device: str | None = None) -> Recipe:
    """The recipe with a number for `training.row_tokens: auto`: on a GPU as many as its free memory holds.

    Args:
        device: cpu or cuda; None is this process's device.

    Raises:
        ModelError: on a GPU, if the base's configuration cannot be read.
    """
    if recipe.training.row_tokens != AUTO:
        return recipe
    import torch

    tokens, cuda = ROW_TOKENS, torch.cuda.is_available()
    if cuda and device != "cpu":
        from fintune.training.memory import row_tokens_for

        tokens = row_tokens_for(recipe, torch.cuda.mem_get_info()[0])
    return recipe.changed("training", row_tokens=tokens)


def row_size(asked: Recipe, made: Recipe, device: str | None = None) -> int:
    """The most examples per pass: on a GPU only tokens limit it, unless the user's recipe sets a batch size.

    Args:
        made: the fitted recipe.
        device: as in `with_row_tokens`.
    """
    if _on_gpu(device) and asked.training.per_device_train_batch_size == AUTO:
        return int(made.training.row_tokens)
    return int(made.training.per_device_train_batch_size)


def _on_gpu(device: str | None) -> bool:
    import torch

    return device == "cuda" or (device is None and torch.cuda.is_available())


def small_passes(asked: Recipe, made: Recipe, tokens: float, device: str | None = None) -> str:
    """A line if an explicit batch size leaves a GPU underused, else "".

    Args:
        tokens: mean tokens per example.
        made, device: as in `row_size`.
    """
    size, room = row_size(asked, made, device), made.training.row_tokens
    if not _on_gpu(device) or size * tokens > room / 2:
        return ""
    return (
        f"A pass holds only {size} examples, about {size * tokens:,.0f} of {room:,} tokens that fit, because "
        f"training.per_device_train_batch_size is {size}. For fewer, larger passes raise it and lower "
        "training.gradient_accumulation_steps by the same factor; the loss does not change."
    )


def _step(training: TrainingConfig, examples: int) -> tuple[int, int]:
    """Batch and accumulation: their product is the largest power of two that still gives `STEPS` steps."""
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
    """One line on the numbers chosen for `auto`; "" if there are none."""
    chosen = [
        f"{name} {getattr(recipe.training, name):g}"
        for name, value in asked.training
        if value == AUTO and getattr(recipe.training, name) != AUTO
    ]
    return f"Fitted to data and device (auto): {', '.join(chosen)}." if chosen else ""


def few_steps(steps: int) -> str:
    """A warning if the run has too few steps, else ""."""
    if steps >= FEW_STEPS:
        return ""
    return (
        f"Only {steps} optimizer steps: with fewer than {FEW_STEPS} an adapter learns little, often just one "
        "answer to everything. Add rows, raise training.num_train_epochs, or lower "
        "training.gradient_accumulation_steps and training.per_device_train_batch_size; set to auto (or left "
        "out), all three fit the data."
    )
