"""Estimates a recipe's parameters, memory, steps and time from the base's `config.json` and prepared data.

Parameters are exact: the model is built on PyTorch's meta device, without weights. Memory is the sum of
`training.memory`'s terms; time comes from `speed`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.config import Recipe
from fintune.inference.backends.builtin import ROW_TOKENS
from fintune.planning import speed
from fintune.planning.speed import Calibration, Machine
from fintune.prompts import TokenizedExample
from fintune.training import memory
from fintune.training.fit import fitted, row_size, with_row_tokens
from fintune.training.memory import Shape

if TYPE_CHECKING:
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.kernels.packing import PackedRow
    from fintune.kernels.probing import Support
    from fintune.training.steps import StepBuilder

KEPT = {"cpu": (1.5, 2.2), "cpu in fp32": (2.0, 1.2)}
"""Bytes the allocator holds per byte of activations, and per byte of a validation: mimalloc keeps freed
blocks of other sizes. Measured on three recipes in bfloat16 and four in fp32 (docs/LOG.md)."""
SAMPLED = 300
"""Steps packed of a longer epoch; the figures for the whole epoch are scaled up from them."""
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """What a run needs: sizes in bytes, time in seconds. Steps and the epoch's figures are None until the
    data is prepared.

    Attributes:
        tokens: tokens of the largest forward pass.
        recipe: fitted to the data and the device.
        available_bytes: memory of the GPU, or of this machine.
        device: cpu or cuda.
        first_step_seconds: extra time of the first step, for compilation.
        calibration: measurements of such recipes on this machine; None if there are none.
    """

    trainable_parameters: int
    all_parameters: int
    adapter_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    validation_bytes: int
    runtime_bytes: int
    tokens: int
    steps: int | None
    recipe: Recipe
    tokens_per_epoch: int | None
    seconds_per_epoch: float | None
    first_step_seconds: float
    available_bytes: int
    device: str
    calibration: Calibration | None = None

    @property
    def peak_bytes(self) -> int:
        held = self.weight_bytes + self.optimizer_bytes + self.runtime_bytes
        if self.device == "cpu":  # the CPU allocator keeps a validation's memory; a GPU's returns it
            return held + self.activation_bytes + self.validation_bytes
        return held + max(self.activation_bytes, self.validation_bytes)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes * 0.95


@dataclass(frozen=True)
class Work:
    """An epoch's optimizer steps: what they compute, the packed rows of at most `SAMPLED` steps, and the
    number of steps in the whole run.

    Attributes:
        passes: forward passes per epoch.
        builder: builds them; its schedule is the whole run's.
    """

    steps: int
    tokens: int
    targets: int
    passes: float
    rows: list[PackedRow]
    builder: StepBuilder


def estimate(recipe: Recipe, device: str | None = None, machine: Machine | None = None) -> Estimate:
    """Estimate what a run of the recipe needs on this machine, on `device` (cpu or cuda), or on `machine`.

    Raises:
        ModelError: the base's configuration cannot be read, or the base has none of the target modules.
    """
    import torch

    from fintune.training.throughput import FlopCount

    here = "cuda" if torch.cuda.is_available() else "cpu"
    device = machine.device if machine else device or here
    model, support = memory.laid_out(recipe)
    shape = Shape.of(model)
    asked, (recipe, work) = recipe, work_of(recipe, model, support, device)
    rows = work.rows if work else [_largest_row(recipe, _row_size(asked, recipe, support, device))]
    tokens = max(row.input_ids.shape[1] for row in rows)
    calibration = speed.known(recipe, shape) if machine is None and device == here else None
    width = memory.value_bytes(recipe, device)
    seconds = None
    if work:
        flops = FlopCount(model)(work.tokens, work.targets)
        if calibration:
            seconds = calibration.seconds(work.tokens, shape.layers)
        else:
            machine = machine or Machine.here(device)
            seconds = speed.seconds(machine, recipe, shape, flops, work.tokens, work.passes)
    return Estimate(
        trainable_parameters=shape.trainable,
        all_parameters=shape.total,
        adapter_bytes=4 * shape.trainable,
        weight_bytes=memory.weight_bytes(shape, recipe, width),
        optimizer_bytes=memory.adapter_bytes(shape, recipe),
        activation_bytes=_activation_bytes(rows, shape, recipe, device, calibration),
        validation_bytes=_validation_bytes(recipe, shape, device),
        runtime_bytes=memory.RUNTIME_BYTES[device],
        tokens=tokens,
        steps=work.steps if work else None,
        recipe=recipe,
        tokens_per_epoch=work.tokens if work else None,
        seconds_per_epoch=seconds,
        first_step_seconds=speed.first_step_seconds(recipe, device),
        available_bytes=_available(device),
        device=device,
        calibration=calibration,
    )


def work_of(
    recipe: Recipe, model: Any, support: Support, device: str | None = None
) -> tuple[Recipe, Work | None]:
    """The recipe with a number for each `auto`, and the first epoch's steps, which are None if its data is
    not prepared.

    Args:
        model, support: from `memory.laid_out`.
    """
    prepared = _prepared(recipe)
    entries = prepared.manifest["tasks"] if prepared else {}
    sizes = {name: entry["counts"]["train"] for name, entry in entries.items()}
    made = with_row_tokens(fitted(recipe, sizes), device)
    size = _row_size(recipe, made, support, device)
    if prepared is None:
        return made, None
    return made, _work(made, prepared, size, bool(support), model.config.get_text_config().vocab_size)


def _kept(recipe: Recipe, device: str) -> tuple[float, float]:
    if device == "cuda":
        return 1.0, 1.0
    return KEPT["cpu in fp32" if memory.value_bytes(recipe, device) == 4 else "cpu"]


def _row_size(asked: Recipe, made: Recipe, support: Support, device: str | None) -> int:
    return row_size(asked, made, device) if support.several else 1


def _activation_bytes(
    rows: list[PackedRow], shape: Shape, recipe: Recipe, device: str, calibration: Calibration | None
) -> int:
    if device == "cpu":
        return round(max(memory.row_bytes(row, shape, recipe) for row in rows) * _kept(recipe, device)[0])
    each = memory.token_bytes(shape, recipe)
    if calibration and calibration.bytes_per_token_layer:
        each = round(calibration.bytes_per_token(shape.layers))
    return max(row.input_ids.shape[1] * each + memory.logit_bytes(shape, len(row.targets)) for row in rows)


def _prepared(recipe: Recipe) -> PreparedDataset | None:
    from fintune.data.prepare.dataset import load_prepared
    from fintune.errors import DataError

    try:
        return load_prepared(recipe.data.prepared_dir)
    except DataError:
        return None


def _work(recipe: Recipe, prepared: PreparedDataset, size: int, share: bool, vocabulary: int) -> Work:
    """The first epoch's steps, drawn and packed by the code that training uses.

    Args:
        size: the most examples per row.
        share: a row may hold the prompts' common beginning once.
    """
    from fintune.training.run import make_plan
    from fintune.training.steps import StepBuilder

    training = recipe.training
    records = {task.name: prepared.records(task.name, "train") for task in prepared.task_set()}
    plan = make_plan(recipe, prepared.task_set(), records, _template(recipe, vocabulary))
    builder = StepBuilder(
        plan.examples,
        plan.schedule,
        plan.loss_weights,
        size,
        training.row_tokens,
        training.shared_prefix and share,
        objective=plan.objective,
    )
    count = min(len(plan.schedule), math.ceil(plan.steps_per_epoch))
    chosen = range(0, count, math.ceil(count / SAMPLED))
    steps = [builder[i] for i in chosen]
    scale = min(plan.steps_per_epoch, len(plan.schedule)) / len(steps)  # max_steps may end before an epoch
    return Work(
        steps=len(plan.schedule),
        tokens=round(sum(step.tokens for step in steps) * scale),
        targets=round(sum(step.targets for step in steps) * scale),
        passes=sum(len(step.rows) for step in steps) * scale,
        rows=[row.packed for step in steps for row in step.rows],
        builder=builder,
    )


def _template(recipe: Recipe, vocabulary: int) -> Any:
    """The prompt template if the base's tokenizer is on this machine, otherwise `_Guess`."""
    from fintune.models.base import load_tokenizer, resolve
    from fintune.prompts import PromptTemplate

    folder = resolve(recipe.base_model.name)
    if isinstance(folder, Path) and (folder / "tokenizer.json").is_file():
        return PromptTemplate(load_tokenizer(recipe.base_model.name), recipe.training.max_length)
    return _Guess(recipe.training.max_length, vocabulary)


