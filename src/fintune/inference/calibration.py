"""Sets, from validation data, how each task compares labels and how sure the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

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

    def tokens(completion: str) -> int:
        return len(engine.template.completion_ids(completion))

    chosen: dict[str, dict[str, str | float]] = {}
    for name, records in validation.items():
        answer, some = partial(engine.predict, name), records[:CALIBRATION_EXAMPLES]
        if found := engine.tasks[name].calibrate(answer, some, config, tokens):
            chosen[name] = found
    return chosen
