"""What a recipe will need, before anything is downloaded or trained: parameters, memory, disk, time.

Parameters are exact: the model is laid out from its `config.json` on PyTorch's meta device, without weights.
Memory is the sum of what is held at the worst moment of a step; the terms and their bytes are below. Time is
the step's arithmetic at the speed of this machine, measured for a moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fintune.config import Recipe
from fintune.errors import ModelError

ADAPTER_BYTES = 16
"""A trainable parameter: fp32 weight, gradient, and AdamW's two moments."""
UTILISATION = {"cpu": 0.08, "cuda": 0.4}
"""The share of the matrix peak that training reaches: on a CPU with AMX as benchmarks/training.py measured it
(docs/LOG.md), on a GPU assumed."""
RUNTIME_BYTES = {"cpu": 750 * 2**20, "cuda": 900 * 2**20}
"""Python with its libraries, or a CUDA context."""
LOGIT_BYTES = 12
"""A logit and its gradient at a target: fp32, once in the model's dtype."""


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, times in seconds; `tokens` are those of the largest forward pass."""

    trainable_parameters: int
    all_parameters: int
    adapter_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    runtime_bytes: int
    tokens: int
    tokens_per_epoch: int | None
    seconds_per_epoch: float | None
    available_bytes: int
    device: str

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes + self.runtime_bytes


def estimate(recipe: Recipe) -> Estimate:
    """What a run of the recipe needs on this machine.

    Raises:
        ModelError: the base's configuration cannot be read, or it has none of the target modules.
    """
    import torch

    from fintune.models.lora_config import add_adapter, count_parameters

    config = _config(recipe)
    text = config.get_text_config()
    with torch.device("meta"):
        import transformers

        base = transformers.AutoModelForCausalLM.from_config(config)
        linear, other = _weights(base)
        plain = recipe.lora_config.model_copy(update={"init_lora_weights": True})  # PiSSA reads weights
        trainable, total = count_parameters(add_adapter(base, plain))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens, per_epoch = _tokens(recipe)
    activations = _activation_bytes(recipe, text, tokens)
    seconds = None
    if per_epoch is not None:
        flops = per_epoch * (4 * linear + 6 * trainable)
        if recipe.training.gradient_checkpointing:
            flops += per_epoch * 2 * linear  # the forward pass is computed again
        seconds = flops / (matrix_peak() * UTILISATION[device])
    return Estimate(
        trainable_parameters=trainable,
        all_parameters=total,
        adapter_bytes=4 * trainable,
        weight_bytes=round(linear * _bytes_per_weight(recipe) + other * 2),
        optimizer_bytes=ADAPTER_BYTES * trainable,
        activation_bytes=activations,
        runtime_bytes=RUNTIME_BYTES[device],
        tokens=tokens,
        tokens_per_epoch=per_epoch,
        seconds_per_epoch=seconds,
        available_bytes=_available(device),
        device=torch.cuda.get_device_name() if device == "cuda" else "this machine's memory",
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
    """Weights of linear layers but the head, which quantization covers, and of all else."""
    import torch

    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    return linear, sum(p.numel() for p in model.parameters()) - linear


def _bytes_per_weight(recipe: Recipe) -> float:
    if recipe.base_model.load_in_4bit:
        return 0.5 + 0.016  # NF4, its scales quantized too (Dettmers et al., 2023, section 3)
    return 1.0 if recipe.base_model.load_in_8bit else 2.0


def _tokens(recipe: Recipe) -> tuple[int, int | None]:
    """Tokens of the largest forward pass, and of an epoch where the prepared data tells (else None).

    An English token has about 4 characters; the shared part of a prompt is left out, as it is computed
    once a step.
    """
    from fintune.data.datasets import load_prepared
    from fintune.errors import DataError

    training = recipe.training
    limit = min(training.row_tokens, training.per_device_train_batch_size * training.max_length)
    try:
        prepared = load_prepared(recipe.data.prepared_dir)
    except DataError:
        return limit, None
    lengths = []
    for task in prepared.task_set():
        for record in prepared.records(task.name, "train"):
            text = (len(task.body(record)) + len(task.completion(record))) // 4 + 8
            lengths.append(min(text, training.max_length))
    mean = sum(lengths) / len(lengths)
    total = recipe.multi_task.samples_per_epoch or len(lengths)
    longest = max(max(lengths), round(mean * training.per_device_train_batch_size * 1.3))
    return min(limit, longest), round(mean * total)


def _activation_bytes(recipe: Recipe, config: Any, tokens: int) -> int:
    """What the backward pass needs of the forward pass, for a decoder of the Llama kind.

    For each token and layer, in 2-byte numbers unless said: two normalizations keep their input in fp32 and
    their output twice (2 · 8 h bytes), attention its padded queries, keys, values and its output
    (4 h + 4 k), the MLP four tensors of its width (8 m).
    """
    h, m = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or h // config.num_attention_heads
    k = head * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    layer = 20 * h + 4 * k + 8 * m
    if recipe.training.gradient_checkpointing:
        held = config.num_hidden_layers * 2 * h + layer
    else:
        held = config.num_hidden_layers * layer
    targets = min(tokens // 8, 1024)
    return tokens * held + targets * config.vocab_size * LOGIT_BYTES


def matrix_peak() -> float:
    """The best rate of a large matrix product in bfloat16 (fp32 where that is faster), in FLOP/s."""
    import torch

    cuda = torch.cuda.is_available()
    best = 0.0
    for size in (4096, 8192) if cuda else (1024, 2048):
        for dtype in (torch.bfloat16, torch.float32):
            a = torch.randn(size, size, dtype=dtype, device="cuda" if cuda else "cpu")
            for _ in range(4):
                begun = time.perf_counter()
                a @ a
                if cuda:
                    torch.cuda.synchronize()
                best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def _available(device: str) -> int:
    if device == "cuda":
        import torch

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
        ("runtime", _size(need.runtime_bytes)),
        ("peak memory", f"{_size(need.peak_bytes)} of {_size(need.available_bytes)} ({need.device})"),
        ("time an epoch", _time(need)),
    )
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
    print(advice(recipe, need))


def advice(recipe: Recipe, need: Estimate) -> str:
    """Whether it fits, and if not, the changes that help, the cheapest first."""
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


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(need: Estimate) -> str:
    if need.seconds_per_epoch is None or need.tokens_per_epoch is None:
        return "unknown until the data is prepared: fintune data prepare"
    return f"{need.seconds_per_epoch / 60:.1f} minutes for about {need.tokens_per_epoch:,} tokens"
