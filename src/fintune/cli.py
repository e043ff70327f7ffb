"""Every command and flag. Nothing heavy is imported before a command runs, so `--help` is quick."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fintune import __version__
from fintune.errors import DataError, FintuneError

OUTPUT_DIR = "output/model"

COMMANDS = {
    "run": "the complete pipeline: prepare data, train, evaluate, and show the results",
    "train": "train one adapter on all tasks of a recipe",
    "evaluate": "score an adapter on the test data, beside its baselines",
    "predict": "answer one text, or a file of them",
    "demo": "open the demo in a browser",
    "data": "download and prepare data",
    "doctor": "check this machine and this installation",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fintune",
        description="Fine-tune one LLM with one LoRA adapter on five finance tasks, and use it.",
        epilog="Start with `fintune run --debug`: a minute or two, and every step of the pipeline.",
    )
    parser.add_argument("--version", action="version", version=f"fintune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        globals()[f"_{name}_arguments"](command)
    return parser


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="YAML", help="the recipe (default: configs/default.yaml)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, such as training.learning_rate=1e-4; may be repeated",
    )
    command.add_argument(
        "--data_dir", metavar="DIR", help="folder of public datasets (default: FINTUNE_DATA_DIR)"
    )
    command.add_argument("--debug", action="store_true", help="a very small run that exercises everything")


def _training_arguments(command: argparse.ArgumentParser) -> None:
    _recipe_arguments(command)
    command.add_argument(
        "--output_dir",
        default=OUTPUT_DIR,
        metavar="DIR",
        help=f"the adapter's folder (default: {OUTPUT_DIR})",
    )
    command.add_argument("--use_wandb", action="store_true", help="log to Weights & Biases too")
    command.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="latest",
        metavar="DIR",
        help="go on from a checkpoint; without DIR, from the newest in the output folder",
    )
    command.add_argument("--verbose", action="store_true", help="debugging details, also on the console")


def _train_arguments(command: argparse.ArgumentParser) -> None:
    _training_arguments(command)


def _run_arguments(command: argparse.ArgumentParser) -> None:
    _training_arguments(command)
    command.add_argument(
        "--output_file", metavar="JSON", help="the results (default: results.json in the output folder)"
    )


def _evaluate_arguments(command: argparse.ArgumentParser) -> None:
    _recipe_arguments(command)
    command.add_argument(
        "--model_path", metavar="DIR", help=f"the adapter (default: {OUTPUT_DIR}, or else the untuned base)"
    )
    command.add_argument(
        "--output_file", default="results.json", metavar="JSON", help="(default: results.json)"
    )
    command.add_argument("--max_test", type=int, metavar="N", help="test examples per task at most")


def _predict_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", nargs="?", help="the text; or - to read it from standard input")
    command.add_argument("--task", required=True, metavar="TASK", help="sentiment, headline, qa, …")
    command.add_argument("--question", metavar="TEXT", help="the question of a qa text")
    command.add_argument(
        "--model_path", metavar="DIR", help="the adapter (default: the newest under output/, or the base)"
    )
    command.add_argument(
        "--input_file", metavar="FILE", help="a CSV, JSONL or Parquet file with a text column"
    )
    command.add_argument("--output_file", metavar="JSONL", help="where answers go (default: standard output)")
    command.add_argument("--truncate", action="store_true", help="cut texts that do not fit the context")
    command.add_argument(
        "--config", metavar="YAML", help="the recipe that names the base, without an adapter"
    )


def _demo_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model_path", metavar="DIR", help="the adapter (default: the untuned base)")
    command.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    command.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine only)")
    command.add_argument("--simple", action="store_true", help="take the newest adapter under output/")


def _data_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the public datasets: task, licence, home, and whether found")
    listing.add_argument("--data_dir", metavar="DIR")
    download = actions.add_parser("download", help="fetch public datasets into data/raw")
    download.add_argument(
        "--dataset", action="append", metavar="NAME", help="one dataset; may be repeated (default: all)"
    )
    download.add_argument("--data_dir", default="data/raw", metavar="DIR", help="(default: data/raw)")
    prepare = actions.add_parser("prepare", help="raw data into checked, split Parquet files")
    _recipe_arguments(prepare)
    prepare.add_argument("--force", action="store_true", help="prepare again, even if nothing changed")


def _doctor_arguments(command: argparse.ArgumentParser) -> None:
    pass


# The commands ---------------------------------------------------------------------------------------


def _recipe(args: argparse.Namespace) -> Any:
    from fintune.config import default_recipe_path, load_recipe

    overrides = list(args.set)
    if args.data_dir:
        overrides.append(f"data.dir={args.data_dir}")
    recipe = load_recipe(args.config or default_recipe_path(), overrides)
    return recipe.debugged() if args.debug else recipe


def _train(args: argparse.Namespace) -> int:
    from fintune.training.run import train

    train(
        _recipe(args),
        args.output_dir,
        resume=args.resume_from_checkpoint,
        use_wandb=args.use_wandb,
        verbose=args.verbose,
    )
    print(f"Next: fintune evaluate --model_path {args.output_dir}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from fintune.pipeline import run

    run(
        _recipe(args),
        Path(args.output_dir),
        output_file=Path(args.output_file) if args.output_file else None,
        resume=args.resume_from_checkpoint,
        use_wandb=args.use_wandb,
        verbose=args.verbose,
    )
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from fintune.data.datasets import prepare
    from fintune.evaluation.evaluate import evaluate
    from fintune.evaluation.report import print_table
    from fintune.inference.engine import Engine
    from fintune.models import manifest
    from fintune.models.lora_config import check_adapter

    model_path = args.model_path
    if model_path is None and (Path(OUTPUT_DIR) / "adapter_config.json").is_file():
        model_path = OUTPUT_DIR
    if model_path:
        check_adapter(model_path)
    recipe = _recipe(args)
    if model_path and not args.config and manifest.read_raw(model_path):
        # An adapter is evaluated on the data of its own recipe, unless another recipe is given.
        trained = manifest.read(model_path, recipe)[0]
        recipe = trained.model_copy(update={"evaluation": recipe.evaluation} if args.set else {})
        if args.data_dir:
            recipe.data.dir = args.data_dir
        if args.debug:
            recipe = recipe.debugged()
    if model_path is None:
        print("No adapter given and none in output/model: evaluating the untuned base model.")
    prepared = prepare(recipe)
    engine = Engine.load(model_path, recipe)
    results = evaluate(engine, prepared, recipe.evaluation, Path(args.output_file), max_test=args.max_test)
    print_table(results)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from fintune.predict import predict_file, show

    if (args.text is None) == (args.input_file is None):
        raise DataError('Give either a text or --input_file, not both: fintune predict --task sentiment "…"')
    if args.input_file and not Path(args.input_file).is_file():
        raise DataError(f"--input_file {args.input_file}: there is no such file.")
    from fintune.inference.engine import Engine, newest_adapter

    recipe = None
    if args.config:
        from fintune.config import load_recipe

        recipe = load_recipe(args.config)
    model_path = args.model_path
    if model_path is None and recipe is None:
        try:
            model_path = newest_adapter()
        except FintuneError:
            print("No adapter under output/: the untuned base model answers.", file=sys.stderr)
    engine = Engine.load(model_path, recipe)
    if args.input_file:
        count = predict_file(engine, args.task, args.input_file, args.output_file, args.truncate)
        if args.output_file:
            print(f"{count} answers written to {args.output_file}")
        return 0
    text = sys.stdin.read() if args.text == "-" else args.text
    show(engine, args.task, text, args.question, args.truncate)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from fintune.demo.app import launch

    launch(args.model_path, args.port, args.host, simple=args.simple)
    return 0


def _data(args: argparse.Namespace) -> int:
    if args.action == "download":
        from fintune.data.sources import download

        download(args.dataset, Path(args.data_dir), print)
    elif args.action == "list":
        from fintune.data.sources import list_datasets

        list_datasets(args.data_dir)
    else:
        from fintune.data.datasets import prepare

        prepared = prepare(_recipe(args), force=args.force)
        print(f"Prepared data: {prepared.folder}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from fintune.doctor import run

    return run()


# Errors ---------------------------------------------------------------------------------------------


def _dashes(arguments: Sequence[str]) -> Iterator[str]:
    """Let `--output-dir` mean `--output_dir`: flags are known by underscores, and both are typed."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        yield name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _quiet() -> None:
    """Keep libraries' notices off the console; the log file has them."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1" if not sys.stderr.isatty() else "0")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s", handlers=[console])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for a mistake that one sentence explains, 130 for Ctrl-C."""
    args = _parser().parse_args(list(_dashes(sys.argv[1:] if arguments is None else arguments)))
    _quiet()
    try:
        return int(globals()[f"_{args.command}"](args))
    except FintuneError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"The package {error.name} is not installed: run  make setup  (or pip install -e .)"
    except KeyboardInterrupt:
        print("\nInterrupted. What was saved so far is whole.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        fix = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        message = (
            f"Could not write{where}: {error.strerror}. What was there before is whole; {fix} and run again."
        )
    print(f"fintune: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
