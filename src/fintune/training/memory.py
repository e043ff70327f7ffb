"""What a training step holds in memory, term by term, and the tokens of a pass that fit what is free.

On a GPU every term but the fixed ones grows with the tokens of a pass, so the model can be turned round
(`row_tokens_for`). On a CPU attention's blocks are padded, and `planning` sums over the rows themselves.

In the formulas: h, m hidden and intermediate size; q, k the widths of a token's queries and of its keys, all
heads together.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.config import BaseModelConfig, Recipe
from fintune.errors import ModelError
from fintune.models.base import choose_precision

if TYPE_CHECKING:
    from fintune.kernels.packing import PackedRow
    from fintune.kernels.probing import Support

ADAPTER_BYTES = 16
"""Bytes of a trainable parameter: its fp32 weight and gradient, and AdamW's two moments."""
BEST_BYTES = 4
"""Of the weight that validation found best, which is kept beside."""
RUNTIME_BYTES = {"cpu": 750 * 2**20, "cuda": 900 * 2**20}
"""Bytes of Python with its libraries, or of a CUDA context."""
LOGIT_BYTES = 10
"""Bytes of a logit of the chunk being computed: in fp32 twice, and once in the model's dtype."""
NF4_BYTES = 0.5 + 0.016
"""A weight in 4 bit, its scales quantized too (Dettmers et al., 2023, section 3)."""
USED = 0.9
"""The part of a GPU's free memory that a pass is planned for: the rest is its allocator's waste."""
LEAST, MOST = 1024, 65_536
"""Tokens of a pass on a GPU: what is decided by free memory is a multiple of the first."""


@dataclass(frozen=True)
class Shape:
    """What of a base with its adapter decides memory; numbers of weights, widths of a token's tensors.

    Attributes:
        linear: weights in linear layers but the head, which quantization covers.
        largest: of one of them.
        other: all other weights of the base.
        trainable: weights of the adapter.
    """

    linear: int
    largest: int
    other: int
    trainable: int
    total: int
    layers: int
    heads: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        """Of a PEFT model, whose weights may lie on PyTorch's meta device."""
        import torch

        from fintune.models.adapters import count_parameters

        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        linear = [
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
        ]
        trainable, total = count_parameters(model)
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            linear=sum(linear),
            largest=max(linear),
            other=total - trainable - sum(linear),
            trainable=trainable,
            total=total,
            layers=config.num_hidden_layers,
            heads=heads,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            queries=width * heads,
            keys=width * (getattr(config, "num_key_value_heads", None) or heads),
            vocabulary=config.vocab_size,
        )


def base_config(recipe: Recipe) -> Any:
    """The `config.json` of the recipe's base.

    Raises:
        ModelError: it cannot be read.
    """
    import transformers

    from fintune.models.base import resolve

    try:
        return transformers.AutoConfig.from_pretrained(
            resolve(recipe.base_model.name), revision=recipe.base_model.revision
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The config.json of base_model.name = {recipe.base_model.name} cannot be read ({reason}): "
            "planning needs it, and nothing else of the model. Give a folder that holds it, or go online."
        ) from None


def laid_out(recipe: Recipe) -> tuple[Any, Support]:
    """The base with the recipe's adapter on PyTorch's meta device, without weights; and how it computes
    several examples at once."""
    base = recipe.base_model
    own = BaseModelConfig(name=base.name, revision=base.revision)
    return _laid_out(Recipe(base_model=own, lora_config=recipe.lora_config).model_dump_json())


@functools.lru_cache(maxsize=2)
def _laid_out(parts: str) -> tuple[Any, Support]:
    """Kept, because a plan tries several settings of one model, and 32 layers take a second."""
    import torch
    import transformers

    from fintune.kernels import attention
    from fintune.models.adapters import add_adapter

    recipe = Recipe.model_validate_json(parts)
    with torch.device("meta"):
        base = transformers.AutoModelForCausalLM.from_config(base_config(recipe))
        support = attention.enable(base)
        return add_adapter(base, recipe.lora_config.plain()), support


def quantized(base: BaseModelConfig) -> bool:
    return base.load_in_4bit or base.load_in_8bit


