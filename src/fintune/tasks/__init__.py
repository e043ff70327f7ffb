"""Tasks: prompt, answer and metrics; the built-in tasks, a recipe's own, and plug-ins."""

from fintune.tasks.base import Prediction, Record, Task, TaskSet
from fintune.tasks.registry import known_tasks, register, task_from_dict, task_set
from fintune.tasks.types import register_type

__all__ = [
    "Prediction",
    "Record",
    "Task",
    "TaskSet",
    "known_tasks",
    "register",
    "register_type",
    "task_from_dict",
    "task_set",
]
