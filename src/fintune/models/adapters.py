"""Adapters on the base model: LoRA, rsLoRA, DoRA, over full or quantized weights, through PEFT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.config import LoraConfig, hint
from fintune.errors import ConfigError, ModelError, first_line
from fintune.files import like_neighbours
from fintune.models import adapter_files, manifest
from fintune.models.adapter_files import CONFIG, WEIGHTS, AdapterFiles

ALL_LINEAR = ["all-linear"]
"""The `target_modules` value for every linear layer except the LM head."""


def peft_config(lora: LoraConfig) -> Any:
    """The recipe's adapter as PEFT's `LoraConfig`."""
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        target_modules="all-linear" if lora.target_modules == ALL_LINEAR else list(lora.target_modules),
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.init_lora_weights,
        task_type="CAUSAL_LM",
    )


def add_adapter(model: Any, lora: LoraConfig, seed: int = 42) -> Any:
    """Wrap a frozen base model with a new adapter whose weights are fp32.

    A is random from the seed and B is zero (Hu et al., 2021), so the adapter starts without effect; with
    PiSSA both come from the base's weights, and the base keeps the rest.

    Raises:
        ModelError: `target_modules` names a module that the model lacks or that cannot be adapted.
    """
    import peft
    import torch

    _check_targets(model, lora.target_modules)
    torch.manual_seed(seed)
    try:
        model = peft.get_peft_model(model, peft_config(lora))
    except ValueError as error:
        if "arget module" not in str(error):
            raise
        reason = first_line(error)
        raise ModelError(
            f"lora_config.target_modules is {lora.target_modules}, but PEFT cannot adapt them all: {reason}"
        ) from None
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    _keep_4bit_layout(model)
    return model


def _check_targets(model: Any, targets: list[str]) -> None:
    """Raise a ModelError for a name that matches no module: PEFT ignores it if other names match."""
    import torch

    if targets == ALL_LINEAR:
        return
    modules = dict(model.named_modules())
    linear = sorted({n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, torch.nn.Linear)})
    for target in targets:
        if not any(adapter_files.fits(name, target) for name in modules):
            raise ModelError(
                f"lora_config.target_modules names '{target}', which the base model does not have"
                f"{hint(target, linear)}"
            )


def _keep_4bit_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU: the repacked layout
    has no gradient, so after a validation most layers would learn nothing."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_adapter(folder: str | Path) -> Path:
    """Check that a folder holds a complete adapter that fintune can load, and return it.

    Raises:
        ModelError: the folder is missing, is not an adapter, or one of its files is invalid.
    """
    return _files(folder).folder


def _files(folder: str | Path) -> AdapterFiles:
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(
            f"There is no adapter at {folder}: train one with  python train.py --output_dir {folder}"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not an adapter: it has no {name}.")
    return adapter_files.read(folder)


def rank(folder: str | Path) -> int:
    """The largest rank of an adapter's layers."""
    return _files(folder).config.largest_rank


def load_adapter(
    model: Any, folder: str | Path, trainable: bool = False, *, name: str = "default", shared: bool = False
) -> Any:
    """The base model with the adapter of `folder` added to any that it already has.

    Files, names and shapes are checked before anything enters the model. A later failure is rolled back: the
    base and its other adapters then answer as before.

    Args:
        name: the adapter's name in PEFT, without dots.
        shared: see `adapter_files.check_fits`.

    Raises:
        ModelError: as in `check_adapter` and `check_fits`, or the manifest describes other weights.
    """
    import peft

    files = _files(folder)
    manifest.check_weights(files.folder)
    state = _weights(files, model, shared)
    if trainable:
        _keep_4bit_layout(model)
    config = _plain_config(files, trainable)
    try:
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, config)
        else:
            model = peft.PeftModelForCausalLM(model, config, adapter_name=name)
        peft.set_peft_model_state_dict(model, state, adapter_name=name)
    except Exception as error:
        withdraw(model, name)
        if not isinstance(error, RuntimeError | ValueError):
            raise
        raise files.refuse(first_line(error)) from error
    if isinstance(targets := files.config.target_modules, list):
        model.peft_config[name].target_modules = set(targets)  # so that saving writes the file's own names
    return model if trainable else model.eval()


