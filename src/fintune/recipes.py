"""Read a recipe: YAML and `--set` overrides in, a valid `Recipe` out, or one sentence per mistake."""

from __future__ import annotations

import copy
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fintune.config import (
    BaseModelConfig,
    CustomTaskConfig,
    DataConfig,
    EvaluationConfig,
    Recipe,
    TaskDataConfig,
    TextFormatConfig,
    TrainingConfig,
)
from fintune.errors import ConfigError, hint

_ELSEWHERE = {
    "lora_config.init_adapter": "adapter_name_or_path",
    "lora_config.lora_alpha": "alpha",
    "training.per_device_train_batch_size": "batch micro_batch_size",
    "training.early_stopping_patience": "early_stopping patience",
    "training.load_best_model_at_end": "load_best save_best",
    "training.max_length": "cutoff_len max_seq_len max_seq_length seq_len",
    "lora_config.use_dora": "dora",
    "lora_config.lora_dropout": "dropout",
    "training.num_train_epochs": "epochs n_epochs num_epochs",
    "training.gradient_accumulation_steps": "grad_accum",
    "lora_config.r": "lora_dim lora_r lora_rank rank",
    "lora_config.target_modules": "lora_target",
    "training.learning_rate": "lr",
    "training.lr_scheduler_type": "lr_scheduler scheduler",
    "base_model.name": "model model_name model_name_or_path",
    "data.tasks.TASK.file": "path train_file",
    "lora_config": "lora peft_config",
    "base_model.load_in_4bit": "quantization_bit",
    "lora_config.use_rslora": "rslora",
    "training.max_steps": "steps",
    "multi_task.task_weights": "tasks",
    "training.warmup_ratio": "warmup",
    "training.weight_decay": "wd",
}
"""Recipe key → its names in other programs."""
ALIASES = {name: key for key, names in _ELSEWHERE.items() for name in names.split()}


class _Loader(yaml.SafeLoader):
    """YAML with only true and false as booleans, as in YAML 1.2: `yes` and `no` may be labels.

    The recipe's schema still accepts them as switches.
    """


_BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1_000_000, 50, 100_000
"""The largest recipe once its aliases are expanded: a few nested aliases can expand to billions of values."""


def _read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError: the text is not YAML, or is nested too deeply or endlessly."""
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"it has more than {MAX_BYTES:,} characters")
    try:
        found = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, OverflowError, AttributeError) as error:  # a 30 February, a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from None
    left, seen = [(found, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if seen > MAX_VALUES or depth > MAX_DEPTH:
            raise yaml.YAMLError("it is nested too deeply, or its aliases expand to too much")
        inner = (
            [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        left += [(each, depth + 1) for each in inner]
    return found


def default_recipe_path() -> Path:
    """`configs/default.yaml` of the working folder, the repository or the installed package."""
    homes = (Path.cwd(), Path(__file__).parents[2], Path(sys.prefix) / "share" / "fintune")
    for home in homes:
        path = home / "configs" / "default.yaml"
        if path.is_file():
            return path
    raise ConfigError("configs/default.yaml was not found: give a recipe with --config.")


def load_recipe(path: str | Path, overrides: Sequence[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing, empty or not a YAML mapping, or a key or value is invalid;
            the message names the file, the key, the value and the nearest valid key.
    """
    path = Path(path)
    try:
        raw = _read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe at {path}: give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds a {type(raw).__name__}, not sections of settings"
        raise ConfigError(f"{path} {what}: write sections such as `training:` with keys under them.")
    return recipe_from(raw, overrides, str(path)).read_from(str(path.parent))


def recipe_from(raw: dict[str, Any], overrides: Sequence[str] | None, where: str) -> Recipe:
    """A recipe from plain values and `section.key=value` overrides; `where` names the source in errors."""
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
    *(set(pair) for section in (BaseModelConfig, TrainingConfig, TaskDataConfig) for pair in section.rivals),
)
"""Pairs of keys of which a section may have one; an override replaces the other key."""


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
        value = _read_yaml(text)
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


def key_meant(name: str, spelt_alike: bool = True) -> str | None:
    """The recipe key, in any section, that a setting's name most likely means; None if none is near.

    The same name in another section comes first, then names used by other programs, then (if `spelt_alike`)
    similar spellings.
    """
    keys = dict(reversed(list(_keys(Recipe)))) | {"batch_size": "training.batch_size"}
    if name in keys or name in ALIASES:
        return keys.get(name) or ALIASES[name]
    near = difflib.get_close_matches(name, [*keys, *ALIASES], n=1, cutoff=0.75) if spelt_alike else []
    return (keys.get(near[0]) or ALIASES[near[0]]) if near else None


def _keys(model: Any, section: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a section and of its subsections, with its full path."""
    for name, field in model.model_fields.items():
        yield name, section + name
        if hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{section}{name}.")
    if model is DataConfig:
        yield from _keys(TaskDataConfig, f"{section}tasks.TASK.")


def _sentence(item: Any, where: str) -> str:
    location, value = item["loc"], item["input"]
    if location[:1] == ("custom_task",):
        location = tuple(part for part in location if not isinstance(part, int))
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        name, valid = str(location[-1]), _valid_keys(location)
        near, other = hint(name, valid), key_meant(name)
        if other and (name in ALIASES or "did you mean" not in near):
            if location[:2] == ("data", "tasks"):
                other = other.replace("TASK", str(location[2]))
            near = f"; did you mean '{other}'?"
        return f"{key} (set to {value!r}) is not a known key{near} (in {where})"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{f'{key}: ' if key else ''}{message} (in {where})"
    if item["type"] == "missing":
        return f"{key} is missing (in {where})"
    limit = message.removeprefix("Input should be ").replace("greater than or equal to", ">=")
    limit = limit.replace("greater than", ">").replace("less than", "<")
    return f"{key} must be {limit}, got {value!r} (in {where})"
