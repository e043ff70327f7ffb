"""`fintune.json`, the file beside an adapter that says how it was made and how to ask it.

Plain PEFT ignores it; an adapter without one (made elsewhere) is read with the built-in tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fintune.config import BaseModelConfig, Recipe
from fintune.errors import ModelError
from fintune.files import read_json, write_json
from fintune.tasks import TaskSet, task_from_dict, task_set

NAME = "fintune.json"


def write(folder: str | Path, recipe: Recipe, tasks: TaskSet, **facts: Any) -> None:
    """Keep the recipe, the fitted tasks and whatever else is known of the run."""
    content = {
        "format": 1,
        **facts,
        "recipe": recipe.model_dump(),
        "tasks": [task.to_dict() for task in tasks],
    }
    write_json(Path(folder) / NAME, content)


def read_raw(folder: str | Path) -> dict[str, Any]:
    """The manifest as written; {} where there is none."""
    path = Path(folder) / NAME
    return read_json(path) if path.is_file() else {}


def facts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says beside the recipe and the tasks: the `facts` that `write` was given."""
    return {key: value for key, value in raw.items() if key not in ("format", "recipe", "tasks")}


def read(folder: str | Path, fallback: Recipe | None = None) -> tuple[Recipe, TaskSet]:
    """The recipe and the tasks of an adapter.

    Raises:
        ModelError: the manifest is of another version of fintune and cannot be read.
    """
    raw = read_raw(folder)
    if not raw:
        base = read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path") or ""
        recipe = fallback or Recipe()
        recipe = recipe.model_copy(update={"base_model": BaseModelConfig(name=base)}) if base else recipe
        return recipe, task_set(recipe)
    if raw.get("recipe", {}).get("training", {}).get("max_steps") == 0:
        raw["recipe"]["training"]["max_steps"] = -1  # what 0 did before it was refused
    try:
        recipe = Recipe.model_validate(raw["recipe"])
        task_set(recipe)  # imports the plug-ins that the stored tasks may need
        return recipe, TaskSet({fields["name"]: task_from_dict(fields) for fields in raw["tasks"]})
    except (KeyError, ValidationError) as error:
        raise ModelError(
            f"{Path(folder) / NAME} cannot be read by this version of fintune ({error}): train again, or use "
            f"fintune {raw.get('versions', {}).get('fintune', 'of that time')}."
        ) from error
