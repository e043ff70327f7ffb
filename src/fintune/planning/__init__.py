"""What a recipe will need, before anything is downloaded or trained: parameters, memory, disk, time."""

from fintune.planning.estimating import Estimate, estimate
from fintune.planning.showing import advice, as_dict, show
from fintune.training.memory import row_tokens_for

__all__ = ["Estimate", "advice", "as_dict", "estimate", "row_tokens_for", "show"]
