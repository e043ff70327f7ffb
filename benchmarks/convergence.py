"""Is speed bought with quality? Held-out loss per example seen, fintune beside PEFT + TRL.

    python benchmarks/convergence.py [--quick] [--json PATH] [--data_dir DIR]

Both train the same adapter from the same initial weights on the same headlines in the same order (steps of
32) with the same optimizer, and are measured alike: the mean negative log-likelihood of held-out answers, by
plain forward passes of one example each. fintune with other seeds (other initial weights and another order)
shows what noise is.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from typing import Any

from harness import STEP, Clock, answer, arguments, child, fintune_trainer, parser, records, save
from training import TRL, trl_trainer

EVERY = 2
"""Steps between two measurements."""


def measure(system: str, seed: int, steps: int, held_out: int, data_dir: str | None) -> list[float]:
    """The held-out loss at the start and after every `EVERY` steps."""
    import torch
    import transformers

    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.models import adapters, base
    from fintune.prompts import PromptTemplate

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
                with adapters.mixed_precision(model):
                    logits = model(input_ids=ids.to(model.device)).logits[0, len(example.prompt_ids) - 1 : -1]
                values.append(torch.nn.functional.cross_entropy(logits.float().cpu(), labels).item())
            losses.append(statistics.fmean(values))
            model.train()

    with tempfile.TemporaryDirectory() as folder:
        common = arguments(folder, learning_rate=1e-3, seed=seed)
        model = adapters.add_adapter(model, lora, seed)
        if system == "fintune":
            trainer = fintune_trainer(model, tokenizer, tasks, examples, common, Clock())
        else:
            common["train_sampling_strategy"] = "sequential"
            args = argparse.Namespace(max_length=1024)
            trainer = trl_trainer(model, tokenizer, tasks, pairs, None, common, Clock(), "trl_sorted", args)
        trainer.add_callback(Held())
        trainer.train()
    return losses


def main() -> None:
    args = parser(__doc__, "fewer steps and examples", measure=4).parse_args()
    if args.measure:
        system, *numbers = args.measure
        answer(lambda: measure(system, *map(int, numbers), args.data_dir))
        return
    sizes = (6, 40) if args.quick else (20, 200)
    assert TRL["trl_sorted"]["per_device_train_batch_size"] * 4 == STEP

    def run(system: str, seed: int) -> list[float]:
        return list(child(__file__, system, seed, *sizes, data_dir=args.data_dir))

    curves = {
        "fintune": run("fintune", 0),
        "TRL": run("trl", 0),
        "fintune, seed 1": run("fintune", 1),
    }
    if not args.quick:
        curves["fintune, seed 2"] = run("fintune", 2)
    print(f"held-out loss on {sizes[1]} headlines, by examples seen")
    print(f"{'examples':>10}" + "".join(f"{name:>18}" for name in curves))
    for i, row in enumerate(zip(*curves.values(), strict=True)):
        print(f"{i * EVERY * STEP:10}" + "".join(f"{loss:18.4f}" for loss in row))
    ours, theirs, *others = curves.values()
    apart = statistics.fmean(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    noise = statistics.fmean(abs(a - b) for other in others for a, b in zip(ours, other, strict=True))
    print(f"mean distance from TRL {apart:.4f}, from other seeds of fintune {noise:.4f}")
    flat = {"distance_from_trl": apart, "distance_between_seeds": noise}
    save(args.json, {**flat, "final_fintune": ours[-1], "final_trl": theirs[-1]})


if __name__ == "__main__":
    main()
