"""All tasks by name: the five built in, those of a recipe's YAML, and plug-ins."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fintune.config import CustomTaskConfig, Recipe, TaskDataConfig
from fintune.errors import ConfigError, hint
from fintune.tasks.base import Task, TaskSet
from fintune.tasks.builtin import builtin_tasks
from fintune.tasks.plugins import import_plugins
from fintune.tasks.types import task_type, type_names
from fintune.text.salience import Salience

_registered: dict[str, Task] = {}


def register(task: Task | type[Task]) -> Task | type[Task]:
    """Register a plug-in task by its name; also usable as a class decorator.

    Alternatively, an entry point in the group `fintune.tasks` names the class.
    """
    instance = task() if isinstance(task, type) else task  # type: ignore[call-arg]
    _registered[instance.name] = instance
    return task


@functools.cache
def _loaded(point: EntryPoint) -> Task:
    try:
        task = point.load()()
    except Exception as error:  # a plug-in may raise anything
        raise ConfigError(
            f"the plug-in task {point.name} ({point.value}) cannot be loaded: {error}; "
            "fix or uninstall its package"
        ) from error
    if task.name != point.name:
        raise ConfigError(
            f"the plug-in task {point.name} ({point.value}) calls itself {task.name}: "
            "its entry point and its name must be the same"
        )
    return task


def _plugins() -> dict[str, Task]:
    """The plug-ins by name: entry points, loaded once, and registered tasks."""
    return {point.name: _loaded(point) for point in entry_points(group="fintune.tasks")} | _registered


def known_tasks(custom: Iterable[CustomTaskConfig] = ()) -> dict[str, Task]:
    """Every task by name: built in, from entry points, registered, and the recipe's own."""
    tasks = builtin_tasks() | _plugins()
    for config in custom:
        tasks[config.name] = _custom_task(config)
    return tasks


def _custom_task(config: CustomTaskConfig) -> Task:
    """Build a task from a recipe's YAML.

    Raises:
        ConfigError: its type is unknown or rejects its labels and options.
    """
    kind = task_type(config.type)
    if kind is None:
        raise ConfigError(
            f"custom_task.type of {config.name} is {config.type!r}, which is not a type"
            f"{hint(config.type, type_names())}"
        )
    options = {**({"labels": config.labels} if config.labels else {}), **config.options}
    try:
        return kind(config.name, config.instruction, **options)
    except TypeError as error:
        known = list(inspect.signature(kind.__init__).parameters)[3:]
        wrong = next((name for name in options if name not in known), None)
        if wrong:
            why = f"{wrong} belongs to another type of task; this one's type is {config.type}"
        elif "labels" in known and not config.labels:
            why = "labels must hold at least two different labels, got []"
        else:
            why = str(error)
        raise ConfigError(f"custom_task.{config.name}: {why}") from None
    except ValueError as error:
        raise ConfigError(f"custom_task.{config.name}: {error}") from None


def task_from_dict(fields: Mapping[str, Any]) -> Task:
    """The inverse of `Task.to_dict`; a plug-in is created again and gets only its learnt fields."""
    fields = dict(fields)
    salience = fields.pop("salience", None)
    task = _without_salience(fields)
    task.salience = Salience(**salience) if salience else None
    return task


def _without_salience(fields: dict[str, Any]) -> Task:
    name = fields.pop("type")
    if plugin := _plugins().get(fields["name"]):
        task = copy.deepcopy(plugin)
        for key in task.learnt:
            if key in fields:
                setattr(task, key, copy.deepcopy(fields[key]))
        return task
    kind = task_type(name)
    if kind is None:
        raise ConfigError(
            f"task {fields['name']} is of the unknown type {name!r}: install the plug-in that defines it."
        )
    return kind(**fields)


def task_set(recipe: Recipe) -> TaskSet:
    """The tasks that a recipe trains: those of `multi_task.task_weights` and its custom tasks.

    Raises:
        ConfigError: a weight names an unknown task, or a task without references has `salience: learnt`.
    """
    custom = recipe.custom_task
    import_plugins(recipe.plugins, recipe.plugin_folder)
    known = known_tasks(custom)
    names = list(dict.fromkeys([*recipe.multi_task.task_weights, *(task.name for task in custom)]))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"multi_task.task_weights names the unknown task '{unknown[0]}'; known are: {', '.join(known)}"
        )
    tasks = TaskSet({name: copy.deepcopy(known[name]) for name in names})
    for task in tasks:
        task.instruction = recipe.multi_task.instructions.get(task.name, task.instruction)
        _set_salience(task, recipe.data.tasks.get(task.name, TaskDataConfig()).salience)
    return tasks


def _set_salience(task: Task, wish: str | None) -> None:
    """Set the recipe's choice, or the default of the task's type."""
    if wish == "learnt" and task.default_salience != "learnt":
        raise ConfigError(
            f"data.tasks.{task.name}.salience is learnt, which needs summaries to learn from, but this is a "
            f"{task.type} task: choose score, bm25, lead or none"
        )
    if wish is not None:
        task.salience = None if wish == "none" else Salience(wish)  # type: ignore[arg-type]
    elif task.default_salience:
        task.salience = task.salience or Salience(task.default_salience)  # type: ignore[arg-type]
