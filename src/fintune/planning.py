"""What a recipe will need, before anything is downloaded or trained: parameters, memory, disk, time.

Parameters are exact: the model is built from its `config.json` on PyTorch's meta device, without weights.
Memory is the sum of what the process holds at the peak of a training step; each term has its function or
constant below. Time is an epoch's floating-point operations over the speed that this machine was measured at.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.config import Recipe
from fintune.errors import ModelError
from fintune.inference.backends.builtin import ROW_TOKENS
from fintune.prompts import TokenizedExample
from fintune.training.fit import choices, few_steps, fitted

if TYPE_CHECKING:
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.kernels.packing import PackedRow
    from fintune.kernels.probing import Support

ADAPTER_BYTES = 16
"""Bytes of a trainable parameter: its fp32 weight and gradient, and AdamW's two moments."""
BEST_BYTES = 4
"""Of the weight that validation found best, which is kept beside."""
UTILISATION = {"cpu": 0.4, "cpu with AMX": 0.17, "cuda": 0.4}
"""The share of the matrix peak that training reaches: measured on CPUs (benchmarks/training.py, docs/LOG.md),
assumed on a GPU."""
RUNTIME_BYTES = {"cpu": 750 * 2**20, "cuda": 900 * 2**20}
"""Bytes of Python with its libraries, or of a CUDA context."""
LOGIT_BYTES = 10
"""Bytes of a logit of the chunk being computed: in fp32 twice, and once in the model's dtype."""
KEPT = {"cpu": (1.5, 2.2), "cpu in fp32": (2.0, 4.4), "cuda": (1.0, 1.0)}
"""Bytes the allocator holds for each byte of activations, and for each byte of a validation: mimalloc keeps
freed blocks of other sizes. Measured on three recipes in bfloat16 and one in fp32 (docs/LOG.md)."""
SAMPLED = 300
"""Steps of a longer epoch that are packed; the figures of all are scaled up from them."""
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """What a run needs: sizes in bytes, time in seconds; steps and the epoch's figures are None until data is
    prepared.

    Attributes:
        tokens: of the largest forward pass.
        recipe: fitted to the data.
        available_bytes: of the GPU, or of this machine's memory.
        device: cpu or cuda.
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
    available_bytes: int
    device: str

    @property
    def peak_bytes(self) -> int:
        held = self.weight_bytes + self.optimizer_bytes + self.runtime_bytes
        if self.device == "cpu":  # the allocator keeps what a validation used; a GPU's gives it back
            return held + self.activation_bytes + self.validation_bytes
        return held + max(self.activation_bytes, self.validation_bytes)


def _kind(device: str) -> str:
    """The key of `UTILISATION`: matrix units (AMX) raise the peak far more than the speed of a whole step."""
    import torch

    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch has none
    return "cpu with AMX" if device == "cpu" and capabilities.get("amx_bf16") else device


def estimate(recipe: Recipe, device: str | None = None) -> Estimate:
    """What a run of the recipe needs on this machine, or on `device` (cpu or cuda).

    Raises:
        ModelError: the base's configuration cannot be read, or it has none of the target modules.
    """
    import torch

    from fintune.kernels import attention
    from fintune.models.adapters import add_adapter, count_parameters
    from fintune.training.throughput import FlopCount, matrix_peak

    prepared = _prepared(recipe)
    recipe = fitted(recipe, _sizes(prepared))
    config = _config(recipe)
    text = config.get_text_config()
    with torch.device("meta"):
        import transformers

        base = transformers.AutoModelForCausalLM.from_config(config)
        linear, other = _weights(base)
        support = attention.enable(base)
        model = add_adapter(base, recipe.lora_config.plain())
        trainable, total = count_parameters(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    work = _work(recipe, prepared, support) if prepared else None
    rows = work.rows if work else [_largest_row(recipe, support)]
    width = _bytes_per_value(recipe, device)
    kept, kept_of_validation = KEPT["cpu in fp32" if width == 4 else device]
    activations = round(max(_row_bytes(row, recipe, text, device) for row in rows) * kept)
    validation = round(_validation_bytes(recipe, text) * kept_of_validation)
    seconds = None
    if work is not None:
        flops = FlopCount(model)(work.tokens, work.targets)
        if recipe.training.gradient_checkpointing:
            flops += work.tokens * 2 * linear  # the forward pass is computed twice
        seconds = flops / (matrix_peak() * UTILISATION[_kind(device)])
    return Estimate(
        trainable_parameters=trainable,
        all_parameters=total,
        adapter_bytes=4 * trainable,
        weight_bytes=round(linear * _bytes_per_weight(recipe, width) + other * width),
        optimizer_bytes=(ADAPTER_BYTES + BEST_BYTES * recipe.training.load_best_model_at_end) * trainable,
        activation_bytes=activations,
        validation_bytes=validation,
        runtime_bytes=RUNTIME_BYTES[device],
        tokens=max(row.input_ids.shape[1] for row in rows),
        steps=work.steps if work else None,
        recipe=recipe,
        tokens_per_epoch=work.tokens if work else None,
        seconds_per_epoch=seconds,
        available_bytes=_available(),
        device=device,
    )


def _config(recipe: Recipe) -> Any:
    import transformers

    from fintune.models.base import resolve

    try:
        return transformers.AutoConfig.from_pretrained(
            resolve(recipe.base_model.name), revision=recipe.base_model.revision
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The config.json of base_model.name = {recipe.base_model.name} cannot be read ({reason}): plan "
            "needs it, and nothing else of the model. Give a folder that holds it, or go online."
        ) from None


def _weights(model: Any) -> tuple[int, int]:
    """The number of weights in linear layers but the head, which quantization covers; and of all others."""
    import torch

    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    return linear, sum(p.numel() for p in model.parameters()) - linear


def _bytes_per_value(recipe: Recipe, device: str) -> int:
    """Bytes of an activation: 2, but 4 on a CPU that computes in fp32."""
    from fintune.models.base import choose_precision

    return 2 if device == "cuda" else choose_precision(recipe.training).dtype.itemsize


def _bytes_per_weight(recipe: Recipe, width: int) -> float:
    if recipe.base_model.load_in_4bit:
        return 0.5 + 0.016  # NF4, its scales quantized too (Dettmers et al., 2023, section 3)
    return 1.0 if recipe.base_model.load_in_8bit else width


@dataclass(frozen=True)
class _Work:
    """An epoch's optimizer steps: tokens and targets of all, the packed rows of at most `SAMPLED` steps; and
    the number of the whole run's."""

    steps: int
    tokens: int
    targets: int
    rows: list[PackedRow]


