"""Sets, from validation data, how each task compares labels and how sure the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fintune.config import EvaluationConfig
from fintune.inference.engine import Engine
from fintune.tasks import Record

CALIBRATION_EXAMPLES = 300
"""The most validation examples scored per task."""


def calibrate(
    engine: Engine, validation: Mapping[str, Sequence[Record]], config: EvaluationConfig
) -> dict[str, dict[str, str | float]]:
    """Let each task set what its type fits on validation data (`Task.calibrate`); return that by task.

    The first `CALIBRATION_EXAMPLES` records of each task are scored.
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