def _plain_config(files: AdapterFiles, trainable: bool) -> Any:
    """PEFT's configuration of an adapter, built from the checked values: layer names, no pattern."""
    import peft

    config, modules = files.config, files.modules()
    ranks = {module: config.rank_of(module) for module in modules} if config.rank_pattern else {}
    alphas = {module: config.alpha_of(module) for module in modules} if config.alpha_pattern else {}
    return peft.LoraConfig(
        **config.model_dump(include={"r", "lora_alpha", "lora_dropout", "bias", "use_dora", "use_rslora"}),
        base_model_name_or_path=config.base_model_name_or_path,
        target_modules=modules,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        task_type="CAUSAL_LM",
        inference_mode=not trainable,
    )


def _weights(files: AdapterFiles, model: Any, shared: bool = False) -> dict[str, Any]:
    """The tensors of a fitting adapter; refused if the folder changed since the check."""
    from safetensors import safe_open

    with safe_open(files.folder / WEIGHTS, "pt") as weights:
        adapter_files.check_fits(files, model, shared)
        state = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    if {name: tuple(value.shape) for name, value in state.items()} != {
        name: shape for name, (_, shape) in files.tensors.items()
    }:
        raise ModelError(f"{files.folder} was changed while it was read: try again.")
    return state


def withdraw(model: Any, name: str) -> None:
    """Remove an adapter from a model, even a half-added one; the last one removes the LoRA layers too.

    Args:
        model: PEFT's, or the base if PEFT has only begun to add layers.
    """
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    from fintune.kernels import lora

    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    lora.disable(base)
    layers = [(path, layer) for path, layer in base.named_modules() if isinstance(layer, BaseTunerLayer)]
    for path, layer in layers:
        layer.delete_adapter(name)
        if not layer._all_available_adapter_names():
            parent, _, own = path.rpartition(".")
            setattr(base.get_submodule(parent), own, layer.get_base_layer())
    known = getattr(base, "peft_config", {})
    known.pop(name, None)
    if not known and "peft_config" in base.__dict__:
        del base.peft_config  # PEFT's sign that a model has adapters