def _prepared(recipe: Recipe) -> PreparedDataset | None:
    from fintune.data.prepare.dataset import load_prepared
    from fintune.errors import DataError

    try:
        return load_prepared(recipe.data.prepared_dir)
    except DataError:
        return None


def _sizes(prepared: PreparedDataset | None) -> dict[str, int]:
    entries = prepared.manifest["tasks"] if prepared else {}
    return {name: entry["counts"]["train"] for name, entry in entries.items()}


def _work(recipe: Recipe, prepared: PreparedDataset, support: Support) -> _Work:
    """The first epoch's steps, drawn and packed by the code that training uses.

    Args:
        support: how the base computes several examples at once.
    """
    from fintune.training.run import make_plan
    from fintune.training.steps import StepBuilder

    training = recipe.training
    records = {task.name: prepared.records(task.name, "train") for task in prepared.task_set()}
    plan = make_plan(recipe, prepared.task_set(), records, _template(recipe))
    builder = StepBuilder(
        plan.examples,
        plan.schedule,
        plan.loss_weights,
        training.per_device_train_batch_size if support.several else 1,
        training.row_tokens,
        training.shared_prefix and bool(support),
        objective=plan.objective,
    )
    count = min(len(plan.schedule), math.ceil(plan.steps_per_epoch))
    chosen = range(0, count, math.ceil(count / SAMPLED))
    steps = [builder[i] for i in chosen]
    scale = plan.steps_per_epoch / len(steps)
    return _Work(
        steps=len(plan.schedule),
        tokens=round(sum(step.tokens for step in steps) * scale),
        targets=round(sum(step.targets for step in steps) * scale),
        rows=[row.packed for step in steps for row in step.rows],
    )


def _template(recipe: Recipe) -> Any:
    """The prompt template if the base's tokenizer is on this machine, else `_Guess`."""
    from fintune.models.base import load_tokenizer, resolve
    from fintune.prompts import PromptTemplate

    folder = resolve(recipe.base_model.name)
    if isinstance(folder, Path) and (folder / "tokenizer.json").is_file():
        return PromptTemplate(load_tokenizer(recipe.base_model.name), recipe.training.max_length)
    return _Guess(recipe.training.max_length)


class _Guess:
    """Stands in for a `PromptTemplate`: made-up token ids, as many as English text of that length has."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._ids = itertools.count(1)

    def example(self, task: Any, record: Any) -> TokenizedExample:
        shared = [0] * (len(task.instruction) // CHARACTERS_PER_TOKEN + 12)
        completion = len(self.completion_ids(task.completion(record)))
        own = len(task.body(record)) // CHARACTERS_PER_TOKEN + 6
        own = max(1, min(own, self.max_length - len(shared) - completion))
        ids = list(itertools.islice(self._ids, own + completion))
        return TokenizedExample([*shared, *ids[:own]], ids[own:], task.name)

    def completion_ids(self, text: str) -> list[int]:
        return [0] * (len(text) // CHARACTERS_PER_TOKEN + 2)


def _projections(config: Any) -> tuple[int, int]:
    """The widths of a token's queries and of its keys, all heads together."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return head * heads, head * (getattr(config, "num_key_value_heads", None) or heads)


