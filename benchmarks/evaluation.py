"""Examples a second in evaluation: fintune beside `model.generate` and lm-evaluation-harness, one adapter.

Headlines: fintune scores the labels; (a) `generate` is asked for a few tokens, one text at a time (the plain
loop most tutorials show) and in padded batches; (b) lm-evaluation-harness runs the exported task (see
`fintune evaluate --export_lm_eval`), with its default batch of 1 and with batches. Questions: fintune's
decoding beside `generate`, one at a time and in batches. The adapter is trained here for a minute, so that
`generate` answers with labels at all; `headline_vs_generate` and `headline_vs_lm_eval` compare with the
one-at-a-time loop and with lm-eval's default, and agreement with each is reported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from harness import Clock, answer, child, parser

BATCH = 32
TRAINED = {"headline": 224, "qa": 32}
SYSTEMS = {
    "headline": ("fintune", "generate", "generate_batched", "lm_eval", "lm_eval_batched"),
    "qa": ("fintune", "generate", "generate_batched"),
}


def records(task: str, split: str, count: int, data_dir: str | None) -> tuple[Any, list[Any]]:
    from fintune.config import Recipe
    from fintune.data.prepare.dataset import prepare

    raw: dict[str, Any] = {
        "multi_task": {"task_weights": dict.fromkeys((*TRAINED, "sentiment"), 1.0)},
        "data": {"prepared_dir": str(Path(tempfile.gettempdir()) / "fintune-benchmark-evaluation")},
    }
    if data_dir:
        raw["data"]["dir"] = data_dir
    prepared = prepare(Recipe.model_validate(raw), say=lambda line: None)
    return prepared.task_set(), prepared.records(task, split)[:count]  # type: ignore[arg-type]


def train(folder: str, data_dir: str | None) -> float:
    """A short training on headlines and questions; the adapter lands in `folder`."""
    from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
    from fintune.models import adapters, base
    from fintune.prompts import PromptTemplate

    model = base.load_base_model(BaseModelConfig(), base.choose_precision(TrainingConfig()).dtype)
    model = adapters.add_adapter(model, LoraConfig(lora_dropout=0.0), seed=0)
    tokenizer = base.load_tokenizer(BaseModelConfig().name)
    template = PromptTemplate(tokenizer, 1024)
    examples: list[Any] = []
    for task, count in TRAINED.items():
        tasks, found = records(task, "train", count, data_dir)
        examples += [template.example(tasks[task], record) for record in found]
    harness.random.Random(0).shuffle(examples)
    clock = Clock()
    with tempfile.TemporaryDirectory() as logs:
        common = harness.arguments(logs, learning_rate=1e-3)
        trainer = harness.fintune_trainer(model, tokenizer, tasks, examples, common, clock)
        trainer.train()
    model.save_pretrained(folder, save_embedding_layers=False)
    return clock.ends[-1] - clock.begun


def measure(system: str, task: str, count: int, adapter: str, data_dir: str | None) -> dict[str, Any]:
    """Answers, and the seconds they took: loading the model and a warm-up left out."""
    from fintune.config import BaseModelConfig, TrainingConfig
    from fintune.inference.engine import Engine
    from fintune.models import adapters, base

    tasks, found = records(task, "test", count, data_dir)
    model = base.load_base_model(BaseModelConfig(), base.choose_precision(TrainingConfig()).dtype)
    model = adapters.load_adapter(model, adapter).eval()
    tokenizer = base.load_tokenizer(BaseModelConfig().name)
    if system == "fintune":
        adapters.merge(model)  # as Engine.load does
        engine = Engine(model, tokenizer, tasks, 1024, "base", Path(adapter), BATCH)

        def run(part: list[Any]) -> list[str]:
            return [str(p.value) for p in engine.predict(task, part)]
    elif system.startswith("generate"):
        run = generated(model, tokenizer, tasks[task], BATCH if system.endswith("batched") else 1)
    else:
        run = by_lm_eval(model, tokenizer, tasks, task, found, BATCH if system.endswith("batched") else 1)
    run(found[:4])
    begun = time.perf_counter()
    answers = run(found)
    return {"seconds": time.perf_counter() - begun, "answers": answers}


def generated(model: Any, tokenizer: Any, task: Any, batch: int) -> Callable[[list[Any]], list[str]]:
    """`model.generate` as its documentation shows it; a label is the one that the text begins with."""
    import torch

    from fintune.prompts import PromptTemplate

    template = PromptTemplate(tokenizer, 1024)
    tokenizer.padding_side = "left"
    longest = 8 if task.decoding == "candidates" else task.max_new_tokens
    model.generation_config.pad_token_id = tokenizer.pad_token_id

    def run(part: list[Any]) -> list[str]:
        answers = []
        for i in range(0, len(part), batch):
            texts = [template.prompt_text(task, record) for record in part[i : i + batch]]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.no_grad():
                output = model.generate(
                    **inputs.to(model.device),
                    max_new_tokens=longest,
                    do_sample=False,
                    eos_token_id=tokenizer.eos_token_id,
                )
            new = output[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        if task.decoding != "candidates":
            return answers
        return [next((c for c in task.candidates() if a.startswith(c)), "") for a in answers]

    return run


def by_lm_eval(
    model: Any, tokenizer: Any, tasks: Any, task: str, found: list[Any], batch: int
) -> Callable[[list[Any]], list[str]]:
    """lm-evaluation-harness on the exported task; its answer is the choice of the highest log-likelihood."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from fintune.evaluation.lm_eval import export, task_name
    from fintune.prompts import PromptTemplate

    folder = Path(tempfile.mkdtemp()) / "tasks"
    export(tasks, PromptTemplate(tokenizer, 1024), {task: found}, folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)

    def run(part: list[Any]) -> list[str]:
        name = task_name(task)
        done = simple_evaluate(plain, tasks=[name], task_manager=manager, limit=len(part), bootstrap_iters=0)
        samples = sorted(done["samples"][name], key=lambda sample: sample["doc_id"])
        labels = tasks[task].candidates()
        scores = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
        return [labels[row.index(max(row))] for row in scores]

    return run


