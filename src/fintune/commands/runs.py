"""`fintune runs`: trained runs listed, compared side by side, and cleaned up."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.commands.common import Command, json_flag, shown
from fintune.errors import ConfigError, hint
from fintune.progress import duration, megabytes

if TYPE_CHECKING:
    from fintune.runs import Figure, TrainingRun

SORTED_BY = ("date", "name", "time", "size")


def _runs_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folder that holds runs, to list them (default: output/); or two or more runs, to compare them; "
        "or clean, to remove checkpoints that are no longer needed",
    )
    command.add_argument(
        "--sort",
        default="date",
        metavar="KEY",
        help="order of the list: date, name, time, size, or a task, whose best figure comes first "
        "(default: date)",
    )
    command.add_argument(
        "--yes", action="store_true", help="with clean: remove; without it, show what would go"
    )
    command.add_argument(
        "--unfinished",
        action="store_true",
        help="with clean: remove the checkpoints of unfinished runs, too; they cannot go on then",
    )
    command.add_argument(
        "--whole",
        action="store_true",
        help="with clean and the names of runs: remove these runs whole, with their adapters",
    )
    json_flag(command)


def _runs(args: argparse.Namespace) -> int:
    from fintune import runs

    if args.runs[:1] == ["clean"]:
        return _clean(args, args.runs[1:])
    if wrong := next((flag for flag in ("yes", "unfinished", "whole") if getattr(args, flag)), ""):
        raise ConfigError(f"--{wrong} goes with  fintune runs clean  alone.")
    if len(args.runs) > 1:
        found = [runs.named(name) for name in args.runs]
        about = {"runs": [run.as_dict() for run in found], "recipe_differences": runs.differences(found)}
        shown(args, about, lambda: _print_compared(found))
        return 0
    root = Path(args.runs[0]) if args.runs else runs.OUTPUT
    found = runs.find(root) if args.runs or root.is_dir() else []
    found = _sorted(found, args.sort)
    shown(args, {"folder": root, "runs": [run.as_dict() for run in found]}, lambda: _print_list(found, root))
    return 0


def _sorted(found: list[TrainingRun], key: str) -> list[TrainingRun]:
    """The runs by name, or the largest, slowest, newest or best first; those without the figure come last."""
    if key in ("date", ""):
        return found
    if key == "name":
        return sorted(found, key=lambda run: str(run.folder))
    if key in ("time", "size"):
        return sorted(found, key=lambda run: -((run.seconds if key == "time" else run.bytes) or 0))
    tasks = sorted({figure.task for run in found for figure in run.figures})
    if key not in tasks:
        raise ConfigError(f"--sort is {key!r}, which no run has{hint(key, [*SORTED_BY, *tasks])}")

    def rank(run: TrainingRun) -> tuple[bool, float]:
        figure = next((f for f in run.figures if f.task == key), None)
        if figure is None or figure.value is None:
            return True, 0.0
        return False, figure.value if figure.measure.better == "lower" else -figure.value

    return sorted(found, key=rank)


def _print_list(found: Sequence[TrainingRun], root: Path) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    if not found:
        print(f"There is no run in {root}: train one with  fintune train.")
        return
    console = Console(highlight=False)
    names = [str(run.folder.relative_to(root)) if run.folder != root else str(root) for run in found]
    width = min(max(map(len, [*names, "run"])), 30)
    head = f"{'run':<{width}}  {'trained':<16}  {'time':>6}  {'disk':>9}  state"
    console.print(Text(head, style="bold"))
    for run, name in zip(found, names, strict=True):
        took, disk = duration(run.seconds), megabytes(run.bytes)
        about = f"{run.trained:%Y-%m-%d %H:%M}  {took:>6}  {disk:>9}  {_state(run)}"
        console.print(Text.assemble((f"{name:<{width}}", "bold"), f"  {about}"))
        console.print(Padding(Text(_line(run), style="dim"), (0, 0, 0, 2)))
    freed = sum(run.checkpoint_bytes for run in found if run.state == "complete")
    if freed:
        print(f"\n{megabytes(freed)} are checkpoints of finished runs:  fintune runs clean  removes them.")


def _line(run: TrainingRun) -> str:
    """The base, and the main figure of each task."""
    main: dict[str, Figure] = {}
    for figure in run.figures:
        main.setdefault(figure.task, figure)
    texts = [f"{f.task} {f.measure.heading} {_number(f.value)}" for f in main.values()]
    split = f" ({run.split})" if texts else ""
    base = Path(run.base).name if run.base else "unknown base"
    return f"{base}: {', '.join(texts or run.tasks or ['unknown tasks'])}{split}"


def _state(run: TrainingRun) -> str:
    if run.state == "complete":
        return "complete"
    at = f", step {run.step} of {run.steps or '?'}" if run.step is not None else ""
    return ("training now" if run.state == "training" else "unfinished") + at


def _print_compared(found: Sequence[TrainingRun]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fintune.runs import differences

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for run in found:
        table.add_column(str(run.folder), justify="right", overflow="fold")

    def section(title: str, rows: Sequence[tuple[str, Sequence[object]]]) -> None:
        if rows:
            table.add_row(Text(title, style="bold"))
        for i, (name, values) in enumerate(rows):
            cells = (value if isinstance(value, Text) else Text(str(value)) for value in values)
            table.add_row(f"  {name}", *cells, end_section=i == len(rows) - 1)

    section(
        "Run",
        [
            ("state", [_state(run) for run in found]),
            ("trained", [f"{run.trained:%Y-%m-%d %H:%M}" for run in found]),
            ("base model", [run.base or "–" for run in found]),
            ("time", [duration(run.seconds) for run in found]),
            ("steps", ["–" if run.steps is None else f"{run.steps:,}" for run in found]),
            ("disk", [megabytes(run.bytes) for run in found]),
            ("figures from", [run.split or "–" for run in found]),
        ],
    )
    different = differences(found).items()
    section(
        "Recipe, where it differs",
        [(key, ["–" if v is None else v for v in each]) for key, each in different],
    )
    section("Figures", _figure_rows(found))
    Console(highlight=False).print(table)
    print("↓ smaller is better, elsewhere larger is. Green is the best of a row.")
    if len(found) == 2 and all(run.split == "test" for run in found):
        folders = " ".join(str(run.folder) for run in found)
        print(f"Whether a difference is more than chance:  fintune compare {folders}")


def _figure_rows(found: Sequence[TrainingRun]) -> list[tuple[str, list[Any]]]:
    from rich.text import Text

    measures = {(f.task, f.measure.name): f.measure for run in found for f in run.figures}
    figures = [{(f.task, f.measure.name): f.value for f in run.figures} for run in found]
    rows = []
    for key, measure in measures.items():
        each = [of_run.get(key) for of_run in figures]
        known = [v for v in each if v is not None]
        best = (min if measure.better == "lower" else max)(known) if len(set(known)) > 1 else None
        if len({run.split for run in found}) > 1 or measure.better == "neither":
            best = None  # of different examples
        cells = [Text(_number(v), style="bold green" if v is not None and v == best else "") for v in each]
        rows.append((f"{key[0]} {measure.heading}", cells))
    return rows


def _clean(args: argparse.Namespace, names: Sequence[str]) -> int:
    from fintune import runs

    if args.whole and not names:
        raise ConfigError(
            "--whole removes adapters, so it takes the names of runs:  fintune runs clean RUN --whole"
        )
    found = [runs.named(name) for name in names]
    if not names and runs.OUTPUT.is_dir():
        found = runs.find(runs.OUTPUT)
    removals = runs.removable(found, unfinished=args.unfinished, whole=args.whole)
    freed = sum(removal.bytes for removal in removals)
    for removal in removals:
        print(f"{megabytes(removal.bytes):>10}  {removal.path}  {removal.what}")
        if args.yes:
            shutil.rmtree(removal.path)
    for run in found:
        if run.state == "training":
            print(f"Left alone: {run.folder}, which trains now.")
        elif run.state == "unfinished" and not (args.unfinished or args.whole):
            print(f"Left alone: {run.folder}, which is unfinished; --unfinished takes its checkpoints, too.")
    if args.yes:
        print(f"Removed: {megabytes(freed)}.")
    elif removals:
        print(f"Nothing was removed. With --yes these go, and {megabytes(freed)} are free.")
    else:
        print("There is nothing to remove.")
    shown(args, {"removed": args.yes, "bytes": freed, "folders": removals})
    return 0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


COMMANDS = (
    Command("runs", "list trained runs, compare them, and remove old checkpoints", _runs, _runs_flags),
)
