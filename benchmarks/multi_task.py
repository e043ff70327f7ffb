"""Does one adapter for all tasks cost any of them something? Against an adapter a task, in three samplings.

    python benchmarks/multi_task.py [--quick] [--config YAML] [--set KEY=VALUE] [--seeds 1 2 3] [--output DIR]

Every adapter is trained by `fintune train` on the same splits and answers the same test examples. A run on
all tasks sees as many examples as the single-task ones together: `proportional` the same ones, `balanced` and
`weighted` (the guide's weights) more of the small tasks and fewer of the large. Whatever stands in the output
folder is not made again, so a stopped run goes on. Minutes to hours, by the recipe.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from harness import parser, save

GUIDE = {"sentiment": 1.0, "headline": 1.0, "summarization": 1.5, "qa": 1.2, "regression": 0.8}
SHOWN = {
    "classification": ("accuracy", "macro_f1"),
    "qa": ("f1",),
    "summarization": ("rougeL",),
    "regression": ("r2",),
}
QUICK = {"max_train": 32, "max_validation": 8, "max_test": 20}


def recipes(raw: dict[str, Any], seed: int, quick: bool) -> dict[str, dict[str, Any]]:
    """Name → recipe of each run of one seed. All seeds share the splits: `data.seed` is the recipe's own."""
    raw = yaml.safe_load(yaml.safe_dump(raw))
    raw["data"] = {"seed": raw["training"].get("seed", 42), **raw.get("data", {})}
    raw["training"] = {**raw["training"], "seed": seed}
    raw["evaluation"] = {**raw.get("evaluation", {}), "base_model": False, "baselines": []}
    weights = raw["multi_task"]["task_weights"]
    if quick:
        raw["data"]["tasks"] = {n: {**raw["data"].get("tasks", {}).get(n, {}), **QUICK} for n in weights}
    runs = {}
    for name, mix in {
        **{f"only {task}": {"task_weights": {task: 1.0}} for task in weights},
        "proportional": {"sampling_strategy": "proportional"},
        "balanced": {"sampling_strategy": "balanced"},
        "weighted": {
            "sampling_strategy": "weighted",
            "sampling_weights": {t: GUIDE.get(t, 1.0) for t in weights},
        },
    }.items():
        own = {**raw, "multi_task": {**raw["multi_task"], **mix}, "data": {**raw["data"]}}
        chosen = own["multi_task"]["task_weights"]
        custom = [task for task in raw.get("custom_task", []) if task["name"] in chosen]
        own["custom_task"] = custom
        own["data"]["tasks"] = {n: v for n, v in raw["data"].get("tasks", {}).items() if n in chosen}
        own["data"]["prepared_dir"] += "-" + "-".join(sorted(chosen))
        runs[name] = own
    return runs


def make(folder: Path, recipe: dict[str, Any], data_dir: str | None) -> Path:
    """Train and evaluate, unless it stands there; the results file."""
    results = folder / "results.json"
    if results.is_file():
        return results
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    more = ["--config", str(path), *(["--data_dir", data_dir] if data_dir else [])]
    command = [sys.executable, "-m", "fintune.cli"]
    if not (folder / "adapter_model.safetensors").is_file():
        resume = ["--resume_from_checkpoint"] if any(folder.glob("checkpoint-*")) else []
        subprocess.run([*command, "train", *more, "--output_dir", str(folder), *resume], check=True)
    evaluate = ["evaluate", *more, "--model_path", str(folder), "--output_file", str(results)]
    subprocess.run([*command, *evaluate], check=True)
    return results


def table(found: dict[str, list[Any]], tasks: list[str]) -> tuple[str, dict[str, float]]:
    """Markdown, and flat figures: each task's metrics by run, and the first seed's paired difference from
    the task's own adapter."""
    from fintune.evaluation.comparison import compare

    mixes = [name for name in found if not name.startswith("only ")]
    lines = [
        "| task | metric | n | alone | " + " | ".join(mixes) + " |",
        "|---|---|---:|" + "---:|" * (1 + len(mixes)),
    ]
    flat = {}
    for task in tasks:
        alone = found[f"only {task}"]
        for metric in SHOWN[alone[0].tasks[task].type]:
            cells = []
            for name in (f"only {task}", *mixes):
                values = [run.tasks[task].metrics[metric] for run in found[name]]
                cell = f"{statistics.fmean(values):.3f}"
                if len(values) > 1:
                    cell += f" ± {statistics.stdev(values):.3f}"
                key = "alone" if name not in mixes else name
                flat[f"{task}_{metric}_{key}"] = statistics.fmean(values)
                if name in mixes:
                    paired = compare(alone[0], found[name][0], task=task, metric=metric)["tasks"][task]
                    if interval := paired["metrics"][metric]["interval"]:
                        cell += " ({:+.3f} [{:+.3f}, {:+.3f}])".format(
                            paired["metrics"][metric]["difference"], *interval
                        )
                cells.append(cell)
            lines.append(
                f"| {task} | {metric} | {len(alone[0].tasks[task].rows):,} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines), flat


def main() -> None:
    from fintune.evaluation.runs import Run
    from fintune.recipes import load_recipe

    flags = parser(__doc__, "32 training and 20 test examples a task, one seed", 1)
    flags.add_argument("--config", default="configs/quickstart.yaml")
    flags.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in fintune train")
    flags.add_argument("--seeds", type=int, nargs="+", default=[42])
    flags.add_argument("--output", default="output/multi-task", metavar="DIR")
    args = flags.parse_args()
    raw = load_recipe(args.config, args.set).model_dump(exclude_unset=True)
    raw.setdefault("data", {}).setdefault("prepared_dir", "data/multi-task")
    tasks = list(raw["multi_task"]["task_weights"])
    found: dict[str, list[Run]] = {}
    for seed in args.seeds[:1] if args.quick else args.seeds:
        for name, recipe in recipes(raw, seed, args.quick).items():
            folder = Path(args.output) / str(seed) / name.replace(" ", "-")
            found.setdefault(name, []).append(Run.load(make(folder, recipe, args.data_dir)))
    text, flat = table(found, tasks)
    print(text)
    save(args.json, flat)


if __name__ == "__main__":
    main()
