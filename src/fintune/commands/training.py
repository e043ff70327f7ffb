"""`fintune run`, `plan`, `train` and `average`."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from fintune.commands.common import (
    OUTPUT_DIR,
    Command,
    count,
    data_dir_flag,
    json_flag,
    recipe_flags,
    recipe_of,
    shown,
    trust_flag,
)
from fintune.errors import MissingExtraError


def _train_flags(command: argparse.ArgumentParser) -> None:
    _training_flags(command)
    command.add_argument(
        "--overwrite", action="store_true", help="replace the adapter or the checkpoints in the output folder"
    )
    json_flag(command)


def _training_flags(command: argparse.ArgumentParser) -> None:
    recipe_flags(command)
    command.add_argument(
        "--output_dir",
        default=OUTPUT_DIR,
        metavar="DIR",
        help=f"folder for the adapter (default: {OUTPUT_DIR})",
    )
    command.add_argument("--use_wandb", action="store_true", help="log to Weights & Biases, too")
    command.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="latest",
        metavar="DIR",
        help="go on from a checkpoint (without DIR: the newest in the output folder)",
    )
    command.add_argument(
        "-v", "--verbose", action="store_true", help="show the log on the console, too, in detail"
    )


def _plan_flags(command: argparse.ArgumentParser) -> None:
    recipe_flags(command)
    command.add_argument(
        "--measure",
        action="store_true",
        help="time a few steps on this machine first (20 seconds); later plans use what was measured",
    )
    json_flag(command)


def _run_flags(command: argparse.ArgumentParser) -> None:
    _training_flags(command)
    command.add_argument(
        "--output_file", metavar="JSON", help="results file (default: results.json in the output folder)"
    )
    json_flag(command)


def _average_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER",
        help="folders of adapters trained by one recipe, such as with several seeds",
    )
    command.add_argument("--output_dir", required=True, metavar="DIR", help="new folder for the adapter")
    command.add_argument(
        "--rank",
        type=count,
        metavar="N",
        help="rank of the result (default: the sum of the ranks, which loses nothing)",
    )
    data_dir_flag(command)
    trust_flag(command)


def _plan(args: argparse.Namespace) -> int:
    from fintune.planning import as_dict, estimate, show

    recipe = recipe_of(args)
    if args.measure:
        from fintune.planning.measuring import measure

        print("Measuring this machine …", flush=True)
        measure(recipe)
    need = estimate(recipe)
    shown(args, as_dict(recipe, need), lambda: show(recipe, need))
    return 0


def _train(args: argparse.Namespace) -> int:
    from fintune.data.prepare.dataset import prepare
    from fintune.training.checkpoints import origin

    recipe = recipe_of(args)
    origin(recipe, Path(args.output_dir), args.resume_from_checkpoint, args.overwrite)
    if args.use_wandb and not find_spec("wandb"):
        raise MissingExtraError("--use_wandb", "track")
    # Of several processes one prepares, and the others wait for it: `train` sees to that.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    prepared = prepare(recipe) if alone else None
    from fintune.training.run import train  # takes seconds: after what may be refused

    facts = train(
        recipe,
        args.output_dir,
        prepared=prepared,
        resume=args.resume_from_checkpoint,
        overwrite=args.overwrite,
        use_wandb=args.use_wandb,
        verbose=args.verbose,
    )
    about = {name: value for name, value in facts.items() if name != "data"}
    shown(args, {"adapter": args.output_dir, **about})
    print(f"Next: fintune evaluate --model_path {args.output_dir}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from fintune.pipeline import run
    from fintune.reports.figures import as_dict

    results = run(
        recipe_of(args),
        Path(args.output_dir),
        output_file=Path(args.output_file) if args.output_file else None,
        resume=args.resume_from_checkpoint,
        use_wandb=args.use_wandb,
        verbose=args.verbose,
    )
    shown(args, as_dict(results))
    return 0


def _average(args: argparse.Namespace) -> int:
    from fintune.training.average import average

    average(args.adapters, args.output_dir, rank=args.rank, data_dir=args.data_dir)
    print(f"Next: fintune evaluate --split validation --model_path {args.output_dir}")
    return 0


COMMANDS = (
    Command("run", "prepare data, train, evaluate and show the results", _run, _run_flags),
    Command("plan", "estimate the memory, disk space and time that a recipe needs", _plan, _plan_flags),
    Command("train", "train one adapter on all tasks of a recipe", _train, _train_flags),
    Command("average", "average several adapters into one", _average, _average_flags),
)
