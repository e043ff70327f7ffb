"""Training speed on a machine that does other work, by settings of the threads' waiting.

    python benchmarks/busy.py [--quick] [--repeats N] [--settings NAME …] [--data_dir DIR] [--json PATH]

Every measurement is a process of its own that trains SmolLM2-135M with LoRA on headlines, beside 0, 1 or 2
processes that compute at the same priority without pause. OpenMP's threads meet at a barrier after each
operator: a thread that spins there takes the core that the other one waits for.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from harness import Clock, answer, arguments, child, fintune_trainer, parser, records, save

from fintune.allocator import WAITING

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "fintune": WAITING,
    "spin_10000": {"GOMP_SPINCOUNT": "10000"},
    "spin_30000": {"GOMP_SPINCOUNT": "30000"},
    "spin_100000": {"GOMP_SPINCOUNT": "100000"},
    "one_thread": {"OMP_NUM_THREADS": "1"},
}
"""Environments of a training; spin counts are turns of a loop before a thread sleeps (libgomp's own
default is 300,000 where no more threads run than there are cores)."""


EXAMPLES = 96
"""Of a measurement; the first step of 32 is a warm-up."""


def measure(count: int, data_dir: str | None) -> float:
    """Train on `count` examples; examples/s after the first step."""
    import transformers

    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.models import adapters, base
    from fintune.prompts import PromptTemplate

    transformers.set_seed(0)
    tasks, pairs, _ = records("tfns", count, data_dir)
    name = "smollm2-135m-instruct"
    tokenizer = base.load_tokenizer(name)
    template = PromptTemplate(tokenizer, 1024)
    examples = [template.example(tasks[task], record) for task, record in pairs]
    dtype = base.choose_precision(TrainingConfig()).dtype
    model = base.load_base_model(BaseModelConfig(name=name), dtype)
    model = adapters.add_adapter(model, LoraConfig(lora_dropout=0.0))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fintune_trainer(model, tokenizer, tasks, examples, arguments(folder), clock).train()
    return clock.share * len(examples) / clock.seconds()


def main() -> None:
    command = parser(__doc__, "one repeat of three settings", measure=2)
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--settings", nargs="+", choices=SETTINGS)
    args = command.parse_args()
    if args.measure:
        setting, count = args.measure
        os.environ.update(SETTINGS[setting])  # before torch is imported, which reads it then
        answer(lambda: measure(int(count), args.data_dir))
        return
    settings = args.settings or (["default", "passive", "fintune"] if args.quick else list(SETTINGS))
    found: dict[str, list[float]] = {}
    for _ in range(1 if args.quick else args.repeats):
        for busy in (0, 1, 2):
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                for name in settings:
                    speed = child(__file__, name, EXAMPLES, data_dir=args.data_dir)
                    found.setdefault(f"{name}_beside_{busy}", []).append(speed)
                    print(f"{name:12} beside {busy}: {speed:6.2f} examples/s", flush=True)
            finally:
                for other in others:
                    other.kill()
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    for name in settings:
        idle = medians[f"{name}_beside_0"]
        shares = ", ".join(f"{medians[f'{name}_beside_{busy}'] / idle:.2f} beside {busy}" for busy in (1, 2))
        print(f"{name:12} idle {idle:6.2f} examples/s; of it {shares}")
    save(args.json, medians)


if __name__ == "__main__":
    main()
