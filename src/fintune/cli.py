"""Every command and flag. Nothing heavy is imported before a command runs, so `--help` is quick."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fintune import __version__
from fintune.allocator import use_mimalloc
from fintune.errors import DataError, FintuneError

OUTPUT_DIR = "output/model"
REPORT_DIR = "output/quality"
STORE = "sqlite:///output/monitoring.db"
COMPUTING = ("run", "train", "evaluate", "predict", "demo", "live", "serve")
MODEL_PATH_HELP = "the adapter's folder (default: the newest under output/, else the untuned base model)"
KEYS_HELP = "the file of API keys (default: FINTUNE_KEYS, else ~/.config/fintune/keys.json)"


# The flags ------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fintune",
        description="Fine-tune one LLM with one LoRA adapter on five finance tasks, and use it.",
        epilog="Start with `fintune run --debug`: a minute or two, and every step of the pipeline.",
    )
    parser.add_argument("--version", action="version", version=f"fintune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text, run, add_flags in (
        ("run", "the complete pipeline: prepare data, train, evaluate, show the results", _run, _run_flags),
        ("plan", "what a recipe will need: parameters, memory, disk, time", _plan, _recipe_flags),
        ("train", "train one adapter on all tasks of a recipe", _train, _training_flags),
        ("evaluate", "score an adapter on the test data, beside its baselines", _evaluate, _evaluate_flags),
        ("report", "the HTML report of a results file, made again without the model", _report, _report_flags),
        ("compare", "compare two evaluations, or the seeds of one recipe", _compare, _compare_flags),
        ("predict", "answer one text, or a file of them", _predict, _predict_flags),
        ("demo", "open the demo, a page to try every task in a browser", _demo, _demo_flags),
        ("live", "score headlines as they come, from feeds and Yahoo Finance", _live, _live_flags),
        ("serve", "serve the tasks and OpenAI's API over HTTP", _serve, _serve_flags),
        ("keys", "make, list and revoke the API keys of the server", _keys, _keys_flags),
        ("data", "list, download, prepare and check data", _data, _data_flags),
        ("monitor", "drift of live answers, and what feedback says of them", _monitor, _monitor_flags),
        ("doctor", "check this machine and this installation", _doctor, None),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        if add_flags:
            add_flags(command)
    return parser


def _recipe_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="YAML", help="the recipe (default: configs/default.yaml)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, such as training.learning_rate=1e-4; may be repeated",
    )
    command.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder of public datasets, looked in before FINTUNE_DATA_DIR and data/raw",
    )
    command.add_argument("--debug", action="store_true", help="a very small run that exercises everything")


def _training_flags(command: argparse.ArgumentParser) -> None:
    _recipe_flags(command)
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
    command.add_argument("--verbose", action="store_true", help="show the log on the console too, in detail")


def _run_flags(command: argparse.ArgumentParser) -> None:
    _training_flags(command)
    command.add_argument(
        "--output_file", metavar="JSON", help="the results (default: results.json in the output folder)"
    )


def _evaluate_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model_path", metavar="DIR", help=MODEL_PATH_HELP)
    command.add_argument(
        "--output_file", default="results.json", metavar="JSON", help="the results (default: results.json)"
    )
    command.add_argument("--max_test", type=_count, metavar="N", help="test examples per task at most")
    command.add_argument("--use_wandb", action="store_true", help="send the figures to Weights & Biases too")
    command.add_argument(
        "--export_lm_eval",
        metavar="DIR",
        help="write the label tasks for lm-evaluation-harness to a folder, and evaluate nothing",
    )
    _recipe_flags(command)


def _report_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("results", metavar="RESULTS.json", help="what fintune evaluate wrote")
    command.add_argument(
        "--output_file", metavar="HTML", help="the report (default: beside the results, as .html)"
    )


def _compare_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs", nargs="+", metavar="RESULTS", help="results files, or the folders that hold them: A B"
    )
    command.add_argument("--task", metavar="TASK", help="one task only")
    command.add_argument("--metric", metavar="METRIC", help="one metric only, such as macro_f1")
    command.add_argument(
        "--seeds", action="store_true", help="mean and standard deviation over runs of one recipe"
    )
    command.add_argument("--output_file", metavar="FILE", help="write it too, as .json or .md")


def _predict_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", nargs="?", help="the text, or - to read it from standard input")
    command.add_argument("--task", required=True, metavar="TASK", help="sentiment, headline, qa, …")
    command.add_argument("--question", metavar="TEXT", help="the question of a qa text")
    command.add_argument("--model_path", metavar="DIR", help=MODEL_PATH_HELP)
    command.add_argument(
        "--input_file",
        metavar="PATH",
        help="a CSV, JSONL or Parquet file with a text column, or a folder of them; s3:// and gs:// too",
    )
    command.add_argument(
        "--output_file",
        metavar="PATH",
        help="where answers go: JSON lines, or with a / at its end Parquet files (default: standard output)",
    )
    command.add_argument("--truncate", action="store_true", help="cut texts that do not fit the context")
    command.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="answer a file with Ray: of a cluster (auto, HOST:PORT), or without ADDRESS of this machine",
    )
    command.add_argument(
        "--workers", type=_count, metavar="N", help="of --ray (default: one a GPU, else one for 4 CPU cores)"
    )


def _demo_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model_path", metavar="DIR", help=MODEL_PATH_HELP)
    command.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    command.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine only)")
    command.add_argument(
        "--live_dir",
        default="output/live",
        metavar="DIR",
        help="what fintune live writes (default: output/live)",
    )


def _live_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        nargs="?",
        choices=("run", "score"),
        default="run",
        help="run (the default), or score: what was answered against what prices did after it",
    )
    command.add_argument(
        "--feed", action="append", metavar="URL", help="an RSS or Atom feed; may be repeated"
    )
    command.add_argument("--yahoo", metavar="SYMBOLS", help="news on these stocks, such as AAPL,MSFT")
    command.add_argument("--config", metavar="YAML", help="such as configs/live.yaml; flags come first")
    command.add_argument("--tasks", metavar="TASKS", help="(default: headline,sentiment)")
    command.add_argument("--model_path", metavar="DIR", help=MODEL_PATH_HELP)
    command.add_argument("--output", metavar="DIR", help="where answers are kept (default: output/live)")
    command.add_argument("--interval", type=float, metavar="S", help="seconds between polls (default: 300)")
    command.add_argument("--once", action="store_true", help="poll each source once, and end")
    command.add_argument("--webhook", metavar="URL", help="where alerts go, signed")
    command.add_argument(
        "--allow_network",
        action="append",
        metavar="CIDR",
        help="a private network that feeds and webhook may be in, such as 127.0.0.0/8; may be repeated",
    )
    command.add_argument(
        "--prices",
        metavar="DIR",
        help="of score: SYMBOL.csv files (default: Yahoo Finance, through yfinance)",
    )


def _serve_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model_path", metavar="DIR", help=MODEL_PATH_HELP)
    command.add_argument("--port", type=int, default=8000, help="(default: 8000; 0 takes a free one)")
    command.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine only)")
    command.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="DIR",
        help="adapters that requests may name, or folders that hold some",
    )
    command.add_argument(
        "--max_adapters", type=_count, default=4, metavar="N", help="in memory at once (default: 4)"
    )
    command.add_argument("--keys", metavar="FILE", help=KEYS_HELP)
    command.add_argument("--insecure", action="store_true", help="ask for no key, even on a public address")
    command.add_argument(
        "--rate", type=_count, default=0, metavar="N", help="requests a minute for each key (default: any)"
    )
    command.add_argument(
        "--max_batch", type=_count, default=32, metavar="N", help="records computed together (default: 32)"
    )
    command.add_argument(
        "--max_wait_ms", type=float, default=5, metavar="MS", help="wait for company so long (default: 5)"
    )
    command.add_argument(
        "--max_queue", type=_count, default=512, metavar="N", help="records that may wait (default: 512)"
    )
    command.add_argument("--timeout", type=float, default=60, metavar="S", help="of a request (default: 60)")
    command.add_argument(
        "--slow", type=float, default=10, metavar="S", help="a client may take to send it (default: 10)"
    )
    command.add_argument(
        "--max_body",
        type=_count,
        default=1_000_000,
        metavar="BYTES",
        help="of a request (default: 1,000,000)",
    )
    command.add_argument(
        "--max_tokens", type=_count, default=512, metavar="N", help="written for a request (default: 512)"
    )
    command.add_argument(
        "--cors", nargs="+", default=[], metavar="ORIGIN", help="origins whose pages may call the API"
    )
    command.add_argument("--log_text", action="store_true", help="write the texts of requests to the log too")


def _keys_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--name", required=True, help="whose it is")
    create.add_argument("--rate", type=_count, metavar="N", help="requests a minute (default: the server's)")
    create.add_argument("--admin", action="store_true", help="may load and unload adapters")
    listing = actions.add_parser("list", help="the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="make a key good for nothing, on running servers too")
    revoke.add_argument("key", metavar="KEY", help="its id or its name")
    for action in (create, listing, revoke):
        action.add_argument("--keys", metavar="FILE", help=KEYS_HELP)


def _data_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the public datasets: task, licence, home, and whether found")
    listing.add_argument("--data_dir", metavar="DIR")
    download = actions.add_parser("download", help="fetch public datasets into data/raw")
    download.add_argument(
        "--dataset",
        action="append",
        metavar="NAME",
        help="one dataset, or all (the default); may be repeated",
    )
    download.add_argument("--data_dir", default="data/raw", metavar="DIR", help="(default: data/raw)")
    prepare = actions.add_parser("prepare", help="raw data into checked, split Parquet files")
    _recipe_flags(prepare)
    prepare.add_argument("--force", action="store_true", help="prepare again, even if nothing changed")
    prepare.add_argument(
        "--commercial_only",
        action="store_true",
        help="leave out the datasets whose licence does not allow commercial use",
    )
    prepare.add_argument(
        "--strict", action="store_true", help="fail where training texts stand in a test set, of any dataset"
    )
    prepare.add_argument(
        "--workers", type=_count, metavar="N", help="processes that read (default: one a core)"
    )
    prepare.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="read on a Ray cluster; without ADDRESS, on a Ray started here",
    )
    prepare.add_argument(
        "--copy_to", metavar="PATH", help="write it as partitioned Parquet too: a folder, s3://, gs://, …"
    )
    mix = actions.add_parser("mix", help="what the recipe's sampling feeds the model, task by task")
    _recipe_flags(mix)
    report = actions.add_parser("report", help="the quality of the prepared data, for people and machines")
    _recipe_flags(report)
    report.add_argument(
        "--output_dir", default=REPORT_DIR, metavar="DIR", help=f"the report's folder (default: {REPORT_DIR})"
    )
    clean = actions.add_parser("decontaminate", help="your file without what repeats a test set")
    clean.add_argument("file", metavar="FILE", help="a CSV, TSV, JSONL or Parquet file")
    clean.add_argument("--output_file", required=True, metavar="OUT", help="the cleaned file, same kind")
    clean.add_argument("--task", metavar="TASK", help="take the text column the recipe maps for it")
    clean.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        metavar="S",
        help="of a near duplicate (default: 0.8)",
    )
    _recipe_flags(clean)
    feedback = actions.add_parser("from-feedback", help="wrong answers, with the right ones, to train on")
    feedback.add_argument("--task", required=True, metavar="TASK", help="whose answers")
    feedback.add_argument("--output_file", required=True, metavar="OUT", help="a .jsonl or .parquet file")
    feedback.add_argument("--all", action="store_true", help="answers that were called right, too")
    _store_flag(feedback)


def _monitor_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    profile = actions.add_parser(
        "profile", help="the reference: an adapter's inputs and answers on test data"
    )
    profile.add_argument("--model_path", metavar="DIR", help=MODEL_PATH_HELP)
    profile.add_argument("--split", choices=("validation", "test"), default="test", help="(default: test)")
    profile.add_argument("--max", type=_count, metavar="N", help="examples per task at most")
    _recipe_flags(profile)
    drift = actions.add_parser("drift", help="the newest kept answers against the reference")
    drift.add_argument("--model_path", metavar="DIR", help="the adapter's folder, with its profile.json")
    drift.add_argument("--output_file", metavar="FILE", help="write it, as .json, .md or .html")
    drift.add_argument("--strict", action="store_true", help="exit with 2 where there is drift")
    _store_flag(drift)
    feedback = actions.add_parser("feedback", help="how many answers were right, as feedback says")
    feedback.add_argument(
        "--forget", type=_count, metavar="DAYS", help="delete the predictions older than this first"
    )
    _store_flag(feedback)


def _store_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store",
        default=os.environ.get("FINTUNE_STORE", STORE),
        metavar="URL",
        help=f"where predictions are kept (default: FINTUNE_STORE, else {STORE}); also postgresql://…",
    )


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return value


# The commands ---------------------------------------------------------------------------------------


def _recipe(args: argparse.Namespace) -> Any:
    from fintune.config import default_recipe_path, load_recipe

    recipe = load_recipe(args.config or default_recipe_path(), _overrides(args))
    return recipe.debugged() if args.debug else recipe


def _overrides(args: argparse.Namespace) -> list[str]:
    commercial = ["data.commercial_only=true"] if getattr(args, "commercial_only", False) else []
    return [*args.set, *([f"data.dir={args.data_dir}"] if args.data_dir else []), *commercial]


def _adapter(model_path: str | None) -> str | Path | None:
    """The adapter given, else the newest under output/, else None: the untuned base, and it says so."""
    from fintune.inference.engine import newest_adapter

    if model_path:
        return model_path
    try:
        return newest_adapter()
    except FintuneError:
        print("There is no adapter under output/: the untuned base model answers.", file=sys.stderr)
        return None


def _plan(args: argparse.Namespace) -> int:
    from fintune.planning import show

    show(_recipe(args))
    return 0


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


def _trained_recipe(model_path: str | Path | None, args: argparse.Namespace) -> Any:
    """The recipe an adapter was trained by, unless another one is given."""
    from fintune.config import recipe_from
    from fintune.models import manifest
    from fintune.models.lora_config import check_adapter

    trained = manifest.read_raw(check_adapter(model_path)).get("recipe") if model_path else None
    if not trained or args.config:
        return _recipe(args)
    recipe = recipe_from(trained, _overrides(args), f"{model_path}/{manifest.NAME}")
    return recipe.debugged() if args.debug else recipe


def _evaluate(args: argparse.Namespace) -> int:
    from fintune.data.datasets import prepare
    from fintune.evaluation.evaluate import evaluate
    from fintune.evaluation.report import print_table
    from fintune.inference.engine import Engine

    model_path = _adapter(args.model_path)
    recipe = _trained_recipe(model_path, args)
    prepared = prepare(recipe)
    engine = Engine.load(model_path, recipe)
    if args.export_lm_eval:
        from fintune.evaluation.lm_eval import export

        names = [task.name for task in prepared.task_set() if task.name in engine.tasks.names()]
        records = {name: prepared.records(name, "test")[: args.max_test] for name in names}
        tasks = export(engine.tasks, engine.template, records, args.export_lm_eval)
        print(f"lm_eval --include_path {args.export_lm_eval} --tasks {','.join(tasks)} --model hf …")
        return 0
    config = recipe.evaluation.tracked(args.use_wandb)
    results = evaluate(engine, prepared, config, Path(args.output_file), max_test=args.max_test)
    print_table(results)
    print(f"Results: {args.output_file}; to read: {Path(args.output_file).with_suffix('.html')} or .md")
    return 0


def _report(args: argparse.Namespace) -> int:
    from fintune.evaluation.page import write_report

    print(f"Report: {write_report(args.results, args.output_file)}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from fintune.evaluation import comparison, comparison_tables
    from fintune.evaluation.runs import Run

    if not args.seeds and len(args.runs) != 2:
        raise DataError(
            f"fintune compare takes two runs, got {len(args.runs)}: name A and B, or add --seeds for several."
        )
    output = comparison_tables.check_output(args.output_file) if args.output_file else None
    runs = [Run.load(path) for path in args.runs]
    if args.seeds:
        compared = comparison.spread(runs, task=args.task, metric=args.metric)
    else:
        compared = comparison.compare(*runs, task=args.task, metric=args.metric)
    comparison_tables.print_comparison(compared)
    if output:
        comparison_tables.write(output, compared)
        print(f"Comparison: {output}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    if (args.text is None) == (args.input_file is None):
        raise DataError('Give a text, or else --input_file: fintune predict --task sentiment "…"')
    if (args.ray or args.workers) and not (args.ray and args.input_file):
        raise DataError("--workers belongs to --ray, and --ray to --input_file: give them together.")
    if args.input_file:
        return _predict_file(args)
    from fintune.inference.engine import Engine
    from fintune.predict import show

    engine = Engine.load(_adapter(args.model_path))
    text = sys.stdin.read() if args.text == "-" else args.text
    show(engine, args.task, text, args.question, args.truncate)
    return 0


def _predict_file(args: argparse.Namespace) -> int:
    from fintune.data.readers.row_files import row_files
    from fintune.data.storage import shown
    from fintune.inference.engine import Engine
    from fintune.predict import predict_file

    row_files(args.input_file, "--input_file")  # before the model is loaded
    model_path, files = _adapter(args.model_path), (args.input_file, args.output_file)
    if args.ray:
        from fintune.cluster import predict_on_ray

        count = predict_on_ray(model_path, args.task, *files, args.truncate, args.ray, args.workers)
    else:
        count = predict_file(Engine.load(model_path), args.task, *files, args.truncate)
    if args.output_file:
        print(f"{count} answers written to {shown(args.output_file)}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from fintune.demo.app import launch

    launch(_adapter(args.model_path), args.port, args.host, args.live_dir)
    return 0


def _live(args: argparse.Namespace) -> int:
    from fintune.live.config import load_live_config

    flags = {
        "feeds": args.feed,
        "yahoo_news": args.yahoo and _names(args.yahoo),
        "tasks": args.tasks and _names(args.tasks),
        "output": args.output,
        "interval": args.interval,
        "allow_networks": args.allow_network,
        "alerts.webhook": args.webhook,
        "alerts.allow_networks": args.allow_network,
    }
    changes = {key: value for key, value in flags.items() if value is not None}
    if args.action == "score":
        return _live_score(args, changes)
    config = load_live_config(args.config, changes)
    from fintune.live.run import run_live

    count = run_live(_adapter(args.model_path), config, once=args.once)
    print(f"{count} new items; answers: {config.output}")
    return 0


def _live_score(args: argparse.Namespace, changes: dict[str, Any]) -> int:
    from fintune.live import scorecard
    from fintune.live.config import LiveConfig, load_live_config
    from fintune.live.market import FolderPrices, Prices

    output = load_live_config(args.config, changes).output if args.config else args.output
    prices: Prices
    if args.prices:
        prices = FolderPrices(args.prices)
    else:
        from fintune.live.yahoo import YahooPrices

        prices = YahooPrices()
    scorecard.show(scorecard.score(output or LiveConfig().output, prices))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _serve(args: argparse.Namespace) -> int:
    from fintune.serving.server import serve
    from fintune.serving.settings import Settings

    serve(
        Settings(
            model_path=_adapter(args.model_path),
            adapters=tuple(args.adapters),
            max_adapters=args.max_adapters,
            host=args.host,
            port=args.port,
            keys=Path(args.keys) if args.keys else None,
            insecure=args.insecure,
            rate=args.rate,
            max_batch=args.max_batch,
            max_wait=args.max_wait_ms / 1000,
            max_queue=args.max_queue,
            timeout=args.timeout,
            slow=args.slow,
            max_body=args.max_body,
            max_tokens=args.max_tokens,
            cors=tuple(args.cors),
            log_text=args.log_text,
        )
    )
    return 0


def _keys(args: argparse.Namespace) -> int:
    from fintune.serving import keys

    path = Path(args.keys) if args.keys else keys.default_path()
    if args.action == "create":
        print(keys.create(path, args.name, args.rate, args.admin))
        print(f"This key is shown once; {path} keeps a hash of it.", file=sys.stderr)
    elif args.action == "revoke":
        print(f"Revoked {keys.revoke(path, args.key).id}.")
    else:
        for key in keys.load(path).values():
            state = f"revoked {key.revoked}" if key.revoked else f"made {key.created}"
            rate = "server's rate" if key.rate is None else f"{key.rate}/min"
            print(f"{key.id}  {key.name}  {rate}  {'admin' if key.admin else 'user'}  {state}")
    return 0


def _data(args: argparse.Namespace) -> int:
    if args.action == "download":
        from fintune.data.download import download

        return 1 if download(args.dataset, Path(args.data_dir), print) else 0
    if args.action == "list":
        from fintune.data.sources import list_datasets

        list_datasets(args.data_dir)
    elif args.action == "mix":
        from fintune.data.mix import show

        show(_recipe(args))
    elif args.action == "report":
        from fintune.data.report import report

        report(_recipe(args), Path(args.output_dir))
    elif args.action == "decontaminate":
        from fintune.data.decontaminate import decontaminate

        decontaminate(args.file, args.output_file, _recipe(args), task=args.task, threshold=args.threshold)
    elif args.action == "from-feedback":
        from fintune.monitoring.commands import from_feedback

        from_feedback(args.store, args.task, args.output_file, everything=args.all)
    else:
        from fintune.data.datasets import prepare

        mapper = None
        if args.ray:
            from fintune.cluster import ray_map

            mapper = functools.partial(ray_map, workers=args.workers, address=args.ray)
        recipe = _recipe(args)
        prepared = prepare(recipe, force=args.force, workers=args.workers, mapper=mapper)
        if args.strict:
            from fintune.data.report import refuse_leaks

            refuse_leaks(prepared, recipe)
        print(f"Prepared data: {prepared.folder}")
        if args.copy_to:
            print(f"Copied {prepared.copy_to(args.copy_to):,} records to {args.copy_to}")
    return 0


def _monitor(args: argparse.Namespace) -> int:
    from fintune.monitoring import commands

    if args.action == "feedback":
        commands.show_feedback(args.store, args.forget)
        return 0
    model_path = _adapter(args.model_path)
    if model_path is None:
        raise DataError("The untuned base model has no profile: name an adapter with --model_path.")
    if args.action == "drift":
        status = commands.show_drift(model_path, args.store, args.output_file)
        return 2 if args.strict and status == "drift" else 0
    from fintune.data.datasets import prepare
    from fintune.inference.engine import Engine
    from fintune.monitoring.profile import make_profile

    recipe = _trained_recipe(model_path, args)
    prepared = prepare(recipe)
    profile = make_profile(Engine.load(model_path, recipe), prepared, args.split, args.max)
    print(f"Reference profile: {profile.save(model_path)}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from fintune.doctor import run

    return run()


# Running one ----------------------------------------------------------------------------------------


def _underscored(arguments: Sequence[str]) -> Iterator[str]:
    """Let `--output-dir` mean `--output_dir`: flags are known by underscores, and both are typed."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        yield name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _quiet() -> None:
    """Keep libraries' notices off the console, where they would drown what matters."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s", handlers=[console])


def entry(*command: str) -> int:
    """Run `command` and the process's own arguments: what the program and the scripts start with."""
    arguments = [*command, *sys.argv[1:]]
    if arguments and arguments[0] in COMPUTING and not {"-h", "--help"} & set(arguments):
        use_mimalloc()
    return main(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code: 0, 1 for a mistake that one sentence explains, 130 for Ctrl-C."""
    args = _parser().parse_args(list(_underscored(arguments)))
    _quiet()
    try:
        return int(args.run(args))
    except FintuneError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("\nInterrupted. What was saved so far is whole.", file=sys.stderr)
        return 130
    except Exception as error:
        known = _explained(error)
        if known is None:
            raise
        message = known
    print(f"fintune: {message}", file=sys.stderr)
    return 1


def _explained(error: Exception) -> str | None:
    """A sentence for what libraries raise when the machine, not the program, is at fault; else None."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("fintune"):
        return f"The package {error.name} is not installed: run  make setup  (or pip install -e .)"
    # safetensors and torch.save wrap the system's error in their own.
    wrapped = ("No space left", "os error 28", "file write failed", "iostream error")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in wrapped):
        return f"The disk is full ({text}). What was there before is whole: free some space and run again."
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return f"Could not write ({text}): choose another place, or change its permissions."
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The GPU's memory is full. Lower training.row_tokens or training.per_device_train_batch_size, "
            "or set training.gradient_checkpointing: true (none of the three changes the loss), "
            "or base_model.load_in_4bit: true."
        )
    return None


if __name__ == "__main__":
    raise SystemExit(entry())
