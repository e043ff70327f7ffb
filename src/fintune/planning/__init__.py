"""Estimates what a recipe needs, before any download or training: parameters, memory, disk, time."""

from fintune.planning.estimating import Estimate, estimate
from fintune.planning.showing import advice, as_dict, show
from fintune.training.memory import row_tokens_for

__all__ = ["Estimate", "advice", "as_dict", "estimate", "row_tokens_for", "show"]
