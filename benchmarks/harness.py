"""What the benchmarks share: examples, fintune's trainer, the clock, a process for each measurement."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fintune.allocator import library, preload

STEP = 32
"""Examples of an optimizer step, in every system."""
MIX = {"sentiment": 27, "headline": 57, "summarization": 1, "qa": 6, "regression": 5}
"""Examples of each task among 96: the shares of configs/default.yaml."""


def records(workload: str, count: int, data_dir: str | None) -> tuple[Any, list[tuple[str, Any]], str]:
    """The tasks, `count` (task, record) pairs in a seeded order, and what the data is."""
    from fintune.config import Recipe
    from fintune.data.prepare.dataset import prepare

    names = MIX if workload == "mix" else {"headline": 1}
    raw: dict[str, Any] = {
        "multi_task": {"task_weights": dict.fromkeys(names, 1.0)},
        "data": {"prepared_dir": str(Path(tempfile.gettempdir()) / f"fintune-benchmark-{workload}")},
    }
    if data_dir:
        raw["data"]["dir"] = data_dir
    prepared = prepare(Recipe.model_validate(raw), say=lambda line: None)
    pairs = []
    total = sum(names.values())
    for name, share in names.items():
        wanted = max(1, round(share * count / total))
        found = prepared.records(name, "train")
        pairs += [(name, found[i % len(found)]) for i in range(wanted)]
    random.Random(0).shuffle(pairs)
    return prepared.task_set(), pairs[:count], prepared.describes


def arguments(folder: str, **more: Any) -> dict[str, Any]:
    """What `transformers.TrainingArguments` are told in every system."""
    import torch

    from fintune.config import TrainingConfig
    from fintune.models.base import choose_precision

    return {
        "output_dir": folder,
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1000,
        "bf16": choose_precision(TrainingConfig()).dtype == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "seed": 0,
        **more,
    }


def fintune_trainer(
    model: Any,
    tokenizer: Any,
    tasks: Any,
    examples: list[Any],
    common: dict[str, Any],
    clock: Any,
    step: int = STEP,
    row_tokens: int = 4096,
) -> Any:
    """fintune's trainer on these examples, without validation; its `meter` counts what it computes.

    Args:
        clock: its `callback()` is told of the steps.
        step: examples of an optimizer step, and of a row at most.
    """
    import transformers

    from fintune.inference.engine import Engine
    from fintune.training.steps import StepBuilder
    from fintune.training.throughput import FlopCount, Meter, matrix_peak
    from fintune.training.trainer import MultiTaskTrainer

    schedule = [list(range(i, min(i + step, len(examples)))) for i in range(0, len(examples), step)]
    builder = StepBuilder(examples, schedule, {task.name: 1.0 for task in tasks}, step, row_tokens)
    trainer = MultiTaskTrainer(
        engine=Engine(model, tokenizer, tasks, 1024, "base"),
        validation={},
        steps_per_epoch=len(schedule),
        save_extra=lambda folder: None,
        batch_size=step,
        meter=Meter(FlopCount(model), matrix_peak()),
        model=model,
        train_dataset=builder,
        args=transformers.TrainingArguments(
            **common,
            max_steps=len(schedule),
            per_device_train_batch_size=1,
            remove_unused_columns=False,
            label_names=[],
        ),
    )
    trainer.add_callback(clock.callback())
    return trainer


class Clock:
    """Times a run from the end of its first optimizer step (a warm-up), if it has several."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.begun = 0.0

    @property
    def share(self) -> float:
        """The part of the examples that falls into the timed part."""
        return (len(self.ends) - 1) / len(self.ends) if len(self.ends) > 1 else 1.0

    def seconds(self) -> float:
        return self.ends[-1] - (self.ends[0] if len(self.ends) > 1 else self.begun)

    def callback(self) -> Any:
        import transformers

        clock = self

        class Callback(transformers.TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                clock.begun = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                import torch

                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.ends.append(time.perf_counter())

        return Callback()


def parser(doc: str, quick: str, measure: int, data: bool = True) -> argparse.ArgumentParser:
    """The flags that every benchmark has; `measure` is the number of values that `child` sends."""
    flags = argparse.ArgumentParser(description=doc.splitlines()[0])
    flags.add_argument("--quick", action="store_true", help=f"at most 5 minutes: {quick}")
    flags.add_argument("--json", metavar="PATH", help="write a flat object, name → number")
    if data:
        folder = os.environ.get("FINTUNE_DATA_DIR")
        flags.add_argument("--data_dir", default=folder, help="the public datasets")
    flags.add_argument("--measure", nargs=measure, help=argparse.SUPPRESS)
    return flags


def child(
    script: str, *values: Any, data_dir: str | None = None, mimalloc: bool = True, flags: Any = ()
) -> Any:
    """Run `script --measure VALUES` as a process of its own; return what its `answer` gave."""
    command = [sys.executable, script, "--measure", *map(str, values), *flags]
    command += ["--data_dir", data_dir] if data_dir else []
    found = library() if mimalloc else None
    environment = {**os.environ, **(preload(found) if found else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, values))} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(measure: Callable[[], Any]) -> None:
    """In the process that `child` made: send what was measured, and nothing else that is printed."""
    with contextlib.redirect_stdout(io.StringIO()):
        result = measure()
    print(json.dumps(result))


def save(path: str | None, flat: dict[str, float]) -> None:
    if path:
        Path(path).write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")
