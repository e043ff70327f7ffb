"""The checkpoints of a run: which there are, and whether a run can go on from one."""

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
"""Keys of `training` that may differ when a run goes on: they change no weight."""


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, the one written last at the end."""
    found = [p for p in Path(output_dir).glob("checkpoint-[0-9]*") if p.is_dir()]
    return sorted(found, key=lambda p: (os.path.getmtime(p), int(p.name.rpartition("-")[2])))


def origin(
    recipe: Recipe, output_dir: Path, resume: str | Path | None = None, overwrite: bool = False
) -> tuple[Path | None, Path | None]:
    """The checkpoint to resume, or the adapter to go on from; checked before data and model are loaded.

    Raises:
        ConfigError: what stands in the folder would be lost, or the recipe is another than the checkpoint's.
        ModelError: there is no such checkpoint, adapter or base, or it is not whole.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir is {output_dir}, which is a file: name a folder.")
    check_base(recipe.base_model)
    if resume:
        return find_checkpoint(resume, output_dir, recipe), None
    if not overwrite and (what := occupant(output_dir)):
        raise ConfigError(
            f"{output_dir} holds {what}: go on with it by --resume_from_checkpoint, replace it by "
            "--overwrite, or name another --output_dir."
        )
    if recipe.lora_config.init_adapter:
        return None, check_start(recipe.lora_config, public_name(recipe.base_model.name))
    return None, None


def occupant(output_dir: Path) -> str:
    """What of an earlier run stands in a folder, in words; "" where nothing does."""
    if (weights := output_dir / WEIGHTS).is_file():
        return f"a finished adapter, of {datetime.fromtimestamp(weights.stat().st_mtime):%Y-%m-%d %H:%M}"
    if found := checkpoints(output_dir):
        return f"{found[-1].name} of a run that did not end"
    return ""


def saved(output_dir: Path) -> str:
    """What of a stopped run is on disk, and how it goes on, in a sentence."""
    if found := checkpoints(output_dir):
        return f"{found[-1]} is whole: the same command with --resume_from_checkpoint goes on from it."
    return "No checkpoint was written yet: the same command begins anew."


def checkpoint_bytes(model: Any, copies: int = 4) -> int:
    """The size of a checkpoint, about: the trained weights, AdamW's two moments and the best weights are four
    `copies` of the trained ones; of the adapter alone it is one. The rest is mostly the tokenizer."""
    return 8_000_000 + copies * sum(
        p.numel() * p.element_size() for p in model.parameters() if p.requires_grad
    )


def find_checkpoint(resume: str | Path, output_dir: Path, recipe: Recipe) -> Path:
    """The checkpoint to resume from: `resume`, or with "latest" the newest in `output_dir`.

    Raises:
        ConfigError: it was trained by another recipe.
        ModelError: there is none, or it is not whole.
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
    # A key that the checkpoint's recipe lacks is newer than the checkpoint: it was trained with the default.
    was, defaults, now = (
        manifest.read_raw(folder).get("recipe", {}),
        Recipe().model_dump(),
        recipe.model_dump(),
    )
    for section in ("base_model", "lora_config", "multi_task", "training") if was else ():
        for key, value in {**defaults[section], **was.get(section, {})}.items():
            if key not in MAY_CHANGE and now[section].get(key) not in (value, AUTO):
                raise ConfigError(
                    f"{folder} was trained with {section}.{key} = {value}, but the recipe says "
                    f"{now[section].get(key)}: resume with the same recipe, or train without resuming."
                )
    return folder


def going_on(recipe: Recipe, checkpoint: Path) -> Recipe:
    """The recipe with the numbers that the checkpoint's run had for each `auto`, but what fits a device."""
    was = manifest.read_raw(checkpoint).get("recipe", {}).get("training", {})
    fixed = was.keys() - {"row_tokens"}
    numbers = {key: was[key] for key, value in recipe.training if value == AUTO and key in fixed}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=numbers)})


def _check_whole(folder: Path) -> None:
    """Raise a ModelError unless adapter, optimizer, schedule and random states are all there and readable."""
    check_adapter(folder)
    random_states = sorted(folder.glob("rng_state*.pth")) or [folder / "rng_state.pth"]  # one a process
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
    """Raise a DataError where the checkpoint was trained on other data: its schedule names examples."""
    was = manifest.read_raw(checkpoint).get("data", {})
    if was and was.get("files") != prepared.manifest["files"]:
        raise DataError(
            f"{checkpoint} was trained on other data ({_datasets(was)}) than is prepared now "
            f"({prepared.describes}): resume with the same data, or train without resuming."
        )


def _datasets(data: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(entry["dataset"] for entry in data["tasks"].values()))
