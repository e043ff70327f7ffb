"""A recipe in, an adapter folder out: prepares, plans, trains and saves."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.config import Recipe
from fintune.errors import ConfigError, DataError, ModelError
from fintune.files import read_json, replace_files
from fintune.provenance import peak_memory, stamp
from fintune.tasks import Record, TaskSet

if TYPE_CHECKING:
    from fintune.data.prepare.dataset import PreparedDataset

logger = logging.getLogger("fintune.train")

Say = Callable[[str], None]


@dataclasses.dataclass
class Plan:
    """What a run will do, decided before the model is loaded.

    Attributes:
        examples: every training example that the schedule draws from, tokenized.
        schedule: the optimizer steps, each a list of indices into `examples`.
        per_epoch: examples of each task in one epoch.
        loss_weights: each task's weight in the loss.
        steps_per_epoch: optimizer steps in one epoch (a fraction where the last step is short).
        truncated: the number of examples whose text was cut to `training.max_length`.
    """

    examples: list[Any]
    schedule: list[list[int]]
    per_epoch: dict[str, int]
    loss_weights: dict[str, float]
    steps_per_epoch: float
    truncated: int


def make_plan(recipe: Recipe, tasks: TaskSet, records: dict[str, list[Record]], template: Any) -> Plan:
    """Tokenize the training records and lay out the optimizer steps.

    Raises:
        ConfigError: `multi_task.class_weights` names a task without labels, or an unknown label.
        DataError: no task has both examples and a weight.
    """
    from fintune.training import mix
    from fintune.training.class_weights import add_class_weights
    from fintune.training.steps import add_levels

    drawn = mix.draw(recipe, {task.name: len(records[task.name]) for task in tasks})
    examples = [template.example(tasks[name], record) for name in drawn.per_epoch for record in records[name]]
    everyone = [record for name in drawn.per_epoch for record in records[name]]
    if recipe.multi_task.class_weights:
        examples = add_class_weights(examples, everyone, tasks, recipe.multi_task.class_weights)
    if recipe.training.regression_loss_weight:
        examples = add_levels(examples, everyone, tasks, template)
    return Plan(
        examples=examples,
        schedule=mix.steps(recipe, drawn, [example.task for example in examples]),
        per_epoch=drawn.per_epoch,
        loss_weights=drawn.loss_weights,
        steps_per_epoch=sum(drawn.per_epoch.values()) / drawn.step_size,
        truncated=sum(example.truncated for example in examples),
    )


def train(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    prepared: PreparedDataset | None = None,
    resume: str | Path | None = None,
    use_wandb: bool = False,
    verbose: bool = False,
    say: Say = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an adapter into `output_dir`; return the run's facts, as its manifest keeps them.

    Args:
        prepared: the recipe's data, where the caller has prepared it already.
        resume: a checkpoint folder, or "latest" for the newest one in `output_dir`.

    Raises:
        ConfigError, DataError, ModelError: what the user can mend.
    """
    from fintune.data.prepare.dataset import prepare
    from fintune.kernels import norm
    from fintune.models import adapters, base, card, manifest
    from fintune.prompts import PromptTemplate
    from fintune.training.callbacks import Progress, log_to_file, tensorboard, wandb

    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir is {output_dir}, which is a file: name a folder.")
    checkpoint = _checkpoint(resume, output_dir, recipe) if resume else None
    start = None
    if recipe.lora_config.init_adapter and not checkpoint:
        start = adapters.check_start(recipe.lora_config, base.public_name(recipe.base_model.name))
    report_to = wandb() if use_wandb else []

    import torch
    import transformers
    from accelerate import PartialState

    from fintune.training.steps import StepBuilder, shared_prefixes

    state = PartialState(cpu=not torch.cuda.is_available())
    if not state.is_main_process:
        say = _silent
    log_file = log_to_file(verbose=verbose) if state.is_main_process else None
    with state.main_process_first():  # the others find data and base model prepared
        prepared = prepared or prepare(recipe, say=say)
        tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    tasks = prepared.task_set()
    if checkpoint:
        _same_data(checkpoint, prepared)
    transformers.set_seed(recipe.training.seed)
    precision = base.choose_precision(recipe.training)
    if precision.note:
        say(precision.note)
    template = PromptTemplate(tokenizer, recipe.training.max_length)
    plan = make_plan(recipe, tasks, {t.name: prepared.records(t.name, "train") for t in tasks}, template)

    say(f"Loading {recipe.base_model.name} …")
    model = base.load_base_model(recipe.base_model, precision.dtype)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and recipe.training.max_length > context:
        raise ConfigError(
            f"training.max_length is {recipe.training.max_length}, but {recipe.base_model.name} has a "
            f"context of {context} tokens: set it to {context} or less."
        )
    model, pissa_start = _adapted(model, recipe, checkpoint, start, say)
    model.peft_config["default"].base_model_name_or_path = base.public_name(recipe.base_model.name)
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable, total = adapters.count_parameters(model)

    from fintune.inference.calibration import calibrate
    from fintune.inference.engine import Engine
    from fintune.training.throughput import SPEEDS, FlopCount, Meter, matrix_peak
    from fintune.training.trainer import MultiTaskTrainer

    limit = recipe.evaluation.max_validation
    held_out = {name: prepared.records(name, "validation")[:limit] for name in plan.per_epoch}
    validation = {
        name: (records, [template.example(tasks[name], record) for record in records])
        for name, records in held_out.items()
    }
    engine = Engine(model, tokenizer, tasks, recipe.training.max_length, recipe.base_model.name)
    logger.info("%d of %d LoRA layers take the fast path", *engine.builtin.fast_layers)
    if recipe.training.torch_compile:
        count = norm.enable(model, compiled=True)
        say(f"{count} normalizations are compiled: the first step takes longer.")
    if recipe.training.regression_loss_weight and not engine.builtin.by_blocks:
        raise ConfigError(
            f"training.regression_loss_weight is {recipe.training.regression_loss_weight}, but "
            f"{recipe.base_model.name} cannot compute several answers to one prompt in a row: set it to 0."
        )
    share = recipe.training.shared_prefix and engine.builtin.by_blocks
    builder = StepBuilder(
        plan.examples,
        plan.schedule,
        plan.loss_weights,
        recipe.training.per_device_train_batch_size if engine.builtin.by_blocks else 1,
        recipe.training.row_tokens,
        share,
        state.process_index,
        state.num_processes,
    )
    facts: dict[str, Any] = {
        **stamp(),
        "base_model": recipe.base_model.name,
        "trainable_parameters": trainable,
        "all_parameters": total,
        "examples_per_epoch": plan.per_epoch,
        "optimizer_steps": len(plan.schedule),
        "truncated_examples": plan.truncated,
        "resumed_from": checkpoint.name if checkpoint else None,
        "shared_prefix_tokens": shared_prefixes(plan.examples) if share else {},
        "seed": recipe.training.seed,
        "processes": state.num_processes,
        "dtype": str(precision.dtype).removeprefix("torch."),
        "data": prepared.manifest,
    }

    def save_manifest(folder: Path) -> None:
        manifest.write(folder, recipe, tasks, **facts)
        card.write(folder, facts, recipe, prepared)

    trainer = MultiTaskTrainer(
        engine=engine,
        validation=validation,
        steps_per_epoch=plan.steps_per_epoch,
        save_extra=save_manifest,
        batch_size=recipe.training.per_device_train_batch_size,
        pissa_start=pissa_start,
        loraplus_lr_ratio=recipe.training.loraplus_lr_ratio,
        regression_loss_weight=recipe.training.regression_loss_weight,
        meter=Meter(FlopCount(model), matrix_peak()),
        model=model,
        train_dataset=builder,
        args=_arguments(recipe, output_dir, plan, precision, report_to),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    curves = tensorboard(output_dir) if state.is_main_process else []
    for callback in (Progress(say, progress), *curves):
        trainer.add_callback(callback)
    step_size = recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps
    say(
        f"Training {trainable:,} of {total:,} parameters ({trainable / total:.2%}) in {facts['dtype']}: "
        f"{len(plan.schedule)} steps of {step_size} examples "
        f"({', '.join(f'{name} {count}' for name, count in plan.per_epoch.items())} an epoch)."
    )
    if plan.truncated:
        say(f"{plan.truncated} texts were cut to training.max_length = {recipe.training.max_length} tokens.")
    if checkpoint:
        left = len(plan.schedule) - read_json(checkpoint / "trainer_state.json")["global_step"]
        say(
            f"Resuming from {checkpoint}: "
            + (f"{left} steps to go." if left > 0 else "nothing is left to train.")
        )
    say(f"Log: {log_file}")
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - began
    figures = trainer.speeds()
    facts["training"] = {
        "seconds": round(seconds, 1),
        "examples": round(figures["examples"]),
        "tokens_computed": round(figures["tokens"]),
        "tokens_without_sharing": round(figures["plain_tokens"]),
        **{name: round(figures[name], 3) for name in SPEEDS},
        "matrix_peak_flops": round(trainer.meter.peak),
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
    }
    scored = {name: prepared.records(name, "validation") for name in plan.per_epoch}
    facts["label_scoring"] = calibrate(engine, scored, recipe.evaluation)
    facts["validation"] = next((e for e in reversed(trainer.state.log_history) if "eval_loss" in e), {})
    staging = output_dir / ".adapter-in-writing"
    if state.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    try:
        trainer.save_model(str(staging))
        if state.is_main_process:
            replace_files(staging, output_dir, last="adapter_model.safetensors")
    finally:
        if state.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
    state.wait_for_everyone()
    say(
        f"Trained in {seconds / 60:.1f} min ({facts['training']['examples_per_second']:.1f} examples/s, "
        f"{facts['training']['utilisation']:.0%} of the matrix peak, "
        f"peak memory {facts['training']['peak_memory_gib']} GiB). Adapter: {output_dir}"
    )
    return facts


def _adapted(
    model: Any, recipe: Recipe, checkpoint: Path | None, start: Path | None, say: Say
) -> tuple[Any, Any]:
    """The base with a new adapter, the checkpoint's, or that of `start`; and, with PiSSA, A₀ and B₀, which
    saving needs."""
    from fintune.models import adapters, pissa

    lora, seed = recipe.lora_config, recipe.training.seed
    if not lora.pissa:
        if checkpoint:
            return adapters.load_adapter(model, checkpoint, trainable=True), None
        if start:
            say(f"Going on from the adapter {start}.")
            return adapters.start_from(model, lora, start, seed), None
        return adapters.add_adapter(model, lora, seed), None
    if checkpoint:
        model = adapters.add_adapter(model, lora.plain(), seed)
        return model, pissa.resume(model, checkpoint)
    say("Singular values of the base's weights (PiSSA) …")
    model = adapters.add_adapter(model, lora, seed)
    return model, pissa.initial_state(model)


def _arguments(recipe: Recipe, output_dir: Path, plan: Plan, precision: Any, report_to: list[str]) -> Any:
    """The recipe as `transformers.TrainingArguments`; a batch there is a whole step here."""
    import torch
    import transformers

    training = recipe.training
    steps = len(plan.schedule)
    warmup = training.warmup_steps
    if training.warmup_ratio:
        warmup = round(training.warmup_ratio * steps)
    elif warmup * 2 > steps:
        warmup = steps // 10
        logger.info("training.warmup_steps is over half of the %d steps: using %d.", steps, warmup)
    per_epoch = math.ceil(plan.steps_per_epoch)
    arguments = transformers.TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=warmup,
        lr_scheduler_type=training.lr_scheduler_type,
        max_grad_norm=training.max_grad_norm,
        fp16=precision.fp16,
        bf16=precision.dtype == torch.bfloat16,
        dataloader_num_workers=training.dataloader_num_workers,
        seed=training.seed,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=training.eval_steps or per_epoch,
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
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # DataParallel would cut packed rows apart; several GPUs use DDP
    return arguments


def _silent(line: str) -> None:
    """`say` of every process but the first."""


def _same_data(checkpoint: Path, prepared: PreparedDataset) -> None:
    """Refuse to go on with other data: the schedule would name other examples."""
    from fintune.models import manifest

    was = manifest.read_raw(checkpoint).get("data", {})
    if was and was.get("files") != prepared.manifest["files"]:
        raise DataError(
            f"{checkpoint} was trained on other data ({_datasets(was)}) than is prepared now "
            f"({prepared.describes}): resume with the same data, or train without resuming."
        )


def _datasets(data: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(entry["dataset"] for entry in data["tasks"].values()))


def _checkpoint(resume: str | Path, output_dir: Path, recipe: Recipe) -> Path:
    """The checkpoint to resume from, once it is plain that it is whole and of this recipe."""
    from fintune.models import manifest
    from fintune.models.adapters import check_adapter
    from fintune.training.trainer import checkpoints

    if str(resume) == "latest":
        found = checkpoints(output_dir)
        if not found:
            raise ModelError(f"{output_dir} holds no checkpoint to resume from: train without resuming.")
        folder = found[-1]
    else:
        folder = Path(resume)
        if not folder.is_dir():
            raise ModelError(f"There is no checkpoint at {folder}: look for checkpoint-* in {output_dir}.")
    check_adapter(folder)
    random_states = sorted(folder.glob("rng_state*.pth")) or [folder / "rng_state.pth"]  # one a process
    for path in (folder / "optimizer.pt", folder / "scheduler.pt", *random_states):
        if not path.is_file():
            raise ModelError(f"{folder} is no checkpoint to resume from: it has no {path.name}.")
        whole = zipfile.is_zipfile(path)
        if whole:
            with zipfile.ZipFile(path) as archive:
                whole = archive.testzip() is None
        if not whole:
            raise ModelError(f"{path} is damaged or truncated: resume from an earlier checkpoint.")
    read_json(folder / "trainer_state.json")
    was = manifest.read_raw(folder).get("recipe", {})
    now = recipe.model_dump()
    for section in ("base_model", "lora_config", "multi_task", "training"):
        for key, value in was.get(section, {}).items():
            free = key in ("logging_steps", "eval_steps", "save_steps", "save_total_limit", "row_tokens")
            if not free and now[section].get(key) != value:
                raise ConfigError(
                    f"{folder} was trained with {section}.{key} = {value}, but the recipe says "
                    f"{now[section].get(key)}: resume with the same recipe, or train without resuming."
                )
    return folder
