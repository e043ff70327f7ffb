"""Extends `transformers.Trainer` with multi-task steps: one dataset item is a whole optimizer step.

The Trainer does optimizer, schedule, clipping, checkpoints and trackers. Our own are the step (rows with
shared prefixes, weighted examples), validation by task, and atomic checkpoints. The objective
(`objectives.py`) defines an example's loss and its logged figures.
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
from accelerate.utils import broadcast

from fintune.files import like_neighbours, replace_folder, room_for
from fintune.inference.engine import Engine
from fintune.kernels.likelihood import target_nll
from fintune.models import pissa
from fintune.models.adapters import mixed_precision, save, without_adapter
from fintune.prompts import TokenizedExample
from fintune.tasks import Prediction, Record
from fintune.training.checkpoints import checkpoint_bytes, checkpoints, saved
from fintune.training.objectives import Row, Scores
from fintune.training.steps import Step
from fintune.training.throughput import SUMS, Meter, speeds
from fintune.training.validating import GENERATED, Best, Figure, Intervals

with contextlib.redirect_stdout(None):  # it prints a line where WANDB_MODE is "offline"
    from transformers import Trainer


class MultiTaskTrainer(Trainer):
    """Trains an adapter on a `StepBuilder`; `training/run.py` puts it together.

    Args:
        engine: scores the validation records with the model under training.
        validation: each task's validation records and tokenized examples.
        steps_per_epoch: optimizer steps in one epoch of the recipe.
        save_extra: called with each folder an adapter is saved to, to add the manifest.
        meter: counts the steps.
        batch_size: validation examples per batch.
        figure: decides which weights are best; None never decides.
        keeps_best: end with the best weights instead of the last ones.
        intervals: how often validation also computes answers; None is always.
        patience: stop after this many validations without a better one; None never stops.
        best: what an earlier part of the run kept.
        pissa_start: with PiSSA, the result of `pissa.initial_state`; adapters are saved as plain LoRA.
        loraplus_lr_ratio: with LoRA+, the learning rate of B divided by that of A.
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
        figure: Figure | None = None,
        keeps_best: bool = True,
        intervals: Intervals | None = None,
        patience: int | None = None,
        best: Best | None = None,
        pissa_start: pissa.State | None = None,
        loraplus_lr_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=_whole_step, eval_dataset=dict(validation), **kwargs)
        self.engine = engine
        self.validation = validation
        self.figure = figure
        self.keeps_best = keeps_best
        self.intervals = intervals or Intervals(1, 1)
        self.patience = patience
        self.best = best or Best()
        self.stopped_early = False
        self.answers: dict[str, tuple[Sequence[Record], Sequence[Prediction]]] = {}
        """Each task's validation records and its answers with the kept weights."""
        self.answered_at = -1
        """The step that these answers belong to."""
        self.former = checkpoints(self.args.output_dir)
        """Checkpoints of an earlier run, removed when this run has its first."""
        self.steps_per_epoch = steps_per_epoch
        self.save_extra = save_extra
        self.pissa_start = pissa_start
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.objective = self.train_dataset.objective
        self.meter = meter
        self.batch_size = batch_size
        self.add_callback(meter)
        self.validated: dict[str, float] = {}
        """Validation figures of the kept weights."""
        self.callback_handler.callbacks.insert(0, _AtTheEnd(self))  # before trackers close
        self._sums = torch.zeros(
            len(self.train_dataset.tasks), len(self.objective.shown), device=self.args.device
        )
        """(tasks, figures): the sum of the examples' values since the last log."""
        self._seen = torch.zeros(len(self.train_dataset.tasks))
        """(tasks,), on the CPU: the number of these examples."""

    # The step -----------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one optimizer step; returns its loss. With several processes it is this
        one's part times their number, because loss and gradients are then averaged over processes."""
        if not model.training:
            model.train()
        if self.is_fsdp_enabled:  # each forward pass gathers weights, so all processes make equally many
            rows = torch.tensor([len(inputs.rows)], device=self.args.device)
            inputs = inputs.padded(int(self.accelerator.gather(rows).max()))
        # No number is read back below: that would wait for the GPU, which would then wait for the next pass.
        step = inputs.to(self.args.device)
        total = torch.zeros((), device=self.args.device)
        for i, row in enumerate(step.rows):
            last = i == len(step.rows) - 1  # exchange gradients once, after the last row
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                scores = self._scores(model, row)
                losses = self.objective.loss(scores, row)  # (E,)
                loss = (row.weights * losses).sum() * self.args.world_size
                self.accelerator.backward(loss)
            total += loss.detach()
            if row.counted:
                figures = self.objective.figures(scores, row)
                values_EF = torch.stack([figures[name].detach() for name in self.objective.shown], dim=1)
                self._sums.index_add_(0, row.tasks, values_EF.to(self._sums.dtype))
                self._seen += inputs.rows[i].tasks.bincount(minlength=len(self._seen))
        self.meter.add(inputs)
        return total

    def _scores(self, model: Any, row: Row) -> Scores:
        """The model's scores of the row's completions; DDP or FSDP may wrap the model."""
        spans, packed = row.packed.spans, row.packed

        def token_nll() -> torch.Tensor:
            with mixed_precision(self.model, self.engine.builtin.peft_forwards):
                return target_nll(model, packed, self.engine.builtin.by_blocks, self.engine.builtin.head)

        @functools.cache  # loss and figures may both ask: compute it once, equally often in every process
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
        return 0  # the run reports it, from the tokens computed

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
        """Each task's figures on its validation examples and, where due, its metrics."""
        logs: dict[str, float] = {}
        losses = []
        for task, (_, examples) in self.validation.items():
            figures = self._validation_figures(examples)
            logs |= {f"eval_{task}_{name}": value for name, value in figures.items()}
            losses.append(figures["loss"])
        if losses:
            logs["eval_loss"] = sum(losses) / len(losses)
        if self.state.global_step % self.intervals.answers == 0:
            logs |= self._answer()
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _answer(self) -> dict[str, float]:
        """Answer the validation records, and return every task's metrics."""
        logs: dict[str, float] = {}
        self.answered_at = self.state.global_step
        for task, (records, _) in self.validation.items():
            owner = self.engine.tasks[task]
            shown = records if owner.decoding == "candidates" else records[:GENERATED]
            found = self.engine.predict(task, shown, batch_size=self.batch_size)
            self.answers[task] = (shown, found)
            metrics = owner.score(shown, found)
            logs |= {f"eval_{task}_{k}": v for k, v in metrics.items() if math.isfinite(v)}
        return logs

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keep the weights if they are the best so far; the earliest wins a tie. All processes agree."""
        if self.figure is None or not self.validation:
            return False
        value = torch.tensor(metrics.get(self.figure.name, math.nan), device=self.args.device)
        now = float(broadcast(value))
        if better := self.best.is_worse_than(now, self.figure):
            self.best.take(self.model if self.keeps_best else None, self.state.global_step, now)
        elif self.patience and self._validations_since_best() >= self.patience:
            self.stopped_early = self.control.should_training_stop = True
            self.control.should_save = True
        return better

    def _validations_since_best(self) -> int:
        steps = {entry["step"] for entry in self.state.log_history if "eval_loss" in entry}
        return sum(step > self.best.step for step in steps)

    def keep_best(self) -> None:
        """Load the best weights into the trained model, and validate them with answers."""
        last = self.state.global_step
        step = self.best.step if self.keeps_best and self.best.step else last
        if step != last:
            self.best.give_back(self.model)
        if not self.validation:
            return
        seen = [e for e in self.state.log_history if e["step"] == step and "eval_loss" in e]
        seen = seen or [self.evaluate()]  # resumed where a run of an earlier version ended
        figures = {name: value for name, value in seen[0].items() if name.startswith("eval_")}
        if self.answered_at != step:
            self.state.global_step = step
            self.log(answered := self._answer())
            self.state.global_step = last
            figures |= answered
        self.validated = {**figures, "step": step}

    @torch.no_grad()
    def _validation_figures(self, examples: Sequence[TokenizedExample]) -> dict[str, float]:
        """The plain mean of each figure over one task's examples."""
        self.model.eval()
        values: dict[str, list[torch.Tensor]] = defaultdict(list)
        for row in self.train_dataset.build(examples).to(self.args.device).rows:
            for name, own in self.objective.figures(self._scores(self.model, row), row).items():
                values[name].append(own.float())
        return {name: float(torch.cat(own).mean()) for name, own in values.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tasks' figures since the last log, and the epoch as the recipe counts it."""
        if "loss" in logs:
            logs |= self._means()
            window = self._summed(self.meter.window())
            if window["seconds"]:
                logs |= speeds(window, self.meter.flops, self.meter.peak, self.args.world_size)
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)

    def speeds(self) -> dict[str, float]:
        """The speeds of the whole run (`throughput.speeds`) and the sums behind them, over all processes."""
        self.meter.settle()
        sums = self._summed(self.meter.totals)
        return {**sums, **speeds(sums, self.meter.flops, self.meter.peak, self.args.world_size)}

    def _summed(self, counts: dict[str, float]) -> dict[str, float]:
        """The steps' counts, summed over processes; `seconds` are this one's, since each waits for all."""
        if self.args.world_size == 1:
            return dict(counts)
        values = torch.tensor([counts[name] for name in SUMS], device=self.args.device)
        return {**counts, **dict(zip(SUMS, self.accelerator.reduce(values, "sum").tolist(), strict=True))}

    def _means(self) -> dict[str, float]:
        """`<task>_<figure>`: means over the examples of all processes since the last call."""
        table = torch.cat(
            [self._sums, self._seen.to(self._sums.device)[:, None]], dim=1
        )  # (tasks, figures + 1)
        if self.args.world_size > 1:
            table = self.accelerator.reduce(table, "sum")
        self._sums.zero_()
        self._seen.zero_()
        rows = sorted(zip(self.train_dataset.tasks, table.tolist(), strict=True))
        return {
            f"{task}_{name}": value / count
            for task, (*values, count) in rows
            for name, value in zip(self.objective.shown, values, strict=True)
            if count
        }

    # Checkpoints --------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint to a staging folder, then move it into place."""
        output_dir = Path(self.args.output_dir)
        staging = output_dir / ".checkpoint-in-writing"
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        what = f"the checkpoint of step {self.state.global_step}"
        with room_for(output_dir, checkpoint_bytes(self.model), what, saved(output_dir)):
            self.args.output_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                for folder in staging.iterdir() if first else ():
                    if not self.is_fsdp_enabled:  # each process has only a part of the weights
                        self.best.save(folder)
                    like_neighbours(folder)
                    replace_folder(folder, output_dir / folder.name)
            finally:
                self.args.output_dir = str(output_dir)
                if first:
                    shutil.rmtree(staging, ignore_errors=True)
        own = f"checkpoint-{self.state.global_step}"
        former = [old for old in self.former if old.name != own]
        surplus = [*former, *checkpoints(output_dir)[: -self.args.save_total_limit]]
        for old in surplus if first else ():
            shutil.rmtree(old, ignore_errors=True)
        self.former = []
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the model already has the checkpoint's adapter."""

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


def _whole_step(steps: list[Step]) -> Step:
    """The data loader's step; a worker process sends its tensors to this process as one."""
    (step,) = steps
    return step.to("cpu", gather=True) if torch.utils.data.get_worker_info() else step


class _AtTheEnd(transformers.TrainerCallback):
    """Makes the trainer restore the best weights when training is done or stopped early."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps or self.trainer.stopped_early:
            self.trainer.keep_best()
