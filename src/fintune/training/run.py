"""Trains an adapter from a recipe: prepares data, plans, trains and saves."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState

from fintune.config import AUTO, Recipe
from fintune.data.prepare.dataset import PreparedDataset, prepare
from fintune.errors import ConfigError, Interrupted
from fintune.files import Lock, read_json, refuse_small_disk, replace_files, room_for
from fintune.inference.calibration import calibrate
from fintune.inference.engine import Engine
from fintune.kernels import compiled
from fintune.kernels.probing import length_warning
from fintune.models import adapters, base, card, manifest, pissa, recomputation
from fintune.models.placement import Process
from fintune.progress import duration
from fintune.prompts import PromptTemplate, TokenizedExample
from fintune.provenance import peak_memory, stamp
from fintune.tasks import Record, TaskSet
from fintune.training import mix, verdict
from fintune.training.arguments import training_arguments, warmup_of
from fintune.training.callbacks import Progress, log_to_file, tensorboard, wandb
from fintune.training.checkpoints import (
    check_same_data,
    checkpoint_bytes,
    checkpoints,
    going_on,
    origin,
    saved,
)
from fintune.training.class_weights import add_class_weights
from fintune.training.fit import choices, few_steps, fitted, row_size, small_passes, with_row_tokens
from fintune.training.objectives import Objective, objective_of
from fintune.training.steps import StepBuilder, shared_prefixes
from fintune.training.stopping import Stopping
from fintune.training.throughput import SPEEDS, FlopCount, Meter, matrix_peak
from fintune.training.trainer import MultiTaskTrainer
from fintune.training.validating import Best, figure_of, intervals

logger = logging.getLogger("fintune.train")

Say = Callable[[str], None]
PARTS = (".json", ".md", ".html", "-predictions.jsonl")
"""File name endings of the evaluation results beside an adapter."""


@dataclasses.dataclass(frozen=True)
class Plan(mix.Draw):
    """What a run will do, decided before the model is loaded.

    Attributes:
        objective: what the run minimizes.
        examples: all training examples that the schedule draws from, tokenized.
        schedule: the optimizer steps, each a list of indices into `examples`.
    """

    objective: Objective
    examples: list[TokenizedExample]
    schedule: list[list[int]]

    @property
    def truncated(self) -> int:
        """The number of examples whose text was truncated to `training.max_length`."""
        return sum(example.truncated for example in self.examples)

    @property
    def lengths(self) -> list[int]:
        """The tokens of each example, in the order of the schedule."""
        return [len(self.examples[i]) for step in self.schedule for i in step]


def make_plan(recipe: Recipe, tasks: TaskSet, records: dict[str, list[Record]], template: Any) -> Plan:
    """Tokenize the training records and lay out the optimizer steps.

    Raises:
        ConfigError: `multi_task.class_weights` names a task without labels, or an unknown label.
        DataError: no task has both examples and a weight.
    """
    sizes = {task.name: len(records[task.name]) for task in tasks}
    recipe = fitted(recipe, sizes)
    drawn = mix.draw(recipe, sizes)
    objective = objective_of(recipe)
    examples: list[TokenizedExample] = []
    for name in drawn.per_epoch:
        examples += objective.examples(tasks[name], records[name], template)
    if recipe.multi_task.class_weights:
        everyone = [record for name in drawn.per_epoch for record in records[name]]
        examples = add_class_weights(examples, everyone, tasks, recipe.multi_task.class_weights)
    schedule = mix.steps(recipe, drawn, [example.task for example in examples])
    return Plan(**vars(drawn), objective=objective, examples=examples, schedule=schedule)


class _Run:
    """What every step of `train` works on: the recipe, this process, the prepared data and the plan."""

    def __init__(
        self,
        recipe: Recipe,
        output_dir: Path,
        checkpoint: Path | None,
        start: Path | None,
        prepared: PreparedDataset | None,
        say: Say,
        state: PartialState,
    ) -> None:
        """Prepare the data unless it is prepared, and lay out the steps.

        Args:
            checkpoint: the one to resume from.
            start: the adapter that a new run continues from (`lora_config.init_adapter`).
            state: this process's place among the run's processes.
        """
        self.asked = recipe
        self.output_dir = output_dir
        self.checkpoint = checkpoint
        self.start = start
        self.say = say
        self.state = state
        with state.main_process_first():  # the others find data and base model prepared
            self.prepared = prepared or prepare(recipe, say=say)
            self.tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
        if checkpoint:
            check_same_data(checkpoint, self.prepared)
        transformers.set_seed(recipe.training.seed)
        self.precision = base.choose_precision(recipe.training)
        if self.precision.note:
            say(self.precision.note)
        self.tasks = self.prepared.task_set()
        self.template = PromptTemplate(self.tokenizer, recipe.training.max_length)
        records = {name: self.prepared.records(name, "train") for name in self.tasks.names()}
        recipe = going_on(recipe, checkpoint) if checkpoint else recipe
        self.recipe = with_row_tokens(fitted(recipe, {name: len(own) for name, own in records.items()}))
        self.plan = make_plan(self.recipe, self.tasks, records, self.template)
        validation = {name: self.prepared.records(name, "validation") for name in self.plan.per_epoch}
        self.validation = {name: own for name, own in validation.items() if own}
        """The validation records of each trained task that has some."""
        most = recipe.evaluation.max_validation
        self.held_out = {name: own[:most] for name, own in self.validation.items()}
        self.baselines = verdict.baselines(self.tasks, records, self.held_out)
        shown = self.plan.objective.shown
        self.figure = figure_of(recipe.training, self.tasks, list(self.validation), shown)
        if recipe.training.early_stopping_patience and not self.validation:
            raise ConfigError(
                "training.early_stopping_patience needs validation examples, and there are none: leave it "
                "out."
            )


def train(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    prepared: PreparedDataset | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    use_wandb: bool = False,
    verbose: bool = False,
    say: Say = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an adapter into `output_dir`; return the run's facts as they stand in its manifest.

    Args:
        prepared: the recipe's data, if the caller has prepared it already.
        resume: a checkpoint folder, or "latest" for the newest one in `output_dir`.
        overwrite: replace an adapter or checkpoints in `output_dir` once new ones are written.

    Raises:
        ConfigError, DataError, ModelError: errors that the user can fix.
        Interrupted: by Ctrl-C or SIGTERM; the message says what is saved.
    """
    output_dir = Path(output_dir)
    recomputation.check(recipe.training)
    checkpoint, start = origin(recipe, output_dir, resume, overwrite)
    report_to = wandb() if use_wandb else []
    state = PartialState(cpu=not torch.cuda.is_available())
    say = say if state.is_main_process else lambda line: None
    lock = Lock(output_dir, "lock")
    if state.is_main_process and not lock.take():
        raise ConfigError(
            f"Another run trains into {output_dir} ({lock.holder}): wait for it, or name another "
            "--output_dir."
        )
    log_file = log_to_file(verbose) if state.is_main_process else None
    former = [] if checkpoint else checkpoints(output_dir)
    since = time.time()
    stopping = Stopping(recipe.training.save_minutes)
    try:
        with stopping:
            run = _Run(recipe, output_dir, checkpoint, start, prepared, say, state)
            return _train(run, stopping, report_to, progress, log_file)
    except KeyboardInterrupt as stop:
        found = [
            path for path in checkpoints(output_dir) if path not in former or path.stat().st_mtime > since
        ]
        told = f"Stopped. {f'{found[-1]} is complete' if found else 'No checkpoint was written yet'}."
        told, flag = told if state.is_main_process else "", "--resume_from_checkpoint" if found else ""
        raise Interrupted(told, stop, flag=flag, number=stopping.signal) from None
    finally:
        lock.release()