def value_bytes(recipe: Recipe, device: str) -> int:
    """Bytes of an activation: 2, but 4 on a CPU that computes in fp32."""
    return 2 if device == "cuda" else choose_precision(recipe.training).dtype.itemsize


def weight_bytes(shape: Shape, recipe: Recipe, width: int) -> int:
    """The base's weights. Embeddings, head and norms are never quantized; of the quantized layers one at a
    time stands beside in full."""
    base = recipe.base_model
    each = NF4_BYTES if base.load_in_4bit else 1 if base.load_in_8bit else width
    in_full = shape.largest * width if quantized(base) else 0
    return round(shape.linear * each + shape.other * width + in_full)


def adapter_bytes(shape: Shape, recipe: Recipe) -> int:
    """The adapter with its gradient and the optimizer's state."""
    return (ADAPTER_BYTES + BEST_BYTES * recipe.training.load_best_model_at_end) * shape.trainable


def token_bytes(shape: Shape, recipe: Recipe) -> int:
    """Bytes that a pass on a GPU holds for each of its tokens, in a Llama-like decoder in 2-byte values.

    A layer keeps: the residual stream before both normalizations, in fp32, and their outputs (12 h); rotated
    queries, keys, values, attention's output as it comes and as a row (6 q + 4 k); gate, up, silu(gate) and
    their product (8 m); with DoRA each layer's output before its magnitude. Once: the gradients of one layer
    (8 m + 8 h).
    """
    h, m, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    layer = 12 * h + 6 * q + 4 * k + 8 * m
    if recipe.lora_config.use_dora:
        layer += 2 * (q + 2 * k + 2 * h + 2 * m)
    once = 8 * (m + h)
    if recipe.training.gradient_checkpointing:
        inputs = 0 if recipe.training.gradient_checkpointing_offload else shape.layers * 2 * h
        return inputs + layer + once
    return shape.layers * layer + once


def logit_bytes(shape: Shape, targets: int) -> int:
    """Logits of a chunk of targets."""
    from fintune.kernels.likelihood import chunk

    return min(targets, chunk(shape.vocabulary)) * shape.vocabulary * LOGIT_BYTES


def row_bytes(row: PackedRow, shape: Shape, recipe: Recipe) -> int:
    """Bytes that a pass on a CPU keeps for its backward pass, in 2-byte values.

    For each token and layer: the residual stream before both normalizations and their outputs (8 h),
    attention's output (2 h), and gate, up, silu(gate) and their product (8 m). For each place of attention's
    blocks: padded queries (2 q), keys and values with the prefix's before them (4 k), and the probabilities,
    if the block is short enough to keep them. Once: gradients of one layer (8 m + 8 h), and the logits.
    """
    from fintune.kernels.attention_cpu import CHUNK

    h, m, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    tokens = row.input_ids.shape[1]
    places = 0
    for block in row.layout:
        p, batch, longest = block.prefix_length, len(block.lengths), block.longest
        width = p + longest
        places += batch * (longest * 2 * q + width * 4 * k) + p * (2 * q + 4 * k)
        attended = ((p, 1, p), (longest, batch, width))  # probabilities of the prefix, and of the suffixes
        places += sum(math.prod(each) for each in attended if each[0] <= CHUNK) * shape.heads * 2
    layer = tokens * (10 * h + 8 * m) + places
    if recipe.training.gradient_checkpointing:
        held = shape.layers * tokens * 2 * h + layer
    else:
        held = shape.layers * layer
    return held + tokens * 8 * (m + h) + logit_bytes(shape, len(row.targets))


def row_tokens_for(recipe: Recipe, free_bytes: int) -> int:
    """The token budget of a pass with which the recipe's training fits so many free bytes of a GPU: a
    multiple of 1,024 between 1,024 and 65,536.

    Raises:
        ModelError: the base's configuration cannot be read.
    """
    model, _ = laid_out(recipe)
    shape = Shape.of(model)
    held = weight_bytes(shape, recipe, 2) + adapter_bytes(shape, recipe) + RUNTIME_BYTES["cuda"]
    room = free_bytes * USED - held - logit_bytes(shape, MOST)
    return max(LEAST, min(MOST, int(room / token_bytes(shape, recipe)) // LEAST * LEAST))
