"""Read an adapter's folder as untrusted data: both files are checked before anything reaches a model.

The configuration is a short list of fields, each within bounds; any other field is refused by name. The
weights are safetensors whose names, shapes and types are read from the header and must match those that the
configuration creates on this base. Nothing here changes a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fintune.errors import DataError, ModelError
from fintune.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
"""The two files of an adapter, as PEFT names them."""
MAX_CONFIG, MAX_HEADER = 1_000_000, 16_000_000
"""Size limits in bytes of the configuration and of the weights' header."""
TYPES = ("F32", "F16", "BF16")
"""The number types that weights may have."""
PREFIX = "base_model.model."
"""PEFT's prefix of module names."""

_Rank = Annotated[int, Field(ge=1, le=4096)]
_Alpha = Annotated[int | float, Field(gt=0, le=1e6, allow_inf_nan=False)]
_Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
"""A name, not a pattern: PEFT would run a pattern as a regular expression, which may never end."""
_DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""PEFT writes these beside fields that are refused."""
_IGNORED = {"peft_version", "auto_mapping", "revision", "inference_mode", "fan_in_fan_out"}
"""PEFT's bookkeeping, which nothing here reads."""


class AdapterConfig(BaseModel):
    """The fields an `adapter_config.json` may set; others must be empty or have PEFT's default."""

    model_config = ConfigDict(strict=True, extra="forbid")

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    r: _Rank = 8
    lora_alpha: _Alpha = 8
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    target_modules: list[_Module] | Annotated[str, Field(max_length=10_000)]
    """Names; a string is `all-linear` or a pattern, which is never run: the weights show what it matched."""
    rank_pattern: dict[_Module, _Rank] = {}
    alpha_pattern: dict[_Module, _Alpha] = {}
    use_dora: bool = False
    use_rslora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal"] = True
    """How training was initialized. The other ways change the base, which an adapter must not do."""

    @property
    def largest_rank(self) -> int:
        return max([self.r, *self.rank_pattern.values()])

    def rank_of(self, module: str) -> int:
        return int(_of(self.rank_pattern, module, self.r))

    def alpha_of(self, module: str) -> float:
        return _of(self.alpha_pattern, module, self.lora_alpha)


def _of(pattern: dict[str, Any], module: str, default: Any) -> Any:
    return next((value for name, value in pattern.items() if fits(module, name)), default)


def fits(module: str, target: str) -> bool:
    """Whether PEFT adapts a module because of this name in `target_modules`."""
    return module == target or module.endswith(f".{target}")


