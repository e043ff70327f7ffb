"""The adapter on the base model: LoRA, rsLoRA, DoRA, over full or quantized weights, through PEFT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.config import LoraConfig, hint
from fintune.errors import ConfigError, ModelError
from fintune.files import like_neighbours
from fintune.models import adapter_files, manifest
from fintune.models.adapter_files import CONFIG, WEIGHTS, AdapterFiles

ALL_LINEAR = ["all-linear"]
"""`target_modules` of every linear layer but the LM head."""


def peft_config(lora: LoraConfig) -> Any:
    """The recipe's adapter as PEFT's own `LoraConfig`."""
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

    A is drawn from the seed and B is zero (Hu et al., 2021), so the adapter starts as no change; with PiSSA
    both come from the base's weights, which keep the rest.

    Raises:
        ModelError: `target_modules` names a module that the model does not have, or that cannot be adapted.
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
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"lora_config.target_modules is {lora.target_modules}, but PEFT cannot adapt them all: {reason}"
        ) from None
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    _keep_4bit_layout(model)
    return model


def _check_targets(model: Any, targets: list[str]) -> None:
    """Raise a ModelError on a name that fits no module, which PEFT would pass over where others fit."""
    import torch

    if targets == ALL_LINEAR:
        return
    modules = dict(model.named_modules())
    linear = sorted({n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, torch.nn.Linear)})
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):  # as PEFT compares
            raise ModelError(
                f"lora_config.target_modules names '{target}', which the base model does not have"
                f"{hint(target, linear)}"
            )


def _keep_4bit_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights when it first evaluates on a CPU: the repacked layout
    has no gradient, so that training after a validation would learn nothing in most layers."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_adapter(folder: str | Path) -> Path:
    """The folder, once it is plain that it holds a whole adapter, of a kind that fintune loads.

    Raises:
        ModelError: there is no such folder, or it is no adapter, or one of its files is not as it must be.
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
    config = _files(folder).config
    return max([config.r, *config.rank_pattern.values()])


def load_adapter(
    model: Any, folder: str | Path, trainable: bool = False, *, name: str = "default", shared: bool = False
) -> Any:
    """The base model with the adapter of `folder`: beside those that it has, or as its first.

    Nothing is put into the model before files, names and shapes are checked, and what fails later is taken
    out again: the base and the adapters on it answer as before.

    Args:
        name: what PEFT calls it, without dots.
        shared: see `adapter_files.check_fits`.

    Raises:
        ModelError: as `check_adapter` and `check_fits`, or the manifest describes other weights.
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
        raise files.refuse(str(error).splitlines()[0]) from error
    if isinstance(targets := files.config.target_modules, list):
        model.peft_config[name].target_modules = set(targets)  # what is saved names them as the file did
    return model if trainable else model.eval()


def _plain_config(files: AdapterFiles, trainable: bool) -> Any:
    """PEFT's configuration of an adapter, made of what was checked: names of layers, no pattern."""
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
    """The tensors of an adapter that fits; what was checked is what is read, whoever writes to the folder."""
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
    """Take an adapter out of a model, however little of it is there; the last one's layers go too.

    Args:
        model: PEFT's, or the base where PEFT has only begun to put layers into it.
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
        del base.peft_config  # PEFT's mark of a model that it has adapters on


def save(model: Any, tokenizer: Any, folder: Path, state: Any = None) -> None:
    """Write the adapter as plain PEFT does, with its tokenizer.

    Args:
        state: the whole model's gathered state, where FSDP has sharded it; None reads the model's own.
    """
    # Without the last argument PEFT looks the base model up on the hub, to see whether its vocabulary grew.
    model.save_pretrained(folder, state_dict=state, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    like_neighbours(folder)


SHAPE = ("r", "lora_alpha", "target_modules", "bias", "use_dora", "use_rslora")
"""What an adapter and the recipe that trains it further must agree on."""


def check_start(lora: LoraConfig, base: str) -> Path:
    """The folder of `lora.init_adapter`, once it is plain that the recipe can go on from it.

    Args:
        base: the base model's public name.

    Raises:
        ConfigError: the adapter has another shape than the recipe's, or another base.
        ModelError: as `check_adapter`.
    """
    folder = check_adapter(lora.init_adapter or "")
    saved = _files(folder).config.model_dump()
    begin = f"lora_config.init_adapter is {folder}, "
    for key in SHAPE:
        wanted, found = getattr(lora, key), saved.get(key)
        if wanted == ALL_LINEAR:  # saved as the names it stood for; `start_from` compares the weights' names
            continue
        if isinstance(wanted, list) and isinstance(found, list):
            wanted, found = sorted(wanted), sorted(found)
        if found != wanted:
            raise ConfigError(
                f"{begin}whose {key} is {found}, but lora_config.{key} is {wanted}: set it to {found}, or "
                "leave out init_adapter."
            )
    if saved.get("rank_pattern") or saved.get("alpha_pattern"):
        raise ConfigError(f"{begin}whose layers differ in rank or alpha: leave out init_adapter.")
    if (found := saved.get("base_model_name_or_path")) != base:
        raise ConfigError(
            f"{begin}an adapter of {found}, but base_model.name is {base}: name its base there, or leave "
            "out init_adapter."
        )
    return folder


def start_from(model: Any, lora: LoraConfig, folder: Path, seed: int) -> Any:
    """The base model with the recipe's adapter and the weights of `folder`, to be trained further."""
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
    """Add the adapter to fp32 weights in place, so that a layer is one product; PEFT can take it off again.

    Nothing is done in a lower precision, where the sum would be rounded and answers would change, over
    quantized weights, where the adapter covers embeddings, which the head may share, or where it holds what
    is no number, which could not be taken off again.
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
    """The untuned base, also under a merged adapter, which is merged again afterwards."""
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

    Under autocast an fp32 adapter weight is cast once and kept for the block. Where some layers run PEFT's
    own forward (`peft_forwards`), its cast of their input to fp32 is switched off: autocast would only cast
    it back.
    """
    import torch
    from peft.helpers import disable_input_dtype_casting

    if model.dtype == torch.float32 or not hasattr(model, "peft_config"):
        yield
        return
    casting = disable_input_dtype_casting(model, active=peft_forwards)  # walks over all modules, twice
    with torch.autocast(model.device.type, dtype=model.dtype), casting:
        yield


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts as the numbers it stands for."""
    trainable, total = model.get_nb_trainable_parameters()
    return int(trainable), int(total)


def test_model_loading() -> None:
    """Load the default base model with a new adapter and say a word with it (the guide's debug command)."""
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
