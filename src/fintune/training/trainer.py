"""`transformers.Trainer` with multi-task steps: one item of its dataset is a whole optimizer step.

The Trainer keeps what it does well (optimizer, schedule, clipping, checkpoints, trackers); what is ours
is the step (rows with shared prefixes, the weighted loss), validation by task, and atomic checkpoints.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from fintune.files import replace_folder
from fintune.inference.engine import Engine
from fintune.kernels.likelihood import span_log_likelihoods, span_mean_nll, target_nll
from fintune.models import pissa
from fintune.models.adapters import mixed_precision
from fintune.prompts import TokenizedExample
from fintune.tasks import Record
from fintune.training.steps import Step, StepBuilder
from fintune.training.throughput import SUMS, Meter, speeds

GENERATED_FOR_VALIDATION = 8
"""Validation examples of a text task that are generated and scored; the loss uses all of them."""


class MultiTaskTrainer(transformers.Trainer):
    """Trains an adapter on a `StepBuilder`; `training/run.py` puts it together.

    Args:
        engine: asks the model under training; it scores the validation records.
        validation: for each task the records and tokenized examples that are validated on.
        steps_per_epoch: optimizer steps in one epoch of the recipe.
        save_extra: called with each folder an adapter is saved to, to add the manifest.
        meter: counts the steps.
        batch_size: validation examples computed at once.
        pissa_start: with PiSSA what `pissa.initial_state` returned; adapters are saved as plain LoRA.
        loraplus_lr_ratio: with LoRA+ the learning rate of B over that of A.
        regression_loss_weight: that of the squared error of numbers' expectations (see `training/steps.py`).
    """

    control: Any
    optimizer: Any

    def __init__(
        self,
        *,
        engine: Engine,
        validation: Mapping[str, tuple[Sequence[Record], Sequence[TokenizedExample]]],
        steps_per_epoch: float,
        save_extra: Callable[[Path], None],
        meter: Meter,
        batch_size: int,
        pissa_start: pissa.State | None = None,
        loraplus_lr_ratio: float | None = None,
        regression_loss_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=lambda items: items[0], eval_dataset=dict(validation), **kwargs)
        self.engine = engine
        self.validation = validation
        self.steps_per_epoch = steps_per_epoch
        self.save_extra = save_extra
        self.pissa_start = pissa_start
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.regression_loss_weight = regression_loss_weight
        self.meter = meter
        self.batch_size = batch_size
        self.add_callback(meter)
        self._task_nll: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    # The step -----------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one optimizer step; returns its loss (among processes, this one's part
        times their number, for what is averaged over them is then the step's loss and gradient)."""
        model.train()
        if self.is_fsdp_enabled:  # every forward pass gathers weights: all processes must make as many
            rows = torch.tensor([len(inputs.rows)], device=self.args.device)
            inputs = inputs.padded(int(self.accelerator.gather(rows).max()))
        total = torch.zeros((), device=self.args.device)
        last = len(inputs.rows) - 1
        for i, (row, weights, tasks, numbers) in enumerate(
            zip(inputs.rows, inputs.weights, inputs.tasks, inputs.expectations, strict=True)
        ):
            together = contextlib.nullcontext() if i == last else self.accelerator.no_sync(model)
            with together:
                nll, likelihoods = self._row_nll(model, row)
                loss = (weights.to(nll.device) * nll).sum()
                if numbers is not None:
                    loss = loss + self.regression_loss_weight * numbers.loss(likelihoods)
                loss = loss * self.args.world_size
                self.accelerator.backward(loss)
            total += loss.detach()
            for task, value in zip(tasks, nll.tolist(), strict=bool(tasks)):  # a padding row has none
                if not task:  # a level beside the target
                    continue
                self._task_nll[task][0] += value
                self._task_nll[task][1] += 1
        self.meter.add(inputs)
        return total

    def _row_nll(self, model: Any, row: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(spans,) mean negative log-likelihood of each completion in a row, and (spans,) log-likelihood."""
        row = row.to(self.args.device)
        with mixed_precision(self.model, self.engine.builtin.peft_forwards):
            nll = target_nll(model, row, self.engine.builtin.by_blocks, self.engine.builtin.head)
        return span_mean_nll(nll, row.owner, row.spans), span_log_likelihoods(nll, row.owner, row.spans)

    def get_train_dataloader(self) -> Any:
        """The steps in the schedule's own order."""
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=1,
            shuffle=False,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        return None  # every step carries its own denominator

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # reported by the run itself, from the tokens computed

    def create_optimizer(self, model: Any = None) -> Any:
        if self.loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        from peft.optimizers import create_loraplus_optimizer

        cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model,
            cls,
            loraplus_lr_ratio=self.loraplus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **settings,
        )
        return self.optimizer

    # Validation and logs ------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and metrics of every task on its validation records."""
        logs: dict[str, float] = {}
        losses = []
        builder: StepBuilder = self.train_dataset
        for task, (records, examples) in self.validation.items():
            if not records:
                continue
            logs[f"eval_{task}_loss"] = self._validation_loss(builder, examples)
            losses.append(logs[f"eval_{task}_loss"])
            owner = self.engine.tasks[task]
            shown = records if owner.decoding == "candidates" else records[:GENERATED_FOR_VALIDATION]
            metrics = owner.score(shown, self.engine.predict(task, shown, batch_size=self.batch_size))
            logs |= {f"eval_{task}_{k}": v for k, v in metrics.items() if math.isfinite(v)}
        if losses:
            logs["eval_loss"] = sum(losses) / len(losses)
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    @torch.no_grad()
    def _validation_loss(self, builder: StepBuilder, examples: Sequence[TokenizedExample]) -> float:
        self.model.eval()
        rows = builder.build(examples).rows  # unweighted below: the loss of a task is its plain mean
        values = torch.cat([self._row_nll(self.model, row)[0].float().cpu() for row in rows])
        return float(values.mean())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tasks' training losses since the last log, and the epoch as the recipe counts it."""
        if "loss" in logs:
            for task, (total, count) in sorted(self._over_processes().items()):
                logs[f"{task}_loss"] = total / count
            self._task_nll.clear()
            logs |= self.meter.window()
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)

    def speeds(self) -> dict[str, float]:
        """The figures of the whole run (`throughput.speeds`) and their sums, of all processes."""
        sums = dict(self.meter.totals)
        if self.args.world_size > 1:
            values = torch.tensor([sums[name] for name in SUMS], device=self.args.device)
            reduced = self.accelerator.reduce(values, "sum").tolist()
            sums |= zip(SUMS, reduced, strict=True)
        return {**sums, **speeds(sums, self.meter.flops, self.meter.peak, self.args.world_size)}

    def _over_processes(self) -> dict[str, list[float]]:
        """For each task the sum and the number of its losses since the last log, of all processes."""
        if self.args.world_size == 1:
            return dict(self._task_nll)
        names = [task.name for task in self.engine.tasks]
        table = torch.tensor([self._task_nll.get(name, [0.0, 0.0]) for name in names])
        table = self.accelerator.reduce(table.to(self.args.device), "sum").tolist()
        return {name: row for name, row in zip(names, table, strict=True) if row[1]}

    # Checkpoints --------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there whole."""
        output_dir = Path(self.args.output_dir)
        staging = output_dir / ".checkpoint-in-writing"
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            for folder in staging.iterdir() if first else ():
                replace_folder(folder, output_dir / folder.name)
        finally:
            self.args.output_dir = str(output_dir)
            if first:
                shutil.rmtree(staging, ignore_errors=True)
        for old in checkpoints(output_dir)[: -self.args.save_total_limit] if first else ():
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the model came with the checkpoint's adapter."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A plain PEFT adapter, its tokenizer and its manifest (and no pickled arguments)."""
        if not self.args.should_save:  # this process is not the first
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # Without the last argument PEFT looks the base model up on the hub, to see whether it grew.
        self.model.save_pretrained(
            folder, state_dict=state_dict, safe_serialization=True, save_embedding_layers=False
        )
        if self.pissa_start is not None:
            pissa.export(folder, self.pissa_start)
        self.engine.tokenizer.save_pretrained(folder)
        self.save_extra(folder)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, the one written last at the end."""
    found = [p for p in Path(output_dir).glob("checkpoint-[0-9]*") if p.is_dir()]
    return sorted(found, key=lambda p: (os.path.getmtime(p), int(p.name.rpartition("-")[2])))