def save(model: Any, tokenizer: Any, folder: Path, state: Any = None) -> None:
    """Write the adapter and its tokenizer in plain PEFT format.

    Args:
        state: the whole model's gathered state if FSDP has sharded it; None reads it from the model.
    """
    # Without the last argument PEFT looks the base up on the hub, to see whether its vocabulary grew.
    model.save_pretrained(folder, state_dict=state, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    like_neighbours(folder)


SHAPE = ("r", "lora_alpha", "target_modules", "bias", "use_dora", "use_rslora")
"""What a starting adapter and the recipe that continues it must agree on."""


def check_start(lora: LoraConfig, base: str) -> Path:
    """Check that the recipe can continue from `lora.init_adapter`, and return its folder.

    Args:
        base: the base model's public name.

    Raises:
        ConfigError: the adapter's shape or base differs from the recipe's.
        ModelError: as in `check_adapter`.
    """
    files = _files(lora.init_adapter or "")
    folder, saved = files.folder, files.config.model_dump()
    begin = f"lora_config.init_adapter is {folder}, "
    for key in SHAPE:
        wanted, found = getattr(lora, key), saved.get(key)
        if wanted == ALL_LINEAR:  # saved as the resolved names; `start_from` compares those in the weights
            continue
        if isinstance(wanted, list) and isinstance(found, list):
            wanted, found = sorted(wanted), sorted(found)
        if found != wanted:
            raise ConfigError(
                f"{begin}whose {key} is {found}, but lora_config.{key} is {wanted}: set it to {found}, or "
                "remove init_adapter."
            )
    if saved.get("rank_pattern") or saved.get("alpha_pattern"):
        raise ConfigError(f"{begin}whose layers differ in rank or alpha: remove init_adapter.")
    if (found := saved.get("base_model_name_or_path")) != base:
        raise ConfigError(
            f"{begin}an adapter of {found}, but base_model.name is {base}: set base_model.name to {found}, "
            "or remove init_adapter."
        )
    return folder


def start_from(model: Any, lora: LoraConfig, folder: Path, seed: int) -> Any:
    """The base model with the recipe's adapter and the weights of `folder`, to train further."""
    import peft

    files = _files(folder)
    manifest.check_weights(folder)
    state = _weights(files, model)
    model = add_adapter(model, lora, seed)
    found = peft.set_peft_model_state_dict(model, state)
    if odd := [*found.unexpected_keys, *(key for key in found.missing_keys if "lora_" in key)]:
        raise files.refuse(f"only one of the two has {odd[0]}")
    return model


def merge(model: Any) -> None:
    """Add the adapter to fp32 weights in place, so that a layer is one product; PEFT can unmerge it.

    Does nothing in lower precision, where rounding the sum would change answers, over quantized weights, if
    the adapter covers embeddings, which the head may share, or if it contains NaN or inf, because it could
    not be unmerged.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if model.dtype != torch.float32 or getattr(model, "is_quantized", False):
        return
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapter = (p for name, p in model.named_parameters() if "lora_" in name)
    if not any(isinstance(end, BaseTunerLayer) for end in ends) and all(p.isfinite().all() for p in adapter):
        model.merge_adapter()


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The untuned base; a merged adapter is unmerged and afterwards merged again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = any(isinstance(module, BaseTunerLayer) and module.merged for module in model.modules())
    if merged:
        model.unmerge_adapter()
    try:
        with model.disable_adapter():
            yield
    finally:
        if merged:
            model.merge_adapter()


@contextlib.contextmanager
def mixed_precision(model: Any, peft_forwards: bool = True) -> Iterator[None]:
    """Compute products in the frozen weights' dtype while the adapter's own weights stay fp32.

    Autocast casts an fp32 adapter weight once and caches it for the block. If some layers run PEFT's own
    forward (`peft_forwards`), its cast of their input to fp32 is switched off, because autocast would only
    cast it back.
    """
    import torch
    from peft.helpers import disable_input_dtype_casting

    if model.dtype == torch.float32 or not hasattr(model, "peft_config"):
        yield
        return
    casting = disable_input_dtype_casting(model, active=peft_forwards)  # walks over all modules twice
    with torch.autocast(model.device.type, dtype=model.dtype), casting:
        yield


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts as the numbers it represents."""
    trainable, total = model.get_nb_trainable_parameters()
    return int(trainable), int(total)


def test_model_loading() -> None:
    """Load the default base with a new adapter and generate a few words (a command for debugging)."""
    import time

    from fintune.models.base import choose_precision, load_base_model, load_tokenizer
    from fintune.recipes import default_recipe_path, load_recipe

    recipe = load_recipe(default_recipe_path())
    start = time.perf_counter()
    precision = choose_precision(recipe.training)
    tokenizer = load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    model = add_adapter(load_base_model(recipe.base_model, precision.dtype), recipe.lora_config)
    trainable, total = count_parameters(model)
    inputs = tokenizer("Revenue rose 8 percent to", return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    print(
        f"base model   {recipe.base_model.name} ({type(model.base_model.model).__name__}, {precision.dtype})"
    )
    print(f"adapter      r={recipe.lora_config.r} on {', '.join(recipe.lora_config.target_modules)}")
    print(f"parameters   {trainable:,} trainable of {total:,} ({trainable / total:.2%})")
    print(f"it writes    {tokenizer.decode(output[0], skip_special_tokens=True)!r}")
    print(f"✓ the model loads ({time.perf_counter() - start:.1f} s)")