def _train(
    run: _Run, stopping: Stopping, report_to: list[str], progress: bool, log_file: Path | None
) -> dict[str, Any]:
    say, output_dir, checkpoint = run.say, run.output_dir, run.checkpoint
    model, pissa_start = _model(run)
    engine = _engine(run, model)
    facts = _facts(run, engine)
    trainer = _trainer(
        run, engine, facts, pissa_start, report_to, [Progress(say, run.tasks, progress), stopping]
    )
    _announce(run, facts)
    say(f"Log: {log_file}")
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping.ended or stopping.signal:
        raise KeyboardInterrupt
    facts["training"] = speed = _speed(trainer, time.perf_counter() - began)
    facts["validation"] = trainer.validated
    facts["kept"] = _kept(run, trainer)
    try:
        facts["label_scoring"] = calibrate(engine, run.validation, run.recipe.evaluation)
        found = verdict.warnings(run.tasks, trainer.answers, run.prepared.manifest, run.baselines)
        facts["warnings"] += found
    finally:  # keep the weights even if something fails after the last step
        _save(run, trainer)
    say(
        f"Trained in {duration(speed['seconds'])} ({speed['examples_per_second']:.1f} examples/s, "
        f"{speed['utilisation']:.0%} of the matrix peak, "
        f"peak memory {speed['peak_memory_gib']} GiB). Adapter: {output_dir}"
    )
    for warning in found:
        say(f"Warning: {warning}")
    return facts


