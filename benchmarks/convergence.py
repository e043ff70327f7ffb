"""Is speed bought with quality? Held-out loss per example seen, fintune beside PEFT + TRL.

    python benchmarks/convergence.py [--quick] [--json PATH] [--data_dir DIR]

Both train the same adapter from the same initial weights on the same headlines in the same order (steps of
32) with the same optimizer, and are measured alike: the mean negative log-likelihood of held-out answers, by
plain forward passes of one example each. fintune with other seeds (other initial weights and another order)
shows what noise is.
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
from pathlib import Path
from typing import Any

from training import STEP, TRL, _Clock, _fintune, _trl, records

from fintune.allocator import library, preload

EVERY = 2
"""Steps between two measurements."""


def measure(system: str, seed: int, steps: int, held_out: int, data_dir: str | None) -> list[float]:
    """The held-out loss at the start and after every `EVERY` steps."""
    import torch
    import transformers

    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.data.templates import PromptTemplate
    from fintune.models import base, lora_config

    tasks, pairs, _ = records("tfns", steps * STEP + held_out, data_dir)
    pairs, held = pairs[held_out:], pairs[:held_out]
    random.Random(seed).shuffle(pairs)
    tokenizer = base.load_tokenizer("smollm2-135m-instruct")
    template = PromptTemplate(tokenizer, 1024)
    dtype = base.choose_precision(TrainingConfig()).dtype
    model = base.load_base_model(BaseModelConfig(), dtype)
    lora = LoraConfig(lora_dropout=0.0)
    examples = [template.example(tasks[name], record) for name, record in pairs]
    tests = [template.example(tasks[name], record) for name, record in held]
    losses: list[float] = []

    class Held(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                self.measure(kwargs["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % EVERY == 0:
                self.measure(kwargs["model"])

        @torch.no_grad()
        def measure(self, model: Any) -> None:
            model.eval()
            values = []
            for example in tests:
                ids = torch.tensor([example.prompt_ids + example.completion_ids])
                labels = ids[0, len(example.prompt_ids) :]
                with lora_config.mixed_precision(model):
                    logits = model(input_ids=ids.to(model.device)).logits[0, len(example.prompt_ids) - 1 : -1]
                values.append(torch.nn.functional.cross_entropy(logits.float().cpu(), labels).item())
            losses.append(statistics.fmean(values))
            model.train()

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "save_strategy": "no",
            "report_to": [],
            "bf16": dtype == torch.bfloat16,
            "use_cpu": not torch.cuda.is_available(),
            "disable_tqdm": True,
            "seed": seed,
        }
        model = lora_config.add_adapter(model, lora, seed)
        if system == "fintune":
            trainer, _ = _fintune(model, tokenizer, tasks, examples, common, _Clock())
        else:
            common["train_sampling_strategy"] = "sequential"
            args = argparse.Namespace(max_length=1024)
            trainer, _ = _trl(model, tokenizer, tasks, pairs, None, common, _Clock(), "trl_sorted", args)
        trainer.add_callback(Held())
        trainer.train()
    return losses


def _child(system: str, seed: int, sizes: tuple[int, int], data_dir: str | None) -> list[float]:
    command = [sys.executable, __file__, "--measure", system, str(seed), *map(str, sizes)]
    command += ["--data_dir", data_dir] if data_dir else []
    found = library()
    environment = {**os.environ, **(preload(found) if found else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-3000:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 5 minutes: fewer steps and examples")
    parser.add_argument("--json", metavar="PATH", help="write a flat object, name → number")
    parser.add_argument("--data_dir", default=os.environ.get("FINTUNE_DATA_DIR"), help="the public datasets")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        system, *numbers = args.measure
        with contextlib.redirect_stdout(io.StringIO()):
            losses = measure(system, *map(int, numbers), args.data_dir)
        print(json.dumps(losses))
        return
    sizes = (6, 40) if args.quick else (20, 200)
    assert TRL["trl_sorted"]["per_device_train_batch_size"] * 4 == STEP
    curves = {
        "fintune": _child("fintune", 0, sizes, args.data_dir),
        "TRL": _child("trl", 0, sizes, args.data_dir),
        "fintune, seed 1": _child("fintune", 1, sizes, args.data_dir),
    }
    if not args.quick:
        curves["fintune, seed 2"] = _child("fintune", 2, sizes, args.data_dir)
    print(f"held-out loss on {sizes[1]} headlines, by examples seen")
    print(f"{'examples':>10}" + "".join(f"{name:>18}" for name in curves))
    for i, row in enumerate(zip(*curves.values(), strict=True)):
        print(f"{i * EVERY * STEP:10}" + "".join(f"{loss:18.4f}" for loss in row))
    ours, theirs, *others = curves.values()
    apart = statistics.fmean(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    noise = statistics.fmean(abs(a - b) for other in others for a, b in zip(ours, other, strict=True))
    print(f"mean distance from TRL {apart:.4f}, from other seeds of fintune {noise:.4f}")
    if args.json:
        flat = {"distance_from_trl": apart, "distance_between_seeds": noise}
        flat |= {"final_fintune": ours[-1], "final_trl": theirs[-1]}
        Path(args.json).write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
