"""Training speed and peak memory beside TRL's SFTTrainer: same base, adapter, dtype, examples, optimizer.

    python benchmarks/training.py [--quick] [--json PATH] [--data_dir DIR] [--base NAME] [--dropout P]

Every measurement is a process of its own (so that its peak memory is its own); systems are interleaved and
the median of the repeats counts. Two workloads: `tfns`, Twitter Financial News headlines, and `mix`, the five
tasks as configs/default.yaml mixes them. Without the public datasets the built-in sample stands in, and the
output says so.

Systems: `fintune`; `trl_default`, SFTTrainer with its own defaults (gradient checkpointing on, padded
batches, completion-only loss) as it runs when started plainly; and three other settings of it without
checkpointing (one batch of 32, batches of 8 sorted by length, packing), to which fintune's allocator is
lent. "Best" is the fastest of all. `utilisation` is the FLOPs that the computed tokens need
(`fintune.training.throughput.FlopCount`) by the measured bf16 matrix peak.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fintune.allocator import library, preload

STEP = 32
"""Examples of an optimizer step, in every system."""
TRL: dict[str, dict[str, Any]] = {
    "trl_default": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "trl_batch_32": {
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
    },
    "trl_sorted": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
    },
    "trl_packed": {  # a row of 1,024 tokens holds about 11 headlines: 3 rows are a step of about 32 examples
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "packing": True,
        "gradient_checkpointing": False,
    },
}
"""Settings of SFTTrainer; a step sees 32 examples in each."""
SYSTEMS = {"tfns": ("fintune", *TRL), "mix": ("fintune", "trl_default", "trl_sorted", "trl_packed")}
"""A batch of 32 with a transcript in it does not fit 24 GiB: its logits alone are 6 GB, several times."""
COUNTS = {"fintune": 192, "tfns": 96, "mix": 64}
"""Examples of a measurement of fintune, else of the workload; the first step is a warm-up."""
MIX = {"sentiment": 27, "headline": 57, "summarization": 1, "qa": 6, "regression": 5}
"""Examples of each task among 96: the shares of configs/default.yaml."""


def records(workload: str, count: int, data_dir: str | None) -> tuple[Any, list[tuple[str, Any]], str]:
    """The tasks, `count` (task, record) pairs in a seeded order, and what the data is."""
    from fintune.config import Recipe
    from fintune.data.datasets import prepare

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


def measure(system: str, workload: str, count: int, args: argparse.Namespace) -> dict[str, float | str]:
    """Train on `count` examples for one epoch; examples/s after the first step, and peak memory in GiB."""
    import torch
    import transformers

    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.data.templates import PromptTemplate
    from fintune.models import base, lora_config
    from fintune.planning import matrix_peak
    from fintune.provenance import peak_memory
    from fintune.training.throughput import FlopCount

    transformers.set_seed(0)
    tasks, pairs, data = records(workload, count, args.data_dir)
    tokenizer = base.load_tokenizer(args.base)
    template = PromptTemplate(tokenizer, args.max_length)
    dtype = base.choose_precision(TrainingConfig()).dtype
    model = base.load_base_model(BaseModelConfig(name=args.base), dtype)
    lora = LoraConfig(lora_dropout=args.dropout)
    examples = [template.example(tasks[name], record) for name, record in pairs]
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "learning_rate": 1e-4,
            "max_grad_norm": 1.0,
            "save_strategy": "no",
            "report_to": [],
            "logging_steps": 1000,
            "bf16": dtype == torch.bfloat16,
            "use_cpu": not torch.cuda.is_available(),
            "disable_tqdm": True,
            "seed": 0,
        }
        if system == "fintune":
            model = lora_config.add_adapter(model, lora)
            trainer, tokens = _fintune(model, tokenizer, tasks, examples, common, clock)
        else:
            trainer, tokens = _trl(model, tokenizer, tasks, pairs, lora, common, clock, system, args)
        trainer.train()
    seconds = clock.seconds()
    result: dict[str, float | str] = {
        "examples_per_second": clock.share * len(examples) / seconds,
        "peak_memory_gib": peak_memory() / 2**30,
        "data": data,
    }
    if system == "fintune":
        targets = sum(len(e.completion_ids) for e in examples)
        result["tokens_per_second"] = clock.share * tokens / seconds
        result["utilisation"] = clock.share * FlopCount(model)(tokens, targets) / seconds / matrix_peak()
    return result


class _Clock:
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


def _fintune(
    model: Any, tokenizer: Any, tasks: Any, examples: list[Any], common: dict[str, Any], clock: _Clock
) -> tuple[Any, int]:
    import transformers

    from fintune.inference.engine import Engine
    from fintune.planning import matrix_peak
    from fintune.training.steps import StepBuilder
    from fintune.training.throughput import FlopCount, Meter
    from fintune.training.trainer import MultiTaskTrainer

    schedule = [list(range(i, min(i + STEP, len(examples)))) for i in range(0, len(examples), STEP)]
    builder = StepBuilder(examples, schedule, {task.name: 1.0 for task in tasks}, STEP, 4096)
    trainer = MultiTaskTrainer(
        engine=Engine(model, tokenizer, tasks, 1024, "base"),
        validation={},
        steps_per_epoch=len(schedule),
        save_extra=lambda folder: None,
        batch_size=STEP,
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
    return trainer, sum(builder[i].tokens for i in range(len(builder)))


def _trl(
    model: Any,
    tokenizer: Any,
    tasks: Any,
    pairs: list[tuple[str, Any]],
    lora: Any,
    common: dict[str, Any],
    clock: _Clock,
    system: str,
    args: argparse.Namespace,
) -> tuple[Any, int]:
    import datasets
    from trl import SFTConfig, SFTTrainer

    from fintune.models.lora_config import peft_config

    rows = [
        {
            "prompt": [
                {"role": "system", "content": tasks[name].instruction},
                {"role": "user", "content": _cut(tasks[name], record, tokenizer, args.max_length)},
            ],
            "completion": [{"role": "assistant", "content": tasks[name].completion(record)}],
        }
        for name, record in pairs
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{**TRL[system], **common}, max_length=args.max_length, num_train_epochs=1),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config(lora) if lora else None,
    )
    trainer.add_callback(clock.callback())
    return trainer, 0


def _cut(task: Any, record: Any, tokenizer: Any, max_length: int) -> str:
    """The text at the length at which fintune cuts it, so that both compute the same tokens."""
    from fintune.data.templates import PromptTemplate

    template = PromptTemplate(tokenizer, max_length)
    completion = len(template.completion_ids(task.completion(record)))
    prompt, cut = template.prompt_ids(task, record, max_length - completion)
    if not cut:
        return task.body(record)
    spare = len(template.prompt_ids(task, task.with_text(record, "x"), max_length)[0])
    ids = tokenizer(record.text, add_special_tokens=False)["input_ids"][: len(prompt) - spare]
    return task.body(task.with_text(record, tokenizer.decode(ids)))


def _child(system: str, workload: str, count: int, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", system, workload, str(count), "--base", args.base]
    command += ["--dropout", str(args.dropout), "--max_length", str(args.max_length)]
    command += ["--data_dir", args.data_dir] if args.data_dir else []
    lent = preload(found) if system != "trl_default" and (found := library()) else {}
    environment = {**os.environ, **lent}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} on {workload} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 5 minutes: fewer examples, no repeats")
    parser.add_argument("--json", metavar="PATH", help="write a flat object, name → number")
    parser.add_argument("--data_dir", default=os.environ.get("FINTUNE_DATA_DIR"), help="the public datasets")
    parser.add_argument("--workload", nargs="+", choices=("tfns", "mix"), default=("tfns", "mix"))
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        system, workload, count = args.measure
        with contextlib.redirect_stdout(io.StringIO()):
            result = measure(system, workload, int(count), args)
        print(json.dumps(result))
        return

    flat: dict[str, float] = {}
    for workload in args.workload:
        systems = ("fintune", "trl_default", "trl_packed") if args.quick else SYSTEMS[workload]
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
        for _ in range(1 if args.quick else 3):
            for system in systems:
                runs[system].append(_child(system, workload, COUNTS.get(system, COUNTS[workload]), args))
        print(f"\n{workload}: {runs['fintune'][0]['data']}; dropout {args.dropout}, steps of {STEP}")
        print(f"{'':14}{'examples/s':>12}{'peak GiB':>10}{'fintune is':>12}")
        speed = {s: statistics.median(r["examples_per_second"] for r in runs[s]) for s in systems}
        memory = {s: statistics.median(r["peak_memory_gib"] for r in runs[s]) for s in systems}
        for system in systems:
            ratio = speed["fintune"] / speed[system]
            print(f"{system:14}{speed[system]:12.2f}{memory[system]:10.2f}{ratio:11.2f}x", flush=True)
            flat[f"{workload}_{system}_examples_per_second"] = speed[system]
            flat[f"{workload}_{system}_peak_memory_gib"] = memory[system]
        flat[f"{workload}_vs_trl_default"] = speed["fintune"] / speed["trl_default"]
        flat[f"{workload}_vs_trl_best"] = speed["fintune"] / max(
            v for s, v in speed.items() if s != "fintune"
        )
        utilisation = statistics.median(r["utilisation"] for r in runs["fintune"])
        print(f"fintune computes at {utilisation:.0%} of the measured matrix peak")
        if workload == "tfns":
            flat["utilisation"] = utilisation
            flat["peak_memory_vs_trl"] = memory["fintune"] / min(
                v for s, v in memory.items() if s != "fintune"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