def _model(run: _Run) -> tuple[Any, Any]:
    """The base with the adapter to train; with PiSSA also A₀ and B₀, which saving needs."""
    recipe = run.recipe
    run.say(f"Loading {recipe.base_model.name} …")
    model = base.load_base_model(recipe.base_model, run.precision.dtype, Process.of(run.state))
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and recipe.training.max_length > context:
        raise ConfigError(
            f"training.max_length is {recipe.training.max_length}, but {recipe.base_model.name} has a "
            f"context of {context} tokens: set it to {context} or less."
        )
    model, pissa_start = _adapted(run, model)
    model.peft_config["default"].base_model_name_or_path = base.public_name(recipe.base_model.name)
    if recipe.training.gradient_checkpointing:
        recomputation.enable(model, recipe.training.gradient_checkpointing_offload)
    return model, pissa_start


def _adapted(run: _Run, model: Any) -> tuple[Any, Any]:
    """The base with a new adapter, the checkpoint's, or `start`; and PiSSA's A₀ and B₀ or None."""
    lora, seed = run.recipe.lora_config, run.recipe.training.seed
    if lora.pissa and run.checkpoint:
        model = adapters.add_adapter(model, lora.plain(), seed)
        return model, pissa.resume(model, run.checkpoint)
    if lora.pissa:
        run.say("Computing singular values of the base's weights (PiSSA) …")
        model = adapters.add_adapter(model, lora, seed)
        return model, pissa.initial_state(model)
    if run.checkpoint:
        return adapters.load_adapter(model, run.checkpoint, trainable=True), None
    if run.start:
        run.say(f"Continuing from the adapter {run.start}.")
        return adapters.start_from(model, lora, run.start, seed), None
    return adapters.add_adapter(model, lora, seed), None


def _engine(run: _Run, model: Any) -> Engine:
    """The engine of the model under training; creating it switches the model to packed rows."""
    training, name = run.recipe.training, run.recipe.base_model.name
    engine = Engine(model, run.tokenizer, run.tasks, training.max_length, name)
    logger.info("%d of %d LoRA layers take the fast path", *engine.builtin.fast_layers)
    if training.torch_compile:
        count = compiled.enable(model)
        run.say(f"{count} layers are compiled: the first step takes a minute or two longer.")
    for line in filter(None, [str(engine.builtin.support), length_warning(model, training.max_length)]):
        run.say(f"{name}: {line}.")
    if (asked := run.plan.objective.asks_for_branches) and not engine.builtin.support.several:
        raise ConfigError(
            f"{asked}, but {name} cannot compute several answers to one prompt at once: set it to 0."
        )
    return engine


