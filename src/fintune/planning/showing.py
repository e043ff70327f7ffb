"""Prints the plan as a table, with the changes to make if it does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from fintune.config import Recipe
from fintune.planning.estimating import Estimate
from fintune.progress import duration, megabytes
from fintune.training.fit import choices, few_steps


def _memory_of(device: str) -> str:
    import torch

    return "this machine's memory" if device == "cpu" else str(torch.cuda.get_device_name())


def as_dict(recipe: Recipe, need: Estimate) -> dict[str, Any]:
    """The estimate's figures by name, whether it fits, and the changes to make if not."""
    figures = {f.name: getattr(need, f.name) for f in dataclasses.fields(need) if f.name != "recipe"}
    return {
        "base_model": recipe.base_model.name,
        "fits": need.fits,
        **figures,
        "peak_bytes": need.peak_bytes,
        "advice": advice(recipe, need),
    }


def show(recipe: Recipe, need: Estimate) -> None:
    """Print the estimate, and the changes to make if it does not fit."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Plan for {recipe.base_model.name}", show_header=False, title_justify="left")
    share = need.trainable_parameters / need.all_parameters
    rows = (
        ("trainable parameters", f"{need.trainable_parameters:,} of {need.all_parameters:,} ({share:.2%})"),
        ("adapter on disk", megabytes(need.adapter_bytes)),
        ("base model's weights", megabytes(need.weight_bytes)),
        ("adapter and optimizer", megabytes(need.optimizer_bytes)),
        ("activations", f"{megabytes(need.activation_bytes)} for {need.tokens:,} tokens at once"),
        ("validation", megabytes(need.validation_bytes)),
        ("runtime", megabytes(need.runtime_bytes)),
        (
            "peak memory",
            f"{megabytes(need.peak_bytes)} of {megabytes(need.available_bytes)} ({_memory_of(need.device)})",
        ),
        ("optimizer steps", _steps(need)),
        ("time an epoch", _time(need)),
        ("first step", _first_step(need)),
    )
    for name, value in rows:
        if value:
            table.add_row(name, value)
    Console().print(table)
    print(advice(recipe, need))
    if need.steps is not None:
        for line in filter(None, [choices(recipe, need.recipe), few_steps(need.steps)]):
            print(line)


def advice(recipe: Recipe, need: Estimate) -> str:
    """One line: it fits, or the recipe changes that save memory, cheapest first."""
    if need.fits:
        return "It fits."
    options = []
    if need.tokens > 1024:
        options.append(f"training.row_tokens: {max(512, need.tokens // 2)}")
    if not recipe.training.gradient_checkpointing:
        options.append("training.gradient_checkpointing: true")
    if not recipe.base_model.quantized:
        options.append("base_model.load_in_8bit: true")
    if not recipe.base_model.load_in_4bit:
        options.append("base_model.load_in_4bit: true")
    return f"It does not fit. Try, in this order: {'; '.join([*options, 'a smaller base model'])}."


def _steps(need: Estimate) -> str:
    if need.steps is None:
        return "unknown until the data is prepared: fintune data prepare"
    training = need.recipe.training
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return f"{need.steps:,} of {size} examples, in {training.num_train_epochs:g} epochs at most"


def _time(need: Estimate) -> str:
    if need.seconds_per_epoch is None or need.tokens_per_epoch is None:
        return "unknown until the data is prepared: fintune data prepare"
    found = need.calibration
    how = f"measured here on {found.date}" if found else "estimated; fintune plan --measure measures it"
    return (
        f"{duration(need.seconds_per_epoch)} for about {need.tokens_per_epoch:,} tokens ({how}), "
        "and validation"
    )


def _first_step(need: Estimate) -> str:
    if not need.first_step_seconds:
        return ""
    return f"about {need.first_step_seconds:.0f} seconds more, to compile kernels"
