"""The main job: prepare, train, evaluate, and show what came of it (`run_training.py`, `make run`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fintune.config import Recipe


def run(
    recipe: Recipe,
    output_dir: Path,
    *,
    output_file: Path | None = None,
    resume: str | Path | None = None,
    use_wandb: bool = False,
    verbose: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run every stage; return the evaluation's results. Raises what the stages raise."""
    from fintune.data.datasets import prepare
    from fintune.data.sources import describe_sources, fetch_missing
    from fintune.evaluation.evaluate import evaluate
    from fintune.evaluation.report import print_table
    from fintune.inference.engine import Engine
    from fintune.tasks import task_set
    from fintune.training.run import train

    start = time.perf_counter()
    output_file = output_file or output_dir / "results.json"
    why = fetch_missing(recipe, say)
    data = describe_sources(recipe, task_set(recipe), why)
    say(f"This run uses {data}.")
    say("1/3  Data")
    prepared = prepare(recipe, say=say)
    say("2/3  Training")
    train(recipe, output_dir, prepared=prepared, resume=resume, use_wandb=use_wandb, verbose=verbose, say=say)
    say("3/3  Evaluation")
    config = recipe.evaluation.tracked(use_wandb)
    results = evaluate(Engine.load(output_dir), prepared, config, output_file, say=say)
    print_table(results)
    say(f"Data      prepared in {prepared.folder}")
    say(f"Adapter   {output_dir}  (plain PEFT; its recipe and figures: {output_dir / 'fintune.json'})")
    say(f"Results   {output_file}; to read: {output_file.with_suffix('.html')} or .md")
    minutes = (time.perf_counter() - start) / 60
    say(f"Next      fintune demo --model_path {output_dir}")
    say(f"Done in {minutes:.1f} minutes, with {data}.")
    return results