def main() -> None:
    flags = parser(__doc__, "100 headlines and 16 questions, one round", 4)
    flags.add_argument("--model_path", help="an adapter to use instead of training one for a minute")
    args = flags.parse_args()
    if args.measure:
        system, task, count, adapter = args.measure
        if system == "train":
            answer(lambda: train(adapter, args.data_dir))
        else:
            answer(lambda: measure(system, task, int(count), adapter, args.data_dir))
        return
    rounds, sizes = (1, {"headline": 100, "qa": 16}) if args.quick else (3, {"headline": 600, "qa": 96})
    flat: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapter = args.model_path or folder
        if not args.model_path:
            child(__file__, "train", "-", 0, adapter, data_dir=args.data_dir)
        for task, systems in SYSTEMS.items():
            runs: dict[str, list[Any]] = {system: [] for system in systems}
            for _ in range(rounds):
                for system in systems:  # interleaved, so that a busy minute does not fall on one alone
                    runs[system].append(
                        child(__file__, system, task, sizes[task], adapter, data_dir=args.data_dir)
                    )
            flat |= figures(task, runs, sizes[task])
    for name, value in flat.items():
        print(f"{name:42} {value:10.3f}")
    harness.save(args.json, flat)


def figures(task: str, runs: dict[str, list[Any]], count: int) -> dict[str, float]:
    """Medians of examples/s, ratios of fintune to each system, and the share of answers that agree."""
    import statistics

    speed = {s: count / statistics.median(run["seconds"] for run in found) for s, found in runs.items()}
    flat = {f"{task}_{system}_examples_per_second": value for system, value in speed.items()}
    own = runs["fintune"][0]["answers"]
    for system in (name for name in runs if name != "fintune"):
        same = sum(a == b for a, b in zip(own, runs[system][0]["answers"], strict=True))
        flat[f"{task}_vs_{system}"] = speed["fintune"] / speed[system]
        flat[f"{task}_agreement_{system}"] = same / count
    return flat


if __name__ == "__main__":
    main()
