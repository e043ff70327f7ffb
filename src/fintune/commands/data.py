"""`fintune data` and its actions."""

from __future__ import annotations

import argparse
import contextlib
import functools
from pathlib import Path
from typing import Any

from fintune.commands.common import (
    Command,
    action,
    count,
    data_dir_flag,
    json_flag,
    model_path_flag,
    plain,
    recipe_flags,
    recipe_of,
    shown,
    store_flag,
)
from fintune.errors import FintuneError

REPORT_DIR = "output/quality"


def _data_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = action(actions, "list", "list the public datasets, and whether they are here")
    data_dir_flag(listing)
    download = action(actions, "download", "download public datasets")
    download.add_argument(
        "--dataset",
        action="append",
        metavar="NAME",
        help="dataset to download; can be repeated (default: all)",
    )
    download.add_argument(
        "--data_dir", default="data/raw", metavar="DIR", help="folder to download to (default: data/raw)"
    )
    prepare = _prepare_flags(actions)
    mix = action(actions, "mix", "show how much of each task a recipe trains on")
    recipe_flags(mix)
    report = action(actions, "report", "write a report on the quality of the prepared data")
    recipe_flags(report)
    report.add_argument(
        "--output_dir",
        default=REPORT_DIR,
        metavar="DIR",
        help=f"folder for the report (default: {REPORT_DIR})",
    )
    filings = _filings_flags(actions)
    clean = _decontaminate_flags(actions)
    feedback = action(actions, "from-feedback", "write corrected answers as training data")
    feedback.add_argument("--task", required=True, metavar="TASK", help="task of the answers")
    feedback.add_argument(
        "--output_file", required=True, metavar="OUT", help=".jsonl or .parquet file to write"
    )
    feedback.add_argument("--all", action="store_true", help="write answers that were right, too")
    model_path_flag(feedback, "adapter to train further (default: the newest under output/)")
    store_flag(feedback)
    for each in (listing, prepare, mix, report, filings, clean):
        json_flag(each)


def _prepare_flags(actions: Any) -> argparse.ArgumentParser:
    prepare = action(actions, "prepare", "check and split a recipe's data into Parquet files")
    recipe_flags(prepare)
    prepare.add_argument("--force", action="store_true", help="prepare again even if nothing changed")
    prepare.add_argument(
        "--commercial_only",
        action="store_true",
        help="leave out datasets whose licence does not allow commercial use",
    )
    prepare.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 if a training text is also in a test set of this run",
    )
    prepare.add_argument(
        "--workers", type=count, metavar="N", help="processes that read the data (default: one a core)"
    )
    prepare.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="read on a Ray cluster: auto or HOST:PORT (without ADDRESS: on this machine)",
    )
    prepare.add_argument(
        "--copy_to",
        metavar="PATH",
        help="write the data as partitioned Parquet, too: to a folder, s3://, gs://, …",
    )
    return prepare


def _filings_flags(actions: Any) -> argparse.ArgumentParser:
    filings = action(actions, "filings", "download a company's reports from SEC's EDGAR")
    filings.add_argument("ticker", metavar="TICKER", help="ticker or CIK number of the company")
    filings.add_argument(
        "--form",
        default="10-K",
        metavar="FORM",
        help="form of the reports: 10-K, 10-Q, 8-K, … (default: 10-K)",
    )
    filings.add_argument(
        "--count", type=count, default=1, metavar="N", help="download the newest N reports (default: 1)"
    )
    filings.add_argument(
        "--identity",
        metavar="WHO",
        help='"Your Name you@example.com": SEC wants to know who downloads (default: EDGAR_IDENTITY)',
    )
    filings.add_argument(
        "--output_dir",
        default="data/filings",
        metavar="DIR",
        help="folder for the reports (default: data/filings)",
    )
    return filings


def _decontaminate_flags(actions: Any) -> argparse.ArgumentParser:
    clean = action(actions, "decontaminate", "copy a file without the rows that repeat a test set")
    clean.add_argument("file", metavar="FILE", help="CSV, TSV, JSON, Parquet or Excel file to clean")
    clean.add_argument(
        "--output_file", required=True, metavar="OUT", help="cleaned file, of the same kind as FILE"
    )
    clean.add_argument(
        "--task", metavar="TASK", help="task whose text column, as the recipe maps it, is compared"
    )
    clean.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        metavar="S",
        help="similarity from 0 to 1 at which a text counts as repeated (default: 0.8)",
    )
    recipe_flags(clean)
    return clean