def _row_bytes(row: PackedRow, recipe: Recipe, config: Any, device: str) -> int:
    """Bytes that one forward pass keeps for the backward pass, in a Llama-like decoder with a 2-byte dtype.

    For each token and layer: the residual stream before both normalizations and their outputs (8 h),
    attention's output (2 h), and gate, up, silu(gate) and their product (8 m). For each place of attention's
    blocks: padded queries (2 q), keys and values with the prefix's before them (4 k), and on a CPU the
    probabilities, if the block is short enough to keep them. Once: gradients of one layer (8 m + 8 h), and
    the logits of a chunk of targets. (h, m: hidden and intermediate size; q, k: as of `_projections`.)
    """
    from fintune.kernels.attention_cpu import CHUNK
    from fintune.kernels.likelihood import chunk

    h, m, layers, heads = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )
    q, k = _projections(config)
    tokens = row.input_ids.shape[1]
    places = 0
    for block in row.layout:
        p, batch, longest = block.prefix_length, len(block.lengths), block.longest
        width = p + longest
        places += batch * (longest * 2 * q + width * 4 * k)
        places += p * (2 * q + 4 * k)
        if device == "cpu":
            shapes = ((p, 1, p), (longest, batch, width))  # probabilities of the prefix, and of the suffixes
            places += sum(math.prod(shape) for shape in shapes if shape[0] <= CHUNK) * heads * 2
    layer = tokens * (10 * h + 8 * m) + places
    held = layers * tokens * 2 * h + layer if recipe.training.gradient_checkpointing else layers * layer
    once = (
        tokens * 8 * (m + h)
        + min(len(row.targets), chunk(config.vocab_size)) * config.vocab_size * LOGIT_BYTES
    )
    return int(held + once)


def _validation_bytes(recipe: Recipe, config: Any) -> int:
    """Bytes for writing a validation's texts: keys and values of every layer, and one layer's tensors."""
    from fintune.training.validating import GENERATED

    h, m = config.hidden_size, config.intermediate_size
    _, k = _projections(config)
    together = min(GENERATED, recipe.training.per_device_train_batch_size)
    tokens = together * recipe.training.max_length
    return int(min(tokens, ROW_TOKENS) * (config.num_hidden_layers * 4 * k + 10 * h + 8 * m))


def _largest_row(recipe: Recipe, support: Support) -> PackedRow:
    """The largest row that the recipe allows: as many texts of `max_length` tokens as fit."""
    from fintune.kernels.packing import pack

    training = recipe.training
    size = training.per_device_train_batch_size if support.several else 1
    count = max(1, min(size, training.row_tokens // training.max_length))
    own = min(training.max_length, training.row_tokens)
    return pack([[i + 1] * (own - 1) for i in range(count)], [[[0, 0]]] * count)


def _memory_of(device: str) -> str:
    import torch

    return "this machine's memory" if device == "cpu" else str(torch.cuda.get_device_name())


def _available() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    import psutil

    return int(psutil.virtual_memory().available)


def show(recipe: Recipe) -> None:
    """Print the estimate, and what to change where it does not fit."""
    from rich.console import Console
    from rich.table import Table

    need = estimate(recipe)
    table = Table(title=f"Plan for {recipe.base_model.name}", show_header=False, title_justify="left")
    share = need.trainable_parameters / need.all_parameters
    rows = (
        ("trainable parameters", f"{need.trainable_parameters:,} of {need.all_parameters:,} ({share:.2%})"),
        ("adapter on disk", _size(need.adapter_bytes)),
        ("base model's weights", _size(need.weight_bytes)),
        ("adapter and optimizer", _size(need.optimizer_bytes)),
        ("activations", f"{_size(need.activation_bytes)} for {need.tokens:,} tokens at once"),
        ("validation", _size(need.validation_bytes)),
        ("runtime", _size(need.runtime_bytes)),
        (
            "peak memory",
            f"{_size(need.peak_bytes)} of {_size(need.available_bytes)} ({_memory_of(need.device)})",
        ),
        ("optimizer steps", _steps(need)),
        ("time an epoch", _time(need)),
    )
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
    print(advice(recipe, need))
    if need.steps is not None:
        for line in filter(None, [choices(recipe, need.recipe), few_steps(need.steps)]):
            print(line)


def advice(recipe: Recipe, need: Estimate) -> str:
    """One line: it fits, or the recipe's changes that save memory, the one that costs least first."""
    if need.peak_bytes <= need.available_bytes * 0.95:
        return "It fits."
    options = []
    if need.tokens > 1024:
        options.append(f"training.row_tokens: {max(512, need.tokens // 2)}")
    if not recipe.training.gradient_checkpointing:
        options.append("training.gradient_checkpointing: true")
    if not (recipe.base_model.load_in_4bit or recipe.base_model.load_in_8bit):
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


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(need: Estimate) -> str:
    if need.seconds_per_epoch is None or need.tokens_per_epoch is None:
        return "unknown until the data is prepared: fintune data prepare"
    return f"{need.seconds_per_epoch / 60:.1f} minutes for about {need.tokens_per_epoch:,} tokens"
