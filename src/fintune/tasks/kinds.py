"""Deprecated alias of `fintune.tasks.types`, kept for plug-ins that import it."""

from fintune.tasks.types import ClassificationTask, InstructionTask, QATask, RegressionTask, SummarizationTask

__all__ = ["ClassificationTask", "InstructionTask", "QATask", "RegressionTask", "SummarizationTask"]
