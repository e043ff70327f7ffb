"""How fintune's training scales: batch, text length, LoRA rank and base size, on random weights and tokens.

    python benchmarks/scaling.py [--quick] [--json PATH] [--plot PNG]

One axis at a time around 32 examples of 32 tokens of their own behind a shared instruction of 44, rank 16, on
the shape of SmolLM2-135M. Every measurement is a process of its own; 3 optimizer steps, the first a warm-up.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

from harness import answer, child, parser, save

PREFIX = 44
BASES: dict[str, dict[str, int]] = {
    "0.13": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "0.36": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
    "1.1": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "6.7": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
"""Billions of parameters → the shape: SmolLM2-135M and -360M, Llama-3.2-1B, Llama-2-7B."""
DEFAULT: dict[str, Any] = {"batch": 32, "own": 32, "rank": 16, "base": "0.13"}
AXES: dict[str, list[Any]] = {
    "batch": [4, 16, 32, 64, 128],
    "own": [8, 32, 128, 512],
    "rank": [4, 16, 64, 256],
    "base": ["0.13", "0.36", "1.1"],
}
TITLES = {
    "batch": "examples in a step",
    "own": "tokens of a text (4,096 in all)",
    "rank": "LoRA rank",
    "base": "base, billions of parameters",
}
QUICK = {"batch": [8, 32], "own": [32, 128], "rank": [16, 64], "base": ["0.13", "0.36"]}


def measure(batch: int, own: int, rank: int, base: str) -> dict[str, float]:
    """tokens/s, share of the matrix peak, and peak memory in GiB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fintune.config import LoraConfig, Recipe, TrainingConfig
    from fintune.inference.engine import Engine
    from fintune.kernels import likelihood
    from fintune.models.adapters import add_adapter, mixed_precision
    from fintune.models.base import choose_precision, load_tokenizer
    from fintune.prompts import TokenizedExample
    from fintune.provenance import peak_memory
    from fintune.tasks import task_set
    from fintune.training.steps import StepBuilder
    from fintune.training.throughput import FlopCount, matrix_peak

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True, **BASES[base]
    )
    torch.set_default_dtype(choose_precision(TrainingConfig()).dtype)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model = add_adapter(model, LoraConfig(r=rank, lora_dropout=0.0)).train()
    engine = Engine(
        model, load_tokenizer("smollm2-135m-instruct"), task_set(Recipe()), 1024, "random weights"
    )
    assert engine.builtin.by_blocks
    draw = random.Random(0)
    shared = [draw.randrange(49152) for _ in range(PREFIX)]

    def tokens(count: int) -> list[int]:
        return [draw.randrange(49152) for _ in range(count)]

    steps = 3
    examples = [TokenizedExample(shared + tokens(own - 2), tokens(2), "a") for _ in range(steps * batch)]
    schedule = [range(i * batch, (i + 1) * batch) for i in range(steps)]
    builder = StepBuilder(examples, schedule, {"a": 1.0}, batch, max(8192, batch * (own + PREFIX)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds = computed = targets = 0.0
    for i in range(steps):
        step = builder[i]
        begun = time.perf_counter()
        for each in step.rows:
            row = each.packed.to(device)
            with mixed_precision(model, engine.builtin.peft_forwards):
                nll = likelihood.target_nll(model, row, engine.builtin.by_blocks, engine.builtin.head)
            (each.weights.to(device) * likelihood.span_mean_nll(nll, row.owner, row.spans)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if i:
            seconds += time.perf_counter() - begun
            computed, targets = computed + step.tokens, targets + step.targets
    return {
        "tokens_per_second": computed / seconds,
        "utilisation": FlopCount(model)(computed, targets) / seconds / matrix_peak(),
        "peak_memory_gib": peak_memory() / 2**30,
    }


def plot(results: dict[str, list[tuple[Any, dict[str, float]]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(2, len(results), figsize=(3.2 * len(results), 5), sharey="row")
    for column, (axis, points) in enumerate(results.items()):
        places = [float(value) for value, _ in points]
        for row, (key, scale, label) in enumerate(
            (("utilisation", 100, "% of the matrix peak"), ("peak_memory_gib", 1, "peak memory, GiB"))
        ):
            panel = rows[row][column]
            panel.plot(places, [scale * figures[key] for _, figures in points], "o-", color="#1f5fa8")
            panel.set_xscale("log", base=2)
            panel.set_xticks(places, [str(value) for value, _ in points])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(label)
            if row == 1:
                panel.set_xlabel(TITLES[axis])
    for first, *_ in rows:
        first.set_ylim(bottom=0)  # shared by the row, and set once all is drawn
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    flags = parser(__doc__, "two points an axis", measure=1, data=False)
    flags.add_argument("--plot", metavar="PNG", help="draw the curves")
    flags.add_argument("--base", nargs="+", choices=sorted(BASES), help="base sizes instead of those listed")
    args = flags.parse_args()
    if args.measure:
        answer(lambda: measure(**json.loads(args.measure[0])))
        return
    axes = dict(QUICK if args.quick else AXES)
    if args.base:
        axes["base"] = args.base
    results: dict[str, list[tuple[Any, dict[str, float]]]] = {}
    flat: dict[str, float] = {}
    for axis, values in axes.items():
        print(f"\n{TITLES[axis]:>34}{'tokens/s':>10}{'of peak':>9}{'GiB':>7}")
        for value in values:
            settings = {**DEFAULT, axis: value}
            if axis == "own":
                settings["batch"] = 4096 // value
            figures = child(__file__, json.dumps(settings))
            results.setdefault(axis, []).append((value, figures))
            print(
                f"{value:>34}{figures['tokens_per_second']:10.0f}{figures['utilisation']:9.1%}"
                f"{figures['peak_memory_gib']:7.2f}",
                flush=True,
            )
            flat |= {f"{axis}_{value}_{key}": number for key, number in figures.items()}
    if args.plot:
        plot(results, args.plot)
    save(args.json, flat)


if __name__ == "__main__":
    main()