def _shares_prefixes(run: _Run, engine: Engine) -> bool:
    return bool(run.recipe.training.shared_prefix and engine.builtin.by_blocks)


def _facts(run: _Run, engine: Engine) -> dict[str, Any]:
    """The manifest's facts about the run that are known before training."""
    refuse_small_disk(run.output_dir, checkpoint_bytes(engine.model), "a checkpoint")
    trainable, total = adapters.count_parameters(engine.model)
    plan, lengths = run.plan, run.plan.lengths
    warnings = (
        few_steps(len(plan.schedule)),
        _long_warmup(run),
        small_passes(run.asked, run.recipe, sum(lengths) / len(lengths)),
    )
    return {
        **stamp(),
        "base_model": run.recipe.base_model.name,
        "trainable_parameters": trainable,
        "all_parameters": total,
        "examples_per_epoch": plan.per_epoch,
        "optimizer_steps": len(plan.schedule),
        "step_size": plan.step_size,
        "fitted": [key for key, value in run.asked.training if value == AUTO],
        "truncated_examples": plan.truncated,
        "resumed_from": run.checkpoint.name if run.checkpoint else None,
        "shared_prefix_tokens": shared_prefixes(plan.examples) if _shares_prefixes(run, engine) else {},
        "seed": run.recipe.training.seed,
        "processes": run.state.num_processes,
        "dtype": str(run.precision.dtype).removeprefix("torch."),
        "data": run.prepared.manifest,
        "warnings": list(filter(None, warnings)),
    }


def _long_warmup(run: _Run) -> str:
    training, steps = run.recipe.training, len(run.plan.schedule)
    if (warmup := warmup_of(training, steps)) < steps:
        return ""
    return (
        f"training.warmup_steps is {warmup}, but the run has {steps} optimizer steps: the learning rate "
        f"never reaches {training.learning_rate:g}. Leave it out to fit it to the run."
    )


def _steps(run: _Run, engine: Engine) -> StepBuilder:
    """The plan's optimizer steps; this process computes its part of each."""
    training = run.recipe.training
    return StepBuilder(
        run.plan.examples,
        run.plan.schedule,
        run.plan.loss_weights,
        row_size=row_size(run.asked, run.recipe) if engine.builtin.support.several else 1,
        row_tokens=training.row_tokens,
        share=_shares_prefixes(run, engine),
        rank=run.state.process_index,
        world=run.state.num_processes,
        objective=run.plan.objective,
    )


