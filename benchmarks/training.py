"""Training speed and peak memory beside TRL's SFTTrainer: same base, adapter, dtype, examples, optimizer.

    python benchmarks/training.py [--quick] [--json PATH] [--data_dir DIR] [--base NAME] [--dropout P]

Every measurement is a process of its own (so that its peak memory is its own); systems are interleaved and
the median of the repeats counts. Two workloads: `tfns`, Twitter Financial News headlines, and `mix`, the five
tasks as configs/default.yaml mixes them. Without the public datasets the built-in sample stands in, and the
output says so.

Systems: `fintune`; `trl_default`, SFTTrainer with its own defaults (gradient checkpointing on, padded
batches, completion-only loss) as it runs when started plainly; and three other settings of it without
checkpointing (one batch of 32, batches of 8 sorted by length, packing), to which fintune's allocator is
lent. "Best" is the fastest of all. With `--llamafactory PYTHON` come LLaMA-Factory's defaults, and packing
without checkpointing. `utilisation` is the FLOPs that the computed tokens need
(`fintune.training.throughput.FlopCount`) by the measured bf16 matrix peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness import STEP, Clock, answer, arguments, child, fintune_trainer, parser, records, save

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
LLAMA_FACTORY: dict[str, dict[str, Any]] = {
    "lf_default": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "lf_packed": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "packing": True,
        "disable_gradient_checkpointing": True,
    },
}
"""Settings of LLaMA-Factory, where `--llamafactory` names a Python that has it."""
SYSTEMS = {"tfns": ("fintune", *TRL), "mix": ("fintune", "trl_default", "trl_sorted", "trl_packed")}
"""A batch of 32 with a transcript in it does not fit 24 GiB: its logits alone are 6 GB, several times."""
COUNTS = {"fintune": 192, "tfns": 96, "mix": 64}
"""Examples of a measurement of fintune, else of the workload; the first step is a warm-up."""


def measure(system: str, workload: str, count: int, args: argparse.Namespace) -> dict[str, float | str]:
    """Train on `count` examples for one epoch; examples/s after the first step, and peak memory in GiB."""
    import transformers

    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.models import adapters, base
    from fintune.prompts import PromptTemplate
    from fintune.provenance import peak_memory

    transformers.set_seed(0)
    tasks, pairs, data = records(workload, count, args.data_dir)
    tokenizer = base.load_tokenizer(args.base)
    template = PromptTemplate(tokenizer, args.max_length)
    dtype = base.choose_precision(TrainingConfig()).dtype
    lora = LoraConfig(lora_dropout=args.dropout)
    examples = [template.example(tasks[name], record) for name, record in pairs]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        common = arguments(folder)
        if system in LLAMA_FACTORY:
            return {**llama_factory(tasks, pairs, lora, common, system, args, tokenizer), "data": data}
        model = base.load_base_model(BaseModelConfig(name=args.base), dtype)
        if system == "fintune":
            model = adapters.add_adapter(model, lora)
            trainer = fintune_trainer(model, tokenizer, tasks, examples, common, clock)
        else:
            trainer = trl_trainer(model, tokenizer, tasks, pairs, lora, common, clock, system, args)
        trainer.train()
    seconds = clock.seconds()
    result: dict[str, float | str] = {
        "examples_per_second": clock.share * len(examples) / seconds,
        "peak_memory_gib": peak_memory() / 2**30,
        "data": data,
    }
    if system == "fintune":
        meter = trainer.meter
        tokens, targets = meter.totals["tokens"], meter.totals["targets"]
        result["tokens_per_second"] = clock.share * tokens / seconds
        result["utilisation"] = clock.share * meter.flops(tokens, targets) / seconds / meter.peak
    return result


def llama_factory(
    tasks: Any,
    pairs: list[tuple[str, Any]],
    lora: Any,
    common: dict[str, Any],
    system: str,
    args: argparse.Namespace,
    tokenizer: Any,
) -> dict[str, float]:
    import fintune
    from fintune.models.base import resolve

    rows = [
        {
            "system": tasks[name].instruction,
            "prompt": _cut(tasks[name], record, tokenizer, args.max_length),
            "completion": tasks[name].completion(record),
        }
        for name, record in pairs
    ]
    settings = {
        **LLAMA_FACTORY[system],
        **{key: value for key, value in common.items() if key not in ("output_dir", "disable_tqdm")},
        "cutoff_len": args.max_length,
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_target": ",".join(lora.target_modules),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(rows))
        file.flush()
        script = Path(__file__).with_name("llamafactory_peer.py")
        command = [args.llamafactory, str(script), file.name, str(resolve(args.base)), json.dumps(settings)]
        environment = {**os.environ, "PYTHONPATH": str(Path(fintune.__file__).parents[1])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def trl_trainer(
    model: Any,
    tokenizer: Any,
    tasks: Any,
    pairs: list[tuple[str, Any]],
    lora: Any,
    common: dict[str, Any],
    clock: Clock,
    system: str,
    args: argparse.Namespace,
) -> Any:
    import datasets
    from trl import SFTConfig, SFTTrainer

    from fintune.models.adapters import peft_config

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
    return trainer


def _cut(task: Any, record: Any, tokenizer: Any, max_length: int) -> str:
    """The text at the length at which fintune cuts it, so that both compute the same tokens."""
    from fintune.prompts import PromptTemplate

    template = PromptTemplate(tokenizer, max_length)
    completion = len(template.completion_ids(task.completion(record)))
    prompt, cut = template.prompt_ids(task, record, max_length - completion)
    if not cut:
        return task.body(record)
    spare = len(template.prompt_ids(task, task.with_text(record, "x"), max_length)[0])
    ids = tokenizer(record.text, add_special_tokens=False)["input_ids"][: len(prompt) - spare]
    return task.body(task.with_text(record, tokenizer.decode(ids)))


def main() -> None:
    flags = parser(__doc__, "fewer systems, no repeats", measure=3)
    flags.add_argument("--workload", nargs="+", choices=("tfns", "mix"), default=("tfns", "mix"))
    flags.add_argument("--base", default="smollm2-135m-instruct")
    flags.add_argument("--llamafactory", metavar="PYTHON", help="of an environment with LLaMA-Factory")
    flags.add_argument("--dropout", type=float, default=0.0)
    flags.add_argument("--max_length", type=int, default=1024)
    args = flags.parse_args()
    if args.measure:
        system, workload, count = args.measure
        answer(lambda: measure(system, workload, int(count), args))
        return

    passed_on = ["--llamafactory", args.llamafactory] if args.llamafactory else []
    passed_on += ["--base", args.base, "--dropout", str(args.dropout), "--max_length", str(args.max_length)]
    flat: dict[str, float] = {}
    for workload in args.workload:
        systems = ("fintune", "trl_default", "trl_packed") if args.quick else SYSTEMS[workload]
        systems += tuple(LLAMA_FACTORY) if args.llamafactory else ()
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
        for _ in range(1 if args.quick else 3):
            for system in systems:
                count = COUNTS.get(system, COUNTS[workload])
                lent = not system.endswith("_default")
                runs[system].append(
                    child(
                        __file__,
                        system,
                        workload,
                        count,
                        data_dir=args.data_dir,
                        mimalloc=lent,
                        flags=passed_on,
                    )
                )
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
        flat[f"{workload}_vs_trl_best"] = speed["fintune"] / max(speed[s] for s in systems if s in TRL)
        utilisation = statistics.median(r["utilisation"] for r in runs["fintune"])
        print(f"fintune computes at {utilisation:.0%} of the measured matrix peak")
        if workload == "tfns":
            flat["utilisation"] = utilisation
            flat["peak_memory_vs_trl"] = memory["fintune"] / min(memory[s] for s in systems if s in TRL)
    save(args.json, flat)


if __name__ == "__main__":
    main()
