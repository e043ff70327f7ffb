"""The Python API: `fintune.prepare`, `train`, `evaluate` and `load`; docs/python.md shows it."""

from fintune.config import Recipe
from fintune.python.calls import evaluate, load, prepare, train
from fintune.python.model import Model
from fintune.python.tables import Evaluation, Predictions, Prepared

__all__ = ["Evaluation", "Model", "Predictions", "Prepared", "Recipe", "evaluate", "load", "prepare", "train"]
