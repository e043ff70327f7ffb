"""Estimates a training step's memory, term by term, and the tokens per pass that fit free memory.

On a GPU every term but the fixed ones grows with the tokens per pass, so the sum can be solved for them
(`row_tokens_for`). On a CPU attention's blocks are padded, and `planning` sums over the actual rows.

In the formulas, h and m are the hidden and intermediate size; q and k the widths of a token's queries and
keys over all heads.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.config import BaseModelConfig, Recipe
from fintune.errors import ModelError, first_line
from fintune.models.base import choose_precision

if TYPE_CHECKING:
    from fintune.kernels.packing import PackedRow
    from fintune.kernels.probing import Support

ADAPTER_BYTES = 16
"""Bytes of a trainable parameter: its fp32 weight and gradient, and AdamW's two moments."""
BEST_BYTES = 4
"""Bytes per trainable parameter of the copy of the best weights so far."""
RUNTIME_BYTES = {"cpu": 750 * 2**20, "cuda": 900 * 2**20}
"""Bytes of Python with its libraries, or of a CUDA context."""
LOGIT_BYTES = 10
"""Bytes per logit of the chunk being computed: two copies in fp32, one in the model's dtype."""
NF4_BYTES = 0.5 + 0.016
"""Bytes of a 4-bit weight whose scales are quantized too (Dettmers et al., 2023, section 3)."""
USED = 0.9
"""The share of a GPU's free memory planned for a pass; the allocator wastes the rest."""
LEAST, MOST = 1024, 65_536
"""Tokens per pass on a GPU; a number derived from free memory is a multiple of the first."""


@dataclass(frozen=True)
class Shape:
    """What decides the memory of a base with its adapter: numbers of weights, widths of a token's tensors.

    Attributes:
        linear: weights in linear layers except the head; quantization applies to these.
        largest: weights of the largest one.
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
        """The shape of a PEFT model, whose weights may be on PyTorch's meta device."""
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
        reason = first_line(error)
        raise ModelError(
            f"The config.json of base_model.name = {recipe.base_model.name} cannot be read ({reason}): "
            "planning needs it, and nothing else of the model. Give a folder that holds it, or go online."
        ) from None


def laid_out(recipe: Recipe) -> tuple[Any, Support]:
    """The base with the recipe's adapter on PyTorch's meta device (no weights), and its support for packed
    rows."""
    base = recipe.base_model
    own = BaseModelConfig(name=base.name, revision=base.revision)
    return _laid_out(Recipe(base_model=own, lora_config=recipe.lora_config).model_dump_json())


@functools.lru_cache(maxsize=2)
def _laid_out(parts: str) -> tuple[Any, Support]:
    """Cached, because a plan tries several settings of one model, and 32 layers take a second."""
    import torch
    import transformers

    from fintune.kernels import attention
    from fintune.models.adapters import add_adapter

    recipe = Recipe.model_validate_json(parts)
    with torch.device("meta"):
        base = transformers.AutoModelForCausalLM.from_config(base_config(recipe))
        support = attention.enable(base)
        return add_adapter(base, recipe.lora_config.plain()), support


def value_bytes(recipe: Recipe, device: str) -> int:
    """Bytes per activation: 2, or 4 on a CPU that computes in fp32."""
    return 2 if device == "cuda" else choose_precision(recipe.training).dtype.itemsize


def weight_bytes(shape: Shape, recipe: Recipe, width: int) -> int:
    """Bytes of the base's weights. Embeddings, head and norms are never quantized; one quantized layer at a
    time is also held unquantized."""
    base = recipe.base_model
    each = NF4_BYTES if base.load_in_4bit else 1 if base.load_in_8bit else width
    in_full = shape.largest * width if base.quantized else 0
    return round(shape.linear * each + shape.other * width + in_full)


def adapter_bytes(shape: Shape, recipe: Recipe) -> int:
    """Bytes of the adapter with its gradients and the optimizer's state."""
    return (ADAPTER_BYTES + BEST_BYTES * recipe.training.load_best_model_at_end) * shape.trainable


def token_bytes(shape: Shape, recipe: Recipe) -> int:
    """Bytes that a GPU pass holds per token, for a Llama-like decoder with 2-byte values.

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
    """Bytes of the logits of a chunk of targets."""
    from fintune.kernels.likelihood import chunk

    return min(targets, chunk(shape.vocabulary)) * shape.vocabulary * LOGIT_BYTES


def row_bytes(row: PackedRow, shape: Shape, recipe: Recipe) -> int:
    """Bytes that a CPU pass keeps for its backward pass, with 2-byte values.

    For each token and layer: the residual stream before both normalizations and their outputs (8 h),
    attention's output (2 h), and gate, up, silu(gate) and their product (8 m). For each position of
    attention's blocks: padded queries (2 q), keys and values including the prefix's (4 k), and the
    probabilities if the block is short enough to keep them. Once: gradients of one layer (8 m + 8 h), logits.
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
    """The token budget per pass with which the recipe's training fits `free_bytes` of a GPU: a multiple of
    1,024 between 1,024 and 65,536.

    Raises:
        ModelError: the base's configuration cannot be read.
    """
    model, _ = laid_out(recipe)
    shape = Shape.of(model)
    held = weight_bytes(shape, recipe, 2) + adapter_bytes(shape, recipe) + RUNTIME_BYTES["cuda"]
    room = free_bytes * USED - held - logit_bytes(shape, MOST)
    return max(LEAST, min(MOST, int(room / token_bytes(shape, recipe)) // LEAST * LEAST))