@dataclass(frozen=True)
class AdapterFiles:
    """A folder's configuration, and each tensor's type and shape; no weights are read yet."""

    folder: Path
    config: AdapterConfig
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    def modules(self) -> list[str]:
        """The adapted modules, by the base's names."""
        found = (
            re.split(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b", name)
            for name in self.tensors
        )
        return sorted({begin[0].removeprefix(PREFIX) for begin in found if len(begin) == 2})

    def refuse(self, why: str) -> ModelError:
        return ModelError(f"The adapter at {self.folder} does not fit its base model: {why}.")


def read(folder: Path) -> AdapterFiles:
    """Read both files of a folder and check each on its own.

    Raises:
        ModelError: one is damaged or too large, or the configuration sets what fintune does not load.
    """
    config, tensors = _config(folder), _header(folder)
    for name, (kind, shape) in tensors.items():
        if kind not in TYPES or not all(shape):
            raise ModelError(
                f"{folder / WEIGHTS} holds {_short(name)} of type {kind} and shape {list(shape)}: an "
                f"adapter's weights are matrices of {', '.join(TYPES)}."
            )
    return AdapterFiles(folder, config, tensors)


def _config(folder: Path) -> AdapterConfig:
    path = folder / CONFIG
    try:
        raw = read_json(path, MAX_CONFIG)
    except DataError as error:
        raise ModelError(str(error)) from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is damaged: it has no fields.")
    raw = {key: value for key, value in raw.items() if value is not None and key not in _IGNORED}
    known = AdapterConfig.model_fields
    for key, value in raw.items():
        if key not in known and value not in (False, {}, [], "", _DEFAULTS.get(key)):
            raise ModelError(
                f"{path} sets {_short(key)} to {_short(value)}, but fintune loads only plain LoRA, rsLoRA "
                "and DoRA: train the adapter without it."
            )
    try:
        return AdapterConfig.model_validate({key: raw[key] for key in raw if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        value = "nothing" if first["type"] == "missing" else _short(first["input"])
        raise ModelError(
            f"{path} sets {_short(first['loc'][0])} to {value}, which fintune does not load "
            f"({first['msg'][:200]}): save the adapter as a plain LoRA."
        ) from None


def _header(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > MAX_HEADER:
        raise ModelError(f"{path} is damaged: its header has {size:,} bytes, more than {MAX_HEADER:,}.")
    try:
        with safe_open(path, "pt") as weights:
            slices = ((name, weights.get_slice(name)) for name in weights.keys())  # noqa: SIM118
            return {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{folder} is damaged ({error}): use an earlier checkpoint, or train again."
        ) from None


def _short(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        text = "…"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else f"{text[:80]}…"


# Checks against the base --------------------------------------------------------------------------------


def base_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Each module of the base by its own name, even if adapters are already attached."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    within = None
    for name, module in (model.get_base_model() if isinstance(model, PeftModel) else model).named_modules():
        if within and name.startswith(within):
            continue
        within = None
        if isinstance(module, BaseTunerLayer):
            within, module = f"{name}.", module.get_base_layer()
        yield name, module


def check_fits(files: AdapterFiles, model: Any, shared: bool = False) -> None:
    """Check that the weights have the names and shapes that the configuration creates on this base.

    Args:
        shared: the base also serves other adapters, so its biases must not change.

    Raises:
        ModelError: a layer is missing, has another size, or is not one that LoRA adapts.
    """
    config, layers = files.config, dict(base_layers(model))
    if shared and config.bias != "none":
        raise files.refuse(
            f"its bias is {config.bias}, which changes the base's own: serve it alone with fintune demo "
            "--model_path, or merge it with fintune export"
        )
    targets = config.target_modules
    modules = files.modules()
    if isinstance(targets, list):
        modules = [name for name in layers if any(fits(name, target) for target in targets)]
    if not modules:
        raise files.refuse(f"the base has no layer of {_short(targets)}")
    wanted: dict[str, tuple[int, ...]] = {}
    for name in modules:
        wanted |= _tensors(files, name, layers.get(name))
    if config.bias != "none":
        wanted |= _biases(files, layers)
    for name in sorted(wanted.keys() ^ files.tensors.keys()):
        raise files.refuse(
            f"its weights have no {_short(name)}"
            if name in wanted
            else f"its weights have {_short(name)}, which is not one of its LoRA matrices on this base"
        )
    for name, shape in wanted.items():
        if (found := files.tensors[name][1]) != shape:
            raise files.refuse(f"{_short(name)} is {list(found)}, and must be {list(shape)}")


def _tensors(files: AdapterFiles, name: str, layer: Any) -> dict[str, tuple[int, ...]]:
    """The tensors of one adapted layer, with their shapes."""
    import torch
    from transformers.pytorch_utils import Conv1D

    r, own = files.config.rank_of(name), f"{PREFIX}{name}.lora_"
    if isinstance(layer, torch.nn.Embedding):
        wide, out = layer.num_embeddings, layer.embedding_dim
        tensors: dict[str, tuple[int, ...]] = {f"{own}embedding_A": (r, wide), f"{own}embedding_B": (out, r)}
    elif isinstance(layer, torch.nn.Linear | Conv1D):
        wide, out = (
            (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        )
        tensors = {f"{own}A.weight": (r, wide), f"{own}B.weight": (out, r)}
    else:
        what = f"is a {type(layer).__name__}" if layer is not None else "is not a layer of the base"
        raise files.refuse(f"{_short(name)} {what}, which LoRA does not adapt")
    if files.config.use_dora:
        tensors[f"{own}magnitude_vector"] = (out,)
    return tensors


def _biases(files: AdapterFiles, layers: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The base's biases among the weights; `bias` decides which ones there are."""
    found = {}
    for name in files.tensors:
        module = name.removeprefix(PREFIX).removesuffix(".bias").removesuffix(".base_layer")
        bias = getattr(layers.get(module), "bias", None)
        if name.endswith(".bias") and bias is not None:
            found[name] = tuple(bias.shape)
    return found
