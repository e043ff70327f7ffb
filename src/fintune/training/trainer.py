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
        engine: asks the model under training; it scores the validation records.
        validation: for each task the records and tokenized examples that are validated on.
        steps_per_epoch: optimizer steps in one epoch of the recipe.
        save_extra: called with each folder an adapter is saved to, to add the manifest.
        meter: counts the steps.
        batch_size: validation examples computed at once.
        figure: decides which weights are best; None does not ask.
        keeps_best: the adapter has those in the end, not the last ones.
        intervals: when validation asks for answers, too; None is always.
        patience: validations without a better step after which training ends; None is never.
        best: what an earlier part of the run has kept.
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
        """Of the weights that are kept: each task's validation records and what it answers to them."""
        self.answered_at = -1
        """The step whose answers they are."""
        self.former = checkpoints(self.args.output_dir)
        """Of an earlier run, which go when this one has its first."""
        self.steps_per_epoch = steps_per_epoch
        self.save_extra = save_extra
        self.pissa_start = pissa_start
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.objective = self.train_dataset.objective
        self.meter = meter
        self.batch_size = batch_size
        self.add_callback(meter)
        self.validated: dict[str, float] = {}
        """What validation says of the weights that are kept."""
        self.callback_handler.callbacks.insert(0, _AtTheEnd(self))  # before trackers close
        self._sums = torch.zeros(
            len(self.train_dataset.tasks), len(self.objective.shown), device=self.args.device
        )
        """(tasks, figures): the sum of the examples' values since the last log."""
        self._seen = torch.zeros(len(self.train_dataset.tasks))
        """(tasks,), on the CPU: the number of these examples."""

    # The step -----------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one optimizer step; returns its loss (among processes, this one's part
        times their number, for what is averaged over them is then the step's loss and gradient)."""
        if not model.training:
            model.train()
        if self.is_fsdp_enabled:  # every forward pass gathers weights: all processes must make as many
            rows = torch.tensor([len(inputs.rows)], device=self.args.device)
            inputs = inputs.padded(int(self.accelerator.gather(rows).max()))
        # No number is read back below: that would wait for the GPU, which would then wait for the next pass.
        step = inputs.to(self.args.device)
        total = torch.zeros((), device=self.args.device)
        for i, row in enumerate(step.rows):
            last = i == len(step.rows) - 1  # gradients are exchanged once, after the last row
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
        """What the model, perhaps wrapped by DDP or FSDP, says of the row's completions."""
        spans, packed = row.packed.spans, row.packed

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
        """The objective's figures of every task on its validation examples; where due, its metrics too."""
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
        """Keep the weights if they are the best so far: of equals the earliest, in every process the same."""
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
        """Put the best weights into the model, once it is trained, and validate them with answers."""
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
        """The figures of the whole run (`throughput.speeds`) and their sums, of all processes."""
        self.meter.settle()
        sums = self._summed(self.meter.totals)
        return {**sums, **speeds(sums, self.meter.flops, self.meter.peak, self.args.world_size)}

    def _summed(self, counts: dict[str, float]) -> dict[str, float]:
        """What the steps counted, over all processes; `seconds` are this one's, for all wait for all."""
        if self.args.world_size == 1:
            return dict(counts)
        values = torch.tensor([counts[name] for name in SUMS], device=self.args.device)
        return {**counts, **dict(zip(SUMS, self.accelerator.reduce(values, "sum").tolist(), strict=True))}

    def _means(self) -> dict[str, float]:
        """`<task>_<figure>` of the examples since the last call, of all processes."""
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
        """Write a checkpoint beside its place and move it there whole."""
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
                    if not self.is_fsdp_enabled:  # each process has a part of the weights, and none goes on
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


def _whole_step(steps: list[Step]) -> Step:
    """The step that the data loader made; in a worker of its own its tensors go to this process as one."""
    (step,) = steps
    return step.to("cpu", gather=True) if torch.utils.data.get_worker_info() else step


class _AtTheEnd(transformers.TrainerCallback):
    """Has the trainer keep the best weights when all steps are done, or when no better ones came."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps or self.trainer.stopped_early:
            self.trainer.keep_best()
