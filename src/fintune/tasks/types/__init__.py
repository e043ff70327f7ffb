"""The task types, one class each; plug-ins add theirs with `register_type`."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from fintune.errors import ConfigError
from fintune.tasks.base import Task
from fintune.tasks.types.classification import ClassificationTask
from fintune.tasks.types.instruction import InstructionTask
from fintune.tasks.types.multilabel import MultiLabelTask
from fintune.tasks.types.qa import QATask
from fintune.tasks.types.regression import RegressionTask
from fintune.tasks.types.summarization import SummarizationTask

__all__ = [
    "ClassificationTask",
    "InstructionTask",
    "MultiLabelTask",
    "QATask",
    "RegressionTask",
    "SummarizationTask",
    "register_type",
    "task_type",
    "type_names",
]

T = TypeVar("T", bound=type[Task])
_TYPES: dict[str, type[Task]] = {
    kind.type: kind
    for kind in (
        ClassificationTask,
        MultiLabelTask,
        RegressionTask,
        QATask,
        SummarizationTask,
        InstructionTask,
    )
}


def register_type(kind: T) -> T:
    """Register a plug-in's type so that a recipe's `custom_task` can name it; usable as a decorator.

    Alternatively, an entry point in the group `fintune.types` has the type's name.

    Raises:
        ConfigError: it has no `type`, or another class has the same one.
    """
    if not kind.type:
        raise ConfigError(f"the task type {kind.__name__} has no name: set its class attribute `type`")
    known = _TYPES.get(kind.type)
    if known is not None and known.__qualname__ != kind.__qualname__:
        raise ConfigError(f"the task type '{kind.type}' of {kind.__module__} is taken by {known.__module__}")
    _TYPES[kind.type] = kind
    return kind


def task_type(name: str) -> type[Task] | None:
    """The class of a type; None if it is not built in, loaded or installed."""
    if name not in _TYPES:
        for point in entry_points(group="fintune.types", name=name):
            register_type(point.load())
    return _TYPES.get(name)


def type_names() -> list[str]:
    """Every type that is loaded or installed."""
    return [*dict.fromkeys([*_TYPES, *(point.name for point in entry_points(group="fintune.types"))])]