class _Guess:
    """Replaces a `PromptTemplate`: invented token ids, as many as English text of that length has."""

    def __init__(self, max_length: int, vocabulary: int) -> None:
        self.max_length = max_length
        self._ids = itertools.cycle(range(1, vocabulary))

    def example(self, task: Any, record: Any) -> TokenizedExample:
        shared = [0] * (len(task.instruction) // CHARACTERS_PER_TOKEN + 12)
        completion = len(self.completion_ids(task.completion(record)))
        own = len(task.body(record)) // CHARACTERS_PER_TOKEN + 6
        own = max(1, min(own, self.max_length - len(shared) - completion))
        ids = list(itertools.islice(self._ids, own + completion))
        return TokenizedExample([*shared, *ids[:own]], ids[own:], task.name)

    def completion_ids(self, text: str) -> list[int]:
        return [0] * (len(text) // CHARACTERS_PER_TOKEN + 2)


def _validation_bytes(recipe: Recipe, shape: Shape, device: str) -> int:
    """Bytes for generating a validation's texts: every layer's keys and values, and one layer's tensors."""
    from fintune.training.validating import GENERATED

    h, m, k = shape.hidden, shape.intermediate, shape.keys
    together = min(GENERATED, recipe.training.per_device_train_batch_size)
    tokens = min(together * recipe.training.max_length, ROW_TOKENS)
    return round(tokens * (shape.layers * 4 * k + 10 * h + 8 * m) * _kept(recipe, device)[1])


def _largest_row(recipe: Recipe, size: int) -> PackedRow:
    """The largest row that the recipe allows: the most texts of `max_length` tokens that fit."""
    from fintune.kernels.packing import pack

    training = recipe.training
    count = max(1, min(size, training.row_tokens // training.max_length))
    own = min(training.max_length, training.row_tokens)
    return pack([[i + 1] * (own - 1) for i in range(count)], [[[0, 0]]] * count)


def _available(device: str) -> int:
    import psutil
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return int(psutil.virtual_memory().available)
