"""Merge an adapter into its base's weights: each sum is computed in 32 bit and rounded once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fintune.config import BaseModelConfig, Recipe
from fintune.errors import ModelError
from fintune.models import adapters, base


def merged(recipe: Recipe, model_path: str | Path | None, dtype: Any, say: Callable[[str], None]) -> Any:
    """The base in `dtype` (None: as stored) with the adapter, if any, merged into its weights.

    Raises:
        ModelError: the adapter or its base cannot be loaded, or a sum does not fit into `dtype`.
    """
    model = _base(recipe, say) if model_path else base.load_base_model(_dense(recipe.base_model), "auto")
    stored = model.dtype
    if model_path is not None:
        model = adapters.load_adapter(model, model_path)
        if untie(model):
            say(
                "The base's head shares the embeddings' weights, but the adapter changes only one of them: "
                "the export gets separate head weights."
            )
        try:
            _merge(model, dtype or stored)
        except ValueError as error:  # PEFT found a weight that is NaN or inf
            raise ModelError(f"The adapter at {model_path} cannot be merged: {error}") from error
        model = model.unload()
    model = model.to(dtype or stored)
    if broken := next((n for n, p in model.named_parameters() if not p.isfinite().all()), None):
        raise ModelError(f"The weight {broken} does not fit into {model.dtype}: use --dtype bf16 or f32.")
    model.config.use_cache = True
    return model.eval()


def _dense(config: BaseModelConfig) -> BaseModelConfig:
    return config.model_copy(update={"load_in_4bit": False, "load_in_8bit": False})


def _base(recipe: Recipe, say: Callable[[str], None]) -> Any:
    """The weights that the adapter was trained over; a quantized base is dequantized."""
    config = recipe.base_model
    if not config.quantized:
        return base.load_base_model(config, "auto")
    bits = 4 if config.load_in_4bit else 8
    if importlib.util.find_spec("bitsandbytes") is None:
        say(
            f"The adapter was trained over a {bits}-bit base. bitsandbytes is not installed, so it is "
            "merged into the unquantized weights, and answers differ. Better: pip install bitsandbytes."
        )
        return base.load_base_model(_dense(config), "auto")
    say(f"The adapter was trained over a {bits}-bit base: it is merged into the dequantized weights.")
    precision = base.choose_precision(recipe.training)
    return base.load_base_model(config, precision.dtype).dequantize(precision.dtype)


def untie(model: Any) -> bool:
    """Give the head separate weights if it shares the embeddings' and an adapter changes either.

    Otherwise merging would change both, unlike the adapter. Returns whether it untied them.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    table, head = (e.get_base_layer() if isinstance(e, BaseTunerLayer) else e for e in ends)
    if head is None or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return False
    if head.weight.data_ptr() != table.weight.data_ptr():
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    own = model.get_base_model()
    own.all_tied_weights_keys = {}  # the weights that Transformers leaves out of a saved model
    return True


def _merge(model: Any, dtype: Any) -> None:
    """Merge one layer at a time, so that the whole model is never in memory in 32 bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            layer.float()
            module.merge(safe_merge=True)
            layer.to(dtype)
