"""What validation decides: how labels are compared, and how sure of labels and numbers the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

from fintune.config import EvaluationConfig
from fintune.inference.engine import Engine
from fintune.tasks import Prediction, Record
from fintune.tasks.base import INTERVAL, Normalization, softmax
from fintune.tasks.kinds import ClassificationTask, RegressionTask

CALIBRATION_EXAMPLES = 300
"""Validation examples of a task that are scored, at most."""
_TEMPERATURES = (0.02, 50.0)


def calibrate(
    engine: Engine, validation: Mapping[str, Sequence[Record]], config: EvaluationConfig
) -> dict[str, dict[str, str | float]]:
    """Set each label task's `normalization` and `temperature`, and each regression task's `interval_margin`;
    return them by task. The first `CALIBRATION_EXAMPLES` of each are scored.

    The recipe's own choice of the normalization holds where it is not `auto`. Labels of equally many tokens
    are not tried: their order is the same either way. Of equal accuracies `none`, the plain likelihood, is
    taken.
    """
    chosen: dict[str, dict[str, str | float]] = {}
    for name, every in validation.items():
        records = every[:CALIBRATION_EXAMPLES]
        task = engine.tasks[name]
        if isinstance(task, RegressionTask):
            task.interval_margin = 0.0
            intervals = [answer.interval or (0.0, 0.0) for answer in engine.predict(name, records)]
            numbers = [float(record.target) for record in records]  # type: ignore[arg-type]
            task.interval_margin = conformal_margin(intervals, numbers)
            chosen[name] = {"interval_margin": round(task.interval_margin, 4)}
        if not isinstance(task, ClassificationTask):
            continue
        task.temperature = 1.0
        lengths = {len(engine.template.completion_ids(label)) for label in task.candidates()}
        answers: dict[Normalization, list[Prediction]] = {}
        for how in get_args(Normalization):
            asked = how == config.label_normalization or (
                config.label_normalization == "auto" and (how == "none" or len(lengths) > 1)
            )
            if asked:
                task.normalization = how
                answers[how] = engine.predict(name, records)
        targets = [str(record.target) for record in records]
        best = max(answers, key=lambda how: _right(answers[how], targets))
        task.normalization = best
        task.temperature = fit_temperature([answer.probabilities or {} for answer in answers[best]], targets)
        chosen[name] = {"normalization": best, "temperature": round(task.temperature, 4)}
    return chosen


def _right(answers: Sequence[Prediction], targets: Sequence[str]) -> int:
    return sum(answer.value == target for answer, target in zip(answers, targets, strict=True))


def fit_temperature(probabilities: Sequence[Mapping[str, float]], targets: Sequence[str]) -> float:
    """The T of softmax(log p / T) of least mean NLL of the targets (Guo et al., 2017); without examples 1.

    Labels keep their order, so no answer changes; what changes is how sure the model says it is.
    """
    from scipy.optimize import minimize_scalar

    if not targets:
        return 1.0
    scores = [[math.log(max(p, 1e-300)) for p in each.values()] for each in probabilities]
    wanted = [list(each).index(target) for each, target in zip(probabilities, targets, strict=True)]

    def nll(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        shares = (softmax([score / temperature for score in each]) for each in scores)
        return -sum(math.log(max(p[i], 1e-300)) for p, i in zip(shares, wanted, strict=True)) / len(wanted)

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    return math.exp(minimize_scalar(nll, bounds=(low, high), method="bounded").x)


def conformal_margin(intervals: Sequence[tuple[float, float]], targets: Sequence[float]) -> float:
    """By how much intervals must grow on both sides to hold `INTERVAL` of new targets; negative to shrink.

    Conformalized quantile regression (Romano, Patterson & Candès, NeurIPS 2019, equations 6 to 8): the
    ⌈(n + 1) · 0.8⌉-th smallest of max(low − y, y − high). Targets exchangeable with these are held with
    at least that probability, whatever the model. 0 with fewer than 10 examples.
    """
    if len(targets) < 10:
        return 0.0
    outside = sorted(max(low - y, y - high) for (low, high), y in zip(intervals, targets, strict=True))
    return outside[min(len(outside), math.ceil((len(outside) + 1) * INTERVAL)) - 1]
