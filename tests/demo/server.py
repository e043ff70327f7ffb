"""The demo that a test's process serves."""

from pathlib import Path

from fintune.config import BUILT_IN_TASKS, Recipe
from fintune.data.raw.sample import sample_records
from fintune.demo.app import build, serve
from fintune.inference.engine import Engine

RECIPE = Recipe.model_validate(
    {
        "multi_task": {"task_weights": dict.fromkeys(BUILT_IN_TASKS, 1.0)},
        "training": {"max_length": 256},  # so that the tests are fast
        "custom_task": [
            {
                "name": "sector_news",
                "type": "classification",
                "labels": ["bank", "energy", "other"],
                "instruction": "Name the sector of the <b>news</b>: bank, energy or other.",
            },
            {
                "name": "untrained_number",
                "type": "regression",
                "instruction": "Predict next year's sales growth. Answer with a number.",
            },
        ],
    }
)


def main(port: int, live_dir: Path, adapter: Path | None = None) -> None:
    """On an adapter, or on the real base model, with two custom tasks beside the five."""
    if adapter:
        serve(build(Engine.load(adapter), live_dir), port)
        return
    engine = Engine.load(recipe=RECIPE)
    engine.tasks["regression"].fit(sample_records("regression", sizes=(60, 0, 0)))
    engine.tasks["summarization"].max_new_tokens = 12
    engine.tasks["qa"].max_new_tokens = 20
    serve(build(engine, live_dir), port)
