"""Does one adapter for all tasks cost any of them something? Against an adapter a task, in three samplings.

    python benchmarks/multi_task.py [--quick] [--config YAML] [--set KEY=VALUE] [--seeds 1 2 3] [--output DIR]

Every adapter is made by `fintune run` on the same splits and answers the same test examples. A run on
all tasks sees as many examples as the single-task ones together: `proportional` the same ones, `balanced` and
`weighted` (the guide's weights) more of the small tasks and fewer of the large. Whatever stands in the output
folder is not made again, so a stopped run goes on. Minutes to hours, by the recipe.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from harness import parser, save

if TYPE_CHECKING:
    from fintune.config import Recipe
    from fintune.evaluation.runs import Run

GUIDE = {"sentiment": 1.0, "headline": 1.0, "summarization": 1.5, "qa": 1.2, "regression": 0.8}
SHOWN = {
    "classification": ("accuracy", "macro_f1"),
    "qa": ("f1",),
    "summarization": ("rougeL",),
    "regression": ("r2",),
}
QUICK = {"max_train": 32, "max_validation": 8, "max_test": 20}


def recipes(recipe: Recipe, seed: int, quick: bool) -> dict[str, dict[str, Any]]:
    """Name → recipe of each run of one training seed; all share the splits of `recipe`."""
    raw = recipe.model_dump(exclude_unset=True)
    weights = recipe.multi_task.task_weights
    data = {**raw.get("data", {}), "seed": recipe.data_seed}
    if quick:
        data["tasks"] = {name: {**data.get("tasks", {}).get(name, {}), **QUICK} for name in weights}
    mixes: dict[str, dict[str, Any]] = {f"only {name}": {"task_weights": {name: 1.0}} for name in weights}
    mixes |= {
        "proportional": {"sampling_strategy": "proportional"},
        "balanced": {"sampling_strategy": "balanced"},
        "weighted": {
            "sampling_strategy": "weighted",
            "sampling_weights": {name: GUIDE.get(name, 1.0) for name in weights},
        },
    }
    runs = {}
    for name, mix in mixes.items():
        chosen = mix.get("task_weights", weights)
        runs[name] = {
            **raw,
            "training": {**raw.get("training", {}), "seed": seed},
            "multi_task": {"task_weights": dict(weights), **mix},
            "custom_task": [task for task in raw.get("custom_task", []) if task["name"] in chosen],
            "data": {
                **data,
                "prepared_dir": "-".join([recipe.data.prepared_dir, *sorted(chosen)]),
                "tasks": {task: data["tasks"][task] for task in chosen if task in data.get("tasks", {})},
            },
            "evaluation": {**raw.get("evaluation", {}), "base_model": False, "baselines": []},
        }
    return runs


def make(folder: Path, recipe: dict[str, Any], data_dir: str | None) -> Run:
    """The evaluation that stands in the folder, or that of the adapter trained for it now."""
    from fintune.evaluation.runs import Run

    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    text = yaml.safe_dump(recipe, sort_keys=False)
    if path.is_file() and path.read_text() != text:
        raise SystemExit(f"{path} is of another recipe than this run's: name another folder with --output.")
    path.write_text(text)
    if (folder / "results.json").is_file() and (run := Run.load(folder)).results.complete:
        return run
    command = [sys.executable, "-m", "fintune.cli", "run", "--config", str(path), "--output_dir", str(folder)]
    command += ["--data_dir", data_dir] if data_dir else []
    command += ["--resume_from_checkpoint"] if any(folder.glob("checkpoint-*")) else []
    subprocess.run(command, check=True)
    return Run.load(folder)


def table(found: dict[str, list[Run]], tasks: list[str]) -> tuple[str, dict[str, float]]:
    """Markdown, and flat figures: each task's metrics by run, and the first seed's paired difference from
    the task's own adapter."""
    from fintune.evaluation.compare import compare

    mixes = [name for name in found if not name.startswith("only ")]
    lines = [
        "| task | metric | n | alone | " + " | ".join(mixes) + " |",
        "|---|---|---:|" + "---:|" * (1 + len(mixes)),
    ]
    flat = {}
    for task in tasks:
        alone = found[f"only {task}"]
        paired = {name: compare(alone[0], found[name][0], task=task).tasks[task] for name in mixes}
        for metric in SHOWN[alone[0].tasks[task].result.type]:
            cells = []
            for name, runs in (("alone", alone), *((name, found[name]) for name in mixes)):
                values = [run.tasks[task].metrics[metric] for run in runs]
                flat[f"{task}_{metric}_{name}"] = statistics.fmean(values)
                cell = f"{statistics.fmean(values):.3f}"
                if len(values) > 1:
                    cell += f" ± {statistics.stdev(values):.3f}"
                if name in paired and (row := paired[name].metrics[metric]).interval:
                    cell += " ({:+.3f} [{:+.3f}, {:+.3f}])".format(row.difference, *row.interval)
                cells.append(cell)
            n = len(alone[0].tasks[task].rows)
            lines.append(f"| {task} | {metric} | {n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines), flat


def main() -> None:
    from fintune.recipes import load_recipe

    flags = parser(__doc__, "32 training and 20 test examples a task, one seed", 1)
    flags.add_argument("--config", default="configs/quickstart.yaml")
    flags.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in fintune train")
    flags.add_argument("--seeds", type=int, nargs="+", default=[42])
    flags.add_argument("--output", default="output/multi-task", metavar="DIR")
    args = flags.parse_args()
    recipe = load_recipe(args.config, args.set)
    found: dict[str, list[Run]] = {}
    for seed in args.seeds[:1] if args.quick else args.seeds:
        for name, own in recipes(recipe, seed, args.quick).items():
            folder = Path(args.output) / str(seed) / name.replace(" ", "-")
            found.setdefault(name, []).append(make(folder, own, args.data_dir))
    text, flat = table(found, list(recipe.multi_task.task_weights))
    print(text)
    save(args.json, flat)


if __name__ == "__main__":
    main()
