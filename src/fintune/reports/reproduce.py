"""Lists the commands that reproduce results; facts missing in the results file become `#` lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fintune.config import BaseModelConfig, EvaluationConfig, TextFormatConfig
from fintune.data.raw.registry import DATASETS
from fintune.evaluation.results import Results

_DEFAULTS = EvaluationConfig().model_dump()
_FORMAT = TextFormatConfig().model_dump()
_TRAIN = ["fintune", "train", "--config", "recipe.yaml"]


def commands(results: Results, results_file: str | Path) -> list[str]:
    """Shell commands for data, training, evaluation and report, each step at the commit that made it."""
    lines: list[str] = []
    training, adapter = results.training, results.model.adapter
    recipe, settings = training.get("recipe") or {}, results.settings
    _data(lines, results, recipe)
    exported = training.get("exported")
    if recipe and adapter:
        trained = training.get("adapter", "adapter") if exported else adapter
        _training(lines, training, recipe, trained)
        if exported:
            how = [part for key, value in exported.items() for part in (f"--{key}", str(value))]
            command = ["fintune", "export", "--model_path", trained, *how, "--output_dir", adapter]
            lines.append(shlex.join(command))
    elif adapter:
        lines.append(_remark(f"how {adapter} was trained is not in these results"))
    _checkout(lines, results.git_commit, f"this evaluation (fintune {results.fintune})")
    evaluate = ["fintune", "evaluate", *(["--model_path", adapter] if adapter else [])]
    if results.model.backend != "builtin":
        evaluate += ["--backend", results.model.backend]
    if not recipe:
        base = results.model.base
        lines.append(_remark(f"evaluated {base}; its recipe (--config) is not in these results"))
        if base != BaseModelConfig().name and not adapter:
            evaluate += ["--set", f"base_model.name={base}"]
    elif Path(recipe.get("data", {}).get("prepared_dir", "")) != Path(results.data.folder):
        lines.append(
            _remark(
                f"evaluated on {results.data.folder} (key {results.data.key}), which is not the "
                "data of recipe.yaml: the --config or --set that made it is not in these results"
            )
        )
    evaluate += ["--split", "validation"] if results.split == "validation" else []
    for change in _overrides(settings, recipe.get("evaluation", {})):
        evaluate += ["--set", change]
    limit = settings.get("max_test")
    evaluate += ["--output_file", str(results_file), *(["--max_test", str(limit)] if limit else [])]
    return [*lines, shlex.join(evaluate), shlex.join(["fintune", "report", str(results_file)])]


def settings_text(results: Results) -> str:
    """The evaluation's settings in one line, without those that are off."""
    parts = []
    for name, value in _flat(results.settings).items():
        off = name.startswith("formats.") and value == _default(name)
        if value is not None and value != [] and not off:
            parts.append(f"{name} {' + '.join(value) if isinstance(value, list) else value}")
    return ", ".join(parts)


def _data(lines: list[str], results: Results, recipe: Mapping[str, Any]) -> None:
    names = [task.dataset for task in results.tasks.values()]
    public = ", ".join(name for name in dict.fromkeys(names) if name in DATASETS)
    if not public:
        return
    if folder := recipe.get("data", {}).get("dir"):
        lines.append(_remark(f"recipe.yaml has data.dir: {folder}, the folder of {public}"))
    else:
        lines.append(f'export FINTUNE_DATA_DIR="${{FINTUNE_DATA_DIR:-data/raw}}"  # has {public}')
        lines.append(_remark("fintune data download  fetches what is missing into data/raw"))


def _training(lines: list[str], training: Mapping[str, Any], recipe: Mapping[str, Any], adapter: str) -> None:
    if start := recipe.get("lora_config", {}).get("init_adapter"):
        lines.append(_remark(f"recipe.yaml goes on from the adapter {start}, which must be there"))
    members = training.get("average_of", ())
    for member in members:
        _checkout(lines, member.get("git_commit"), f"the training of {member['name']}")
        seed = f"training.seed={member['seed']}"
        lines.append(shlex.join([*_TRAIN, "--set", seed, "--output_dir", member["name"]]))
    _checkout(lines, training.get("git_commit"), "the mean" if members else "the training")
    made = ["fintune", "average", *(member["name"] for member in members)] if members else _TRAIN
    lines.append(shlex.join([*made, "--output_dir", adapter]))


def _checkout(lines: list[str], commit: str | None, what: str) -> None:
    """Check out a commit unless it is checked out; note if it is unknown or had uncommitted changes."""
    if not commit:
        lines.append(_remark(f"the commit of {what} is not in these results"))
        return
    line = shlex.join(["git", "checkout", commit.rstrip("+")])
    if line != next((old for old in reversed(lines) if old.startswith("git checkout ")), None):
        lines.append(line)
    if commit.endswith("+"):
        lines.append(_remark(f"{what} had uncommitted changes, which this commit lacks"))


def _remark(text: str) -> str:
    return "# " + " ".join(text.split())


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; those in `formats` get their own names: `formats.summarization.bullets`."""
    flat = {name: value for name, value in settings.items() if name != "formats"}
    for task, shape in settings.get("formats", {}).items():
        flat |= {f"formats.{task}.{key}": value for key, value in shape.items()}
    return flat


def _default(name: str) -> Any:
    return _FORMAT.get(name.rpartition(".")[2]) if name.startswith("formats.") else _DEFAULTS.get(name)


def _overrides(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """`evaluation.KEY=VALUE` for each setting that differs from the default or from the recipe."""
    known, told = _flat(settings), _flat(recipe)
    changes = []
    for name in dict.fromkeys([*known, *told]):
        if name not in _DEFAULTS and not name.startswith("formats."):
            continue  # an option of the command, such as the split
        default = _default(name)
        value = known.get(name, default)
        if value != default or value != told.get(name, default):
            plain = isinstance(value, str) and value.isidentifier()
            changes.append(f"evaluation.{name}={value if plain else json.dumps(value)}")
    return changes