def _data(args: argparse.Namespace) -> int:
    if args.action == "download":
        from fintune.data.raw.download import download

        return 1 if download(args.dataset, Path(args.data_dir), print) else 0
    if args.action == "list":
        _list(args)
    elif args.action == "mix":
        from fintune.training import mix

        recipe = recipe_of(args)
        found = mix.measure_prepared(recipe)
        shown(args, mix.as_dict(found), lambda: mix.show(recipe, found))
    elif args.action == "filings":
        from fintune.data.raw.filings import fetch_filings

        saved = []
        for path in fetch_filings(args.ticker, args.form, args.count, args.identity, args.output_dir):
            print(f"Saved {path}", flush=True)
            saved.append(path)
        shown(args, {"saved": saved})
        print(f'Ask it:  fintune predict --task qa --document {args.output_dir} "…"')
    elif args.action == "report":
        _report(args)
    elif args.action == "decontaminate":
        from fintune.data.quality.decontaminate import decontaminate

        removal = decontaminate(
            args.file, args.output_file, recipe_of(args), task=args.task, threshold=args.threshold
        )
        shown(args, {**plain(removal), "output_file": args.output_file})
    elif args.action == "from-feedback":
        from fintune.models.source import newest_adapter
        from fintune.monitoring.commands import from_feedback

        adapter = args.model_path
        if adapter is None:
            with contextlib.suppress(FintuneError):  # there is none: the printed command names none
                adapter = newest_adapter()
        from_feedback(args.store, args.task, args.output_file, everything=args.all, model_path=adapter)
    else:
        _prepare(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from fintune.data.raw.sources import list_datasets

    datasets, folders = list_datasets(args.data_dir)

    def show() -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False)
        wide = console.width >= 140
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for heading in ("dataset", "type", "default of", "found", "licence", *(["home"] * wide)):
            table.add_column(heading, no_wrap=heading != "licence")
        for each in datasets:
            cells = (each.name, each.type, each.default_of or "–", each.found, each.licence)
            table.add_row(*cells, *([each.home] * wide))
        console.print(table)
        more = "" if wide else " A wider terminal, and --json, show where each dataset comes from."
        print(f"Looked in {', '.join(map(str, folders))}.{more}")

    shown(args, {"datasets": datasets, "folders": folders}, show)


def _prepare(args: argparse.Namespace) -> None:
    from fintune.data.prepare.dataset import prepare

    mapper = None
    if args.ray:
        from fintune.cluster import ray_map

        mapper = functools.partial(ray_map, workers=args.workers, address=args.ray)
    recipe = recipe_of(args)
    prepared = prepare(recipe, force=args.force, workers=args.workers, mapper=mapper)
    fields = ("dataset", "source", "licence", "counts", "labels", "dropped", "notes")
    tasks = {
        name: {field: entry[field] for field in fields} for name, entry in prepared.manifest["tasks"].items()
    }
    shown(args, {"folder": prepared.folder, "tasks": tasks})
    if args.strict:
        from fintune.data.quality.measured import refuse_leaks

        refuse_leaks(prepared, recipe)
    print(f"Prepared data: {prepared.folder}")
    if args.copy_to:
        print(f"Copied {prepared.copy_to(args.copy_to):,} records to {args.copy_to}")


def _report(args: argparse.Namespace) -> None:
    """Prepare a recipe's data if need be, measure it, write the report and show the gist."""
    from fintune.data.prepare.dataset import prepare
    from fintune.data.quality.measured import build, leaks, overlaps
    from fintune.models.base import load_tokenizer
    from fintune.reports.data_quality import write

    recipe = recipe_of(args)
    prepared = prepare(recipe)
    tokenizer = load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    measured = build(prepared, tokenizer, recipe)
    paths = write(Path(args.output_dir), measured)
    shown(args, {**measured, "files": paths}, lambda: _print_gist(measured))
    for sentence in leaks(measured):
        print(f"leak: {sentence}")
    for sentence in overlaps(measured):
        print(f"not in a test set of this run: {sentence}")
    print(f"The report: {', '.join(map(str, paths))}")


def _print_gist(measured: dict[str, Any]) -> None:
    print()
    print(f"{'task':<14} {'rows':>8} {'cut':>7} {'repeated':>9} {'conflicts':>10} {'encoding':>9}")
    for name, task in measured["tasks"].items():
        splits = task["splits"].values()
        repeated = sum(split["duplicates"]["exact"] + split["duplicates"]["near"] for split in splits)
        print(
            f"{name:<14} {sum(split['rows'] for split in splits):>8,} "
            f"{sum(split['truncated']['examples'] for split in splits):>7,} {repeated:>9,} "
            f"{sum(split['conflicts']['texts'] for split in splits):>10,} "
            f"{sum(split['encoding']['repairable'] + split['encoding']['lost'] for split in splits):>9,}"
        )
    print("Cut: longer than training.max_length. Repeated: texts that repeat one of their split.")
    print("Conflicts: texts with several targets. Encoding: records with damaged characters.")


COMMANDS = (Command("data", "list, download, prepare and check data", _data, _data_flags),)
