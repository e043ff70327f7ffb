"""`fintune.json`: the file beside an adapter that records how it was made and how to ask it.

Plain PEFT ignores it; an adapter without one (made elsewhere) is read with the built-in tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fintune.config import AUTO, Recipe
from fintune.errors import ModelError
from fintune.files import known_sha256, read_json, write_json
from fintune.models.adapter_files import CONFIG, MAX_CONFIG, WEIGHTS
from fintune.tasks import TaskSet, plugins, task_from_dict, task_set

NAME = "fintune.json"
MAX_BYTES = 64_000_000


def write(folder: str | Path, recipe: Recipe, tasks: TaskSet, **facts: Any) -> None:
    """Store the recipe, the fitted tasks and other facts of the run, and the checksum of its weights."""
    weights = Path(folder) / WEIGHTS
    content = {
        "format": 1,
        **facts,
        **({"weights_sha256": known_sha256(weights)} if weights.is_file() else {}),
        "recipe": recipe.model_dump(),
        "tasks": [task.to_dict() for task in tasks],
    }
    write_json(Path(folder) / NAME, content)


def read_raw(folder: str | Path) -> dict[str, Any]:
    """The manifest as written; {} if there is none."""
    path = Path(folder) / NAME
    if not path.is_file():
        return {}
    raw = read_json(path, MAX_BYTES)
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is damaged: it has no fields.")
    return raw


def part(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a manifest; {} if it is missing or, in a folder from elsewhere, something else."""
    found = raw.get(name)
    return found if isinstance(found, dict) else {}


def facts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's content besides recipe and tasks: the `facts` that `write` was given."""
    return {k: v for k, v in raw.items() if k not in ("format", "recipe", "tasks", "weights_sha256")}


def asked(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as it was asked for, in which what fitted the data is `auto` again; {} if there is none."""
    recipe = part(raw, "recipe")
    if recipe:
        recipe["training"] |= dict.fromkeys(raw.get("fitted", ()), AUTO)
    return recipe


def check_weights(folder: str | Path) -> None:
    """Raise a ModelError if the manifest belongs to other weights than those beside it.

    A run killed while replacing an adapter leaves such a folder, and so does an incomplete copy.
    """
    path = Path(folder) / WEIGHTS
    wanted = read_raw(folder).get("weights_sha256")
    if wanted and known_sha256(path) != wanted:
        raise ModelError(
            f"{folder} mixes two adapters: {NAME} and {WEIGHTS} do not belong together. Copy all of its "
            "files again, or train again with --overwrite. If you changed the weights yourself, remove "
            f"weights_sha256 from {NAME}."
        )


def read_recipe(folder: str | Path, fallback: Recipe | None = None) -> Recipe:
    """The recipe of an adapter; does not import its plug-ins.

    Raises:
        ModelError: the manifest is from another version of fintune and cannot be read.
    """
    return _recipe(folder, read_raw(folder), fallback)


def _recipe(folder: str | Path, raw: dict[str, Any], fallback: Recipe | None) -> Recipe:
    if not raw:
        config = read_json(Path(folder) / CONFIG, MAX_CONFIG)
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        recipe = fallback or Recipe()
        return recipe.on_base(base) if base else recipe
    try:
        trained = raw["recipe"]
        if trained.get("training", {}).get("max_steps") == 0:
            trained["training"]["max_steps"] = -1  # what 0 meant before it was refused
        return Recipe.model_validate(trained)
    except _UNREADABLE as error:
        raise _unreadable(folder, raw, error) from error


def read(folder: str | Path, fallback: Recipe | None = None) -> tuple[Recipe, TaskSet]:
    """The recipe and the tasks of an adapter.

    Args:
        fallback: the user's recipe; it replaces a missing manifest, and the plug-ins it names are trusted.

    Raises:
        ConfigError: the adapter names plug-ins that nobody has trusted.
        ModelError: the manifest is from another version of fintune and cannot be read.
    """
    raw = read_raw(folder)
    recipe = _recipe(folder, raw, fallback)
    if not raw:
        return recipe, task_set(recipe)
    if fallback and fallback.plugin_folder is not None:
        plugins.trust(fallback.plugins)
    plugins.check_trusted(recipe.plugins, str(folder))
    task_set(recipe)  # imports the plug-ins that the stored tasks may need
    try:
        return recipe, TaskSet({fields["name"]: task_from_dict(fields) for fields in raw["tasks"]})
    except _UNREADABLE as error:
        raise _unreadable(folder, raw, error) from error


_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)
"""Errors from reading a manifest of another version, or one edited by hand."""


def _unreadable(folder: str | Path, raw: dict[str, Any], error: Exception) -> ModelError:
    version = part(raw, "versions").get("fintune")
    return ModelError(
        f"{Path(folder) / NAME} cannot be read by this version of fintune ({error}): train again, or use "
        f"fintune {version or 'in the version that wrote it'}."
    )
