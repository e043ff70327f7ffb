"""`transformers.Trainer` with multi-task steps: one item of its dataset is a whole optimizer step.

The Trainer keeps what it does well (optimizer, schedule, clipping, checkpoints, trackers); what is ours
is the step (rows with shared prefixes, examples weighted), validation by task, and atomic checkpoints.
What an example's loss is, and what is shown of it, is the objective's (`objectives.py`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from fintune.files import replace_folder
from fintune.inference.engine import Engine
from fintune.kernels.likelihood import target_nll
from fintune.models import pissa
from fintune.models.adapters import mixed_precision, save, without_adapter
from fintune.prompts import TokenizedExample
from fintune.tasks import Record
from fintune.training.checkpoints import checkpoints
from fintune.training.objectives import Row, Scores
from fintune.training.steps import Step
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
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=lambda items: items[0], eval_dataset=dict(validation), **kwargs)
        self.engine = engine
        self.validation = validation
        self.steps_per_epoch = steps_per_epoch
        self.save_extra = save_extra
        self.pissa_start = pissa_start
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.objective = self.train_dataset.objective
        self.meter = meter
        self.batch_size = batch_size
        self.add_callback(meter)
        self._figures: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        """(task, figure) → the sum and the number of the examples' values since the last log."""

    # The step -----------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one optimizer step; returns its loss (among processes, this one's part
        times their number, for what is averaged over them is then the step's loss and gradient)."""
        model.train()
        if self.is_fsdp_enabled:  # every forward pass gathers weights: all processes must make as many
            rows = torch.tensor([len(inputs.rows)], device=self.args.device)
            inputs = inputs.padded(int(self.accelerator.gather(rows).max()))
        total = torch.zeros((), device=self.args.device)
        for i, row in enumerate(inputs.rows):
            last = i == len(inputs.rows) - 1  # gradients are exchanged once, after the last row
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                scores = self._scores(model, row)
                losses = self.objective.loss(scores, row)  # (E,)
                loss = (row.weights.to(losses.device) * losses).sum() * self.args.world_size
                self.accelerator.backward(loss)
            total += loss.detach()
            if row.counted:
                for name, values in self.objective.figures(scores, row).items():
                    for example, value in zip(row.examples, values.tolist(), strict=True):
                        self._figures[example.task, name][0] += value
                        self._figures[example.task, name][1] += 1
        self.meter.add(inputs)
        return total

    def _scores(self, model: Any, row: Row) -> Scores:
        """What the model, perhaps wrapped by DDP or FSDP, says of the row's completions."""
        spans, packed = row.packed.spans, row.packed.to(self.args.device)

        def token_nll() -> torch.Tensor:
            with mixed_precision(self.model, self.engine.builtin.peft_forwards):
                return target_nll(model, packed, self.engine.builtin.by_blocks, self.engine.builtin.head)

        @functools.cache  # loss and figures may both ask: one pass, and as many in every process
        def reference() -> Scores:
            with torch.no_grad(), without_adapter(self.model):
                return Scores(token_nll(), packed.owner, spans, reference)

        return Scores(token_nll(), packed.owner, spans, reference)

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
        """The objective's figures and the task's metrics, of every task on its validation records."""
        logs: dict[str, float] = {}
        losses = []
        for task, (records, examples) in self.validation.items():
            if not records:
                continue
            figures = self._validation_figures(examples)
            logs |= {f"eval_{task}_{name}": value for name, value in figures.items()}
            losses.append(figures["loss"])
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
    def _validation_figures(self, examples: Sequence[TokenizedExample]) -> dict[str, float]:
        """The plain mean of each figure over one task's examples."""
        self.model.eval()
        values: dict[str, list[torch.Tensor]] = defaultdict(list)
        for row in self.train_dataset.build(examples).rows:
            for name, own in self.objective.figures(self._scores(self.model, row), row).items():
                values[name].append(own.float().cpu())
        return {name: float(torch.cat(own).mean()) for name, own in values.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tasks' figures since the last log, and the epoch as the recipe counts it."""
        if "loss" in logs:
            for (task, name), (total, count) in sorted(self._over_processes().items()):
                logs[f"{task}_{name}"] = total / count
            self._figures.clear()
            window = self._summed(self.meter.window())
            if window["seconds"]:
                logs |= speeds(window, self.meter.flops, self.meter.peak, self.args.world_size)
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)

    def speeds(self) -> dict[str, float]:
        """The figures of the whole run (`throughput.speeds`) and their sums, of all processes."""
        sums = self._summed(self.meter.totals)
        return {**sums, **speeds(sums, self.meter.flops, self.meter.peak, self.args.world_size)}

    def _summed(self, counts: dict[str, float]) -> dict[str, float]:
        """What the steps counted, over all processes; `seconds` are this one's, for all wait for all."""
        if self.args.world_size == 1:
            return dict(counts)
        values = torch.tensor([counts[name] for name in SUMS], device=self.args.device)
        return {**counts, **dict(zip(SUMS, self.accelerator.reduce(values, "sum").tolist(), strict=True))}

    def _over_processes(self) -> dict[tuple[str, str], list[float]]:
        """`_figures` summed over all processes; what no process has seen is left out."""
        if self.args.world_size == 1:
            return dict(self._figures)
        keys = [(task.name, name) for task in self.engine.tasks for name in self.objective.shown]
        table = torch.tensor([self._figures.get(key, [0.0, 0.0]) for key in keys])  # the same rows everywhere
        table = self.accelerator.reduce(table.to(self.args.device), "sum").tolist()
        return {key: row for key, row in zip(keys, table, strict=True) if row[1]}

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
        save(self.model, self.engine.tokenizer, folder, state_dict)
        if self.pissa_start is not None:
            pissa.export(folder, self.pissa_start)
        self.save_extra(folder)
