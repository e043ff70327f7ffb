"""What each LoRA variant costs: examples/s and peak memory beside plain LoRA, on headlines.

    python benchmarks/variants.py [--quick] [--json PATH] [--data_dir DIR]

Every measurement is a process of its own; steps of 32, the first a warm-up. `start` is the time that making
the adapter takes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from harness import STEP, Clock, answer, arguments, child, fintune_trainer, parser, records, save

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LoRA": {},
    "LoRA, dropout 0.1": {"lora": {"lora_dropout": 0.1}},
    "LoRA, gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "rsLoRA, r = 64": {"lora": {"use_rslora": True, "r": 64}},
    "PiSSA (16 iterations)": {"lora": {"init_lora_weights": "pissa_niter_16"}},
    "DoRA": {"lora": {"use_dora": True}},
    "8 bit": {"base": {"load_in_8bit": True}},
    "QLoRA (4 bit)": {"base": {"load_in_4bit": True}},
}


def measure(name: str, steps: int, data_dir: str | None) -> dict[str, float]:
    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.models import adapters, base, recomputation
    from fintune.prompts import PromptTemplate
    from fintune.provenance import peak_memory

    variant = VARIANTS[name]
    tasks, pairs, _ = records("tfns", steps * STEP, data_dir)
    config = BaseModelConfig(**variant.get("base", {}))
    tokenizer = base.load_tokenizer(config.name)
    template = PromptTemplate(tokenizer, 1024)
    dtype = base.choose_precision(TrainingConfig()).dtype
    model = base.load_base_model(config, dtype)
    begun = time.perf_counter()
    model = adapters.add_adapter(model, LoraConfig(**{"lora_dropout": 0.0, **variant.get("lora", {})}))
    start = time.perf_counter() - begun
    if variant.get("training"):
        recomputation.enable(model)
    examples = [template.example(tasks[task], record) for task, record in pairs]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = fintune_trainer(model, tokenizer, tasks, examples, arguments(folder), clock)
        trainer.train()
    return {
        "examples_per_second": clock.share * len(examples) / clock.seconds(),
        "peak_memory_gib": peak_memory() / 2**30,
        "start_seconds": start,
    }


def main() -> None:
    args = parser(__doc__, "two steps, no repeats", measure=2).parse_args()
    if args.measure:
        answer(lambda: measure(args.measure[0], int(args.measure[1]), args.data_dir))
        return
    steps = 2 if args.quick else 4
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(1 if args.quick else 3):
        for name in VARIANTS:
            runs[name].append(child(__file__, name, steps, data_dir=args.data_dir))
    flat: dict[str, float] = {}
    print(f"{'':32}{'examples/s':>12}{'of LoRA':>9}{'peak GiB':>10}{'start s':>9}")
    for name, results in runs.items():
        middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
        flat |= {f"{name}_{key}": value for key, value in middle.items()}
        share = middle["examples_per_second"] / flat["LoRA_examples_per_second"]
        print(
            f"{name:32}{middle['examples_per_second']:12.2f}{share:9.0%}"
            f"{middle['peak_memory_gib']:10.2f}{middle['start_seconds']:9.1f}"
        )
    save(args.json, flat)


if __name__ == "__main__":
    main()
