"""What validation decides of each task's answers: how labels are compared, how sure the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fintune.config import EvaluationConfig
from fintune.inference.engine import Engine
from fintune.tasks import Record

CALIBRATION_EXAMPLES = 300
"""Validation examples of a task that are scored, at most."""


def calibrate(
    engine: Engine, validation: Mapping[str, Sequence[Record]], config: EvaluationConfig
) -> dict[str, dict[str, str | float]]:
    """Let each task set what its type takes from validation (`Task.calibrate`); return that by task.

    The first `CALIBRATION_EXAMPLES` records of each are scored.
    """
    chosen: dict[str, dict[str, str | float]] = {}
    for name, records in validation.items():
        found = engine.tasks[
            name
        ].calibrate(
            lambda asked, name=name: engine.predict(name, asked),  # type: ignore[misc]
            records[:CALIBRATION_EXAMPLES],
            config,
            lambda completion: len(engine.template.completion_ids(completion)),
        )
        if found:
            chosen[name] = found
    return chosen
