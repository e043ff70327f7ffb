"""The probe of `fintune plan --measure`: times a few real training steps on a few layers of the base's shape.

Random weights replace the base's, so nothing is downloaded. Two models, with one layer and with three, give
the time (and on a GPU the memory) of a layer and of all the rest. Quantization, adapter, checkpointing, rows
and data are the recipe's own.
"""

from __future__ import annotations

import copy
import gc
import math
import tempfile
import time
from datetime import date
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from fintune.config import Recipe
from fintune.errors import DataError
from fintune.inference.backends.builtin import Builtin
from fintune.kernels import compiled
from fintune.models import recomputation
from fintune.models.adapters import add_adapter
from fintune.models.base import choose_precision, random_base_model
from fintune.planning import speed
from fintune.planning.estimating import Work, work_of
from fintune.planning.speed import Calibration
from fintune.training import memory
from fintune.training.memory import Shape
from fintune.training.steps import StepBuilder
from fintune.training.throughput import FlopCount, Meter
from fintune.training.trainer import MultiTaskTrainer

SECONDS = 20
"""The probe's approximate time, without loading libraries and compiling."""
LAYERS = (1, 3)
STEPS = 4
"""Steps of the run, evenly spread; they are repeated, because another program may delay one of them."""
REPEATS = 12


def measure(recipe: Recipe) -> Calibration:
    """Time steps of the recipe on this machine, and store the result for later plans.

    Raises:
        DataError: the recipe's data is not prepared.
        ModelError: the base's configuration cannot be read.
    """
    model, support = memory.laid_out(recipe)
    fitted, work = work_of(recipe, model, support)
    if work is None:
        raise DataError(
            "plan --measure times steps on the recipe's own data, which is not prepared: run  "
            "fintune data prepare  with the same recipe first."
        )
    shape = Shape.of(model)
    few, more = (_steps(fitted, layers, work) for layers in LAYERS)
    between = LAYERS[1] - LAYERS[0]
    slopes = [max(0.0, (b - a) / between) for a, b in zip(few, more, strict=True)]
    rests = [max(0.0, a - LAYERS[0] * slope) for a, slope in zip(few, slopes, strict=True)]
    calibration = Calibration(date.today().isoformat(), slopes[0], rests[0], slopes[1], rests[1])
    speed.keep(fitted, shape, calibration)
    return calibration


def _steps(recipe: Recipe, layers: int, work: Work) -> tuple[float, float]:
    """Seconds per token from each step's best time; and bytes per token of the largest pass (0 on a CPU)."""
    config = copy.deepcopy(memory.base_config(recipe))
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    base = random_base_model(config, recipe.base_model, choose_precision(recipe.training).dtype)
    model = add_adapter(base, recipe.lora_config.plain())
    if recipe.training.gradient_checkpointing:
        recomputation.enable(model, recipe.training.gradient_checkpointing_offload)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else 0
    builder = copy.copy(work.builder)
    chosen = builder.schedule[:: math.ceil(len(builder.schedule) / STEPS)]
    builder.schedule = [*chosen] * REPEATS
    steps = [builder[i] for i in range(len(chosen))]
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = _trainer(model, recipe, builder, folder), _Clock(SECONDS / len(LAYERS), len(chosen))
        trainer.add_callback(clock)
        trainer.train()
    best = [min(clock.seconds[i :: len(chosen)]) for i in range(len(chosen))]
    rate = sum(best) / sum(step.tokens for step in steps)
    largest = max(row.packed.input_ids.shape[1] for step in steps for row in step.rows)
    used = (torch.cuda.max_memory_allocated() - held) / largest if cuda else 0.0
    del trainer, model, base
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return rate, used


def _trainer(model: Any, recipe: Recipe, builder: StepBuilder, folder: str) -> Any:
    """The trainer of `fintune train` on these steps, without validation and checkpoints."""
    precision = choose_precision(recipe.training)
    engine: Any = SimpleNamespace(builtin=Builtin(model, 0), tasks=[])  # the tokenizer may be missing here
    if recipe.training.torch_compile:
        compiled.enable(model)
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=len(builder),
        per_device_train_batch_size=1,
        learning_rate=recipe.training.learning_rate,
        max_grad_norm=recipe.training.max_grad_norm,
        fp16=precision.fp16,
        bf16=precision.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
    )
    trainer = MultiTaskTrainer(
        engine=engine,
        validation={},
        steps_per_epoch=len(builder),
        save_extra=lambda _: None,
        batch_size=1,
        meter=Meter(FlopCount(model), 1.0),
        model=model,
        train_dataset=builder,
        args=arguments,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


class _Clock(transformers.TrainerCallback):
    """Records each step's seconds, and stops training after `budget` seconds, but not before all `least`
    steps have run."""

    def __init__(self, budget: float, least: int) -> None:
        self.budget, self.least = budget, least
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begun)
        control.should_training_stop |= len(self.seconds) > self.least and sum(self.seconds) > self.budget
