"""Finds a run's checkpoints and checks whether a run can resume from one."""

from __future__ import annotations

import os
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

from fintune.config import AUTO, Recipe
from fintune.data.prepare.dataset import PreparedDataset
from fintune.errors import ConfigError, DataError, ModelError
from fintune.files import read_json
from fintune.models import manifest
from fintune.models.adapters import WEIGHTS, check_adapter, check_start
from fintune.models.base import check_base, public_name

MAY_CHANGE = (
    "logging_steps",
    "eval_steps",
    "early_stopping_patience",
    "save_steps",
    "save_minutes",
    "save_total_limit",
    "row_tokens",
)
"""Keys of `training` that may differ on resume, because they change no weight."""


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-[0-9]*") if p.is_dir()]
    return sorted(found, key=lambda p: (os.path.getmtime(p), int(p.name.rpartition("-")[2])))


def origin(
    recipe: Recipe, output_dir: Path, resume: str | Path | None = None, overwrite: bool = False
) -> tuple[Path | None, Path | None]:
    """The checkpoint to resume, or the adapter to continue from; checked before data and model are loaded.

    Raises:
        ConfigError: training would destroy what the folder holds, or the checkpoint has another recipe.
        ModelError: the checkpoint, adapter or base is missing or incomplete.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir is {output_dir}, which is a file: name a folder.")
    check_base(recipe.base_model)
    if resume:
        return find_checkpoint(resume, output_dir, recipe), None
    if not overwrite and (what := occupant(output_dir)):
        raise ConfigError(
            f"{output_dir} holds {what}: continue it with --resume_from_checkpoint, replace it with "
            "--overwrite, or name another --output_dir."
        )
    if recipe.lora_config.init_adapter:
        return None, check_start(recipe.lora_config, public_name(recipe.base_model.name))
    return None, None


def occupant(output_dir: Path) -> str:
    """What an earlier run left in the folder, in words; "" if nothing."""
    if (weights := output_dir / WEIGHTS).is_file():
        return f"a finished adapter, of {datetime.fromtimestamp(weights.stat().st_mtime):%Y-%m-%d %H:%M}"
    if found := checkpoints(output_dir):
        return f"{found[-1].name} of an unfinished run"
    return ""


def saved(output_dir: Path) -> str:
    """What a stopped run left on disk and how to resume it, in one sentence."""
    if found := checkpoints(output_dir):
        return f"{found[-1]} is complete: repeat the command with --resume_from_checkpoint to continue."
    return "No checkpoint was written yet: the same command starts again from the beginning."


def checkpoint_bytes(model: Any, copies: int = 4) -> int:
    """The approximate size of a checkpoint. A full one holds four `copies` of the trained weights (weights,
    AdamW's two moments, best weights), the adapter alone one. The rest is mostly the tokenizer."""
    return 8_000_000 + copies * sum(
        p.numel() * p.element_size() for p in model.parameters() if p.requires_grad
    )


def find_checkpoint(resume: str | Path, output_dir: Path, recipe: Recipe) -> Path:
    """The checkpoint to resume from: `resume`, or the newest in `output_dir` for "latest".

    Raises:
        ConfigError: it was trained with another recipe.
        ModelError: it is missing or incomplete.
    """
    if str(resume) == "latest":
        found = checkpoints(output_dir)
        if not found:
            raise ModelError(f"{output_dir} holds no checkpoint to resume from: train without resuming.")
        folder = found[-1]
    else:
        folder = Path(resume)
        if not folder.is_dir():
            raise ModelError(f"There is no checkpoint at {folder}: look for checkpoint-* in {output_dir}.")
    _check_whole(folder)
    # A key that the checkpoint's recipe lacks is newer: the checkpoint was trained with its default.
    was, defaults = manifest.read_raw(folder).get("recipe", {}), Recipe().model_dump()
    now = recipe.model_dump()
    for section in ("base_model", "lora_config", "multi_task", "training") if was else ():
        for key, value in {**defaults[section], **was.get(section, {})}.items():
            if key not in MAY_CHANGE and now[section].get(key) not in (value, AUTO):
                raise ConfigError(
                    f"{folder} was trained with {section}.{key} = {value}, but the recipe says "
                    f"{now[section].get(key)}: resume with the same recipe, or train without resuming."
                )
    return folder


def going_on(recipe: Recipe, checkpoint: Path) -> Recipe:
    """The recipe with the checkpoint's numbers for each `auto`, except those that depend on the device."""
    was = manifest.read_raw(checkpoint).get("recipe", {}).get("training", {})
    fixed = was.keys() - {"row_tokens"}
    numbers = {key: was[key] for key, value in recipe.training if value == AUTO and key in fixed}
    return recipe.changed("training", **numbers)


def _check_whole(folder: Path) -> None:
    """Raise a ModelError unless adapter, optimizer, schedule and random states are present and readable."""
    check_adapter(folder)
    random_states = sorted(folder.glob("rng_state*.pth")) or [folder / "rng_state.pth"]  # one per process
    for path in (folder / "optimizer.pt", folder / "scheduler.pt", *random_states):
        if not path.is_file():
            raise ModelError(f"{folder} is no checkpoint to resume from: it has no {path.name}.")
        whole = zipfile.is_zipfile(path)
        if whole:
            with zipfile.ZipFile(path) as archive:
                whole = archive.testzip() is None
        if not whole:
            raise ModelError(f"{path} is damaged or truncated: resume from an earlier checkpoint.")
    read_json(folder / "trainer_state.json")


def check_same_data(checkpoint: Path, prepared: PreparedDataset) -> None:
    """Raise a DataError if the checkpoint was trained on other data: its schedule refers to examples."""
    was = manifest.read_raw(checkpoint).get("data", {})
    if was and was.get("files") != prepared.manifest["files"]:
        datasets = ", ".join(dict.fromkeys(entry["dataset"] for entry in was["tasks"].values()))
        raise DataError(
            f"{checkpoint} was trained on other data ({datasets}) than is prepared now "
            f"({prepared.describes}): resume with the same data, or train without resuming."
        )
