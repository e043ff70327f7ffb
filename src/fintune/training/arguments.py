"""Turns a recipe into `transformers.TrainingArguments`; one batch there is one optimizer step here."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import transformers

from fintune.config import AUTO, Recipe, TrainingConfig
from fintune.models.base import Precision


def warmup_of(training: TrainingConfig, steps: int) -> int:
    """The number of warm-up steps of a fitted recipe's run."""
    return round(training.warmup_ratio * steps) if training.warmup_ratio else training.warmup_steps


def training_arguments(
    recipe: Recipe,
    output_dir: Path,
    steps: int,
    eval_steps: int,
    steps_per_epoch: float,
    precision: Precision,
    report_to: list[str],
) -> transformers.TrainingArguments:
    """The settings of Transformers' trainer for a run of `steps` optimizer steps.

    Args:
        eval_steps: optimizer steps between two validations.
        steps_per_epoch: optimizer steps per epoch; without an interval in the recipe, each epoch ends with a
            checkpoint.
        report_to: trackers of Transformers, such as `wandb`.
    """
    training = recipe.training
    workers = training.dataloader_num_workers
    per_epoch = math.ceil(steps_per_epoch)
    arguments = transformers.TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=warmup_of(training, steps),
        lr_scheduler_type=training.lr_scheduler_type,
        max_grad_norm=training.max_grad_norm,
        fp16=precision.fp16,
        bf16=precision.dtype == torch.bfloat16,
        dataloader_num_workers=int(torch.cuda.is_available()) if workers == AUTO else workers,
        seed=training.seed,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=training.save_steps or per_epoch,
        save_total_limit=training.save_total_limit,
        report_to=report_to,
        run_name=output_dir.name,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
    )
    # DataParallel would split packed rows; DDP handles several GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
