"""Reading a recipe: YAML and `--set` overrides in, a valid `Recipe` out, or a sentence on each mistake."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fintune.config import (
    CustomTaskConfig,
    DataConfig,
    EvaluationConfig,
    Recipe,
    TaskDataConfig,
    TextFormatConfig,
    TrainingConfig,
    hint,
)
from fintune.errors import ConfigError


def default_recipe_path() -> Path:
    """`configs/default.yaml` of the working folder, the repository, or the installed package."""
    homes = (Path.cwd(), Path(__file__).parents[2], Path(sys.prefix) / "share" / "fintune")
    for home in homes:
        path = home / "configs" / "default.yaml"
        if path.is_file():
            return path
    raise ConfigError("configs/default.yaml was not found: give a recipe with --config.")


def load_recipe(path: str | Path, overrides: Sequence[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or empty or no YAML mapping, or a key or value is not valid;
            the message names the file, the key, the value and the nearest valid key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe at {path}: give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds a {type(raw).__name__}, not sections of settings"
        raise ConfigError(f"{path} {what}: write sections such as `training:` with keys under them.")
    return recipe_from(raw, overrides, str(path))


def recipe_from(raw: dict[str, Any], overrides: Sequence[str] | None, where: str) -> Recipe:
    """A recipe of plain values with `section.key=value` overrides; `where` names its source in errors."""
    raw = copy.deepcopy(raw)
    for override in overrides or []:
        _apply(raw, override)
    if overrides:
        where += ", with --set " + " ".join(overrides)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(item, where) for item in error.errors())) from None


_RIVALS = (
    {"batch_size", "per_device_train_batch_size"},
    {"warmup_steps", "warmup_ratio"},
    {"fp16", "bf16"},
    {"load_in_4bit", "load_in_8bit"},
    {"dataset", "file"},
)
"""Keys of which a section may have one; an override replaces the other."""


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value, such as training.seed=1.")
    *sections, last = key.strip().split(".")
    node = raw
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section of settings.")
        node = child
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value {text!r} is not valid YAML.") from None
    if value:
        for rivals in _RIVALS:
            for rival in rivals - {last} if last in rivals else ():
                node.pop(rival, None)
    node[last] = value


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section that holds the last key of `location`."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, int) or model in (TaskDataConfig, TextFormatConfig):
            continue
        if (model, part) in ((DataConfig, "tasks"), (EvaluationConfig, "formats")):
            model = TaskDataConfig if part == "tasks" else TextFormatConfig
            continue
        model = CustomTaskConfig if part == "custom_task" else model.model_fields[part].annotation
    return [*model.model_fields, *(["batch_size"] if model is TrainingConfig else [])]


def _sentence(item: Any, where: str) -> str:
    location, value = item["loc"], item["input"]
    if location[:1] == ("custom_task",):
        location = tuple(part for part in location if not isinstance(part, int))
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        near = hint(str(location[-1]), _valid_keys(location))
        return f"{key} (set to {value!r}) is not a known key{near} (in {where})"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{f'{key}: ' if key else ''}{message} (in {where})"
    if item["type"] == "missing":
        return f"{key} is missing (in {where})"
    limit = message.removeprefix("Input should be ").replace("greater than or equal to", ">=")
    limit = limit.replace("greater than", ">").replace("less than", "<")
    return f"{key} must be {limit}, got {value!r} (in {where})"