def _trainer(
    run: _Run,
    engine: Engine,
    facts: dict[str, Any],
    pissa_start: Any,
    report_to: list[str],
    callbacks: list[transformers.TrainerCallback],
) -> MultiTaskTrainer:
    """The trainer of the plan's steps. With each adapter it saves a manifest and a card from `facts`."""
    plan, training, recipe = run.plan, run.recipe.training, run.recipe

    def save_manifest(folder: Path) -> None:
        manifest.write(folder, recipe, run.tasks, **facts)
        card.write(folder, facts, recipe, run.prepared)

    examples = {
        name: plan.objective.held_out(run.tasks[name], rows, run.template)
        for name, rows in run.held_out.items()
    }
    steps = len(plan.schedule)
    tokens = sum(plan.lengths) / steps / run.state.num_processes
    every = intervals(training, run.figure, run.tasks, examples, tokens, steps)
    with run.state.local_main_process_first():  # one process measures, the others read its result
        peak = matrix_peak()
    trainer = MultiTaskTrainer(
        engine=engine,
        validation={name: (rows, examples[name]) for name, rows in run.held_out.items()},
        figure=run.figure,
        keeps_best=training.load_best_model_at_end,
        intervals=every,
        patience=training.early_stopping_patience,
        best=Best.load(run.checkpoint),
        steps_per_epoch=plan.steps_per_epoch,
        save_extra=save_manifest,
        batch_size=training.per_device_train_batch_size,
        pissa_start=pissa_start,
        loraplus_lr_ratio=training.loraplus_lr_ratio,
        meter=Meter(FlopCount(engine.model), peak),
        model=engine.model,
        train_dataset=_steps(run, engine),
        args=training_arguments(
            recipe, run.output_dir, steps, every.loss, plan.steps_per_epoch, run.precision, report_to
        ),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    curves = tensorboard(run.output_dir) if run.state.is_main_process else []
    for callback in (*callbacks, *curves):
        trainer.add_callback(callback)
    return trainer


def _announce(run: _Run, facts: dict[str, Any]) -> None:
    """Print what will be trained, before the bar starts."""
    plan, training = run.plan, run.recipe.training
    trainable, total = facts["trainable_parameters"], facts["all_parameters"]
    run.say(
        f"Training {trainable:,} of {total:,} parameters ({trainable / total:.2%}) in {facts['dtype']}: "
        f"{len(plan.schedule)} steps of {plan.step_size} examples "
        f"({', '.join(f'{name} {count}' for name, count in plan.per_epoch.items())} an epoch)."
    )
    for line in filter(None, [choices(run.asked, run.recipe), *(f"Warning: {w}" for w in facts["warnings"])]):
        run.say(line)
    if plan.truncated:
        run.say(f"{plan.truncated} texts were cut to training.max_length = {training.max_length} tokens.")
    if run.checkpoint:
        left = len(plan.schedule) - read_json(run.checkpoint / "trainer_state.json")["global_step"]
        to_go = f"{left} steps to go." if left > 0 else "nothing is left to train."
        run.say(f"Resuming from {run.checkpoint}: {to_go}")


def _speed(trainer: MultiTaskTrainer, seconds: float) -> dict[str, Any]:
    """The manifest's `training` section: time, counts and speeds of the whole run."""
    figures = trainer.speeds()
    return {
        "seconds": round(seconds, 1),
        "examples": round(figures["examples"]),
        "tokens_computed": round(figures["tokens"]),
        "tokens_without_sharing": round(figures["plain_tokens"]),
        **{name: round(figures[name], 3) for name in SPEEDS},
        "matrix_peak_flops": round(trainer.meter.peak),
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
    }


def _kept(run: _Run, trainer: MultiTaskTrainer) -> dict[str, Any]:
    """The manifest's facts on which step's weights the adapter has, and why; print a line on it."""
    last, best = trainer.state.global_step, trainer.best
    chosen = trainer.keeps_best and best.step
    kept = {"step": chosen or last, "last_step": last, "stopped_early": trainer.stopped_early}
    if chosen:
        kept |= {"metric": run.figure.title, "value": best.value}
        said = (
            f"Kept the weights of step {best.step} of {last}, the best on validation "
            f"({run.figure.title} {best.value:.4g})."
        )
        if trainer.stopped_early:
            said += f" The next {trainer.patience} validations were no better: stopped early."
        run.say(said)
    return kept


def _save(run: _Run, trainer: MultiTaskTrainer) -> None:
    """Write the adapter to a staging folder, then move it into place: manifest first, weights last.

    If the process dies between the two, manifest and weights do not match, and nothing loads the adapter.
    An earlier adapter's results are removed.
    """
    staging = run.output_dir / ".adapter-in-writing"
    first = run.state.is_main_process
    if first:
        shutil.rmtree(staging, ignore_errors=True)
    needed = checkpoint_bytes(trainer.model, copies=1)
    with room_for(run.output_dir, needed, "the adapter", saved(run.output_dir)):
        try:
            trainer.save_model(str(staging))  # by every process: a sharded model must be gathered
            if first:
                _forget(run.output_dir)
                replace_files(staging, run.output_dir, first=manifest.NAME, last=adapters.WEIGHTS)
        finally:
            if first:
                shutil.rmtree(staging, ignore_errors=True)
    run.state.wait_for_everyone()


def _forget(folder: Path) -> None:
    """Remove the previous adapter's results and reference profile."""
    results = (f"results{split}{part}" for split in ("", "-validation") for part in PARTS)
    for name in (*results, "profile.json"):
        (folder / name).unlink(missing_ok=True)
