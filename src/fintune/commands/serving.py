"""`fintune demo`, `live`, `serve`, `keys` and `monitor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.commands.common import (
    Command,
    adapter_of,
    address_flags,
    backend_flag,
    count,
    json_flag,
    model_path_flag,
    recipe_flags,
    seconds,
    shown,
    store_flag,
    trained_recipe,
)
from fintune.errors import FAILED, DataError
from fintune.serving.settings import Settings

if TYPE_CHECKING:
    from fintune.serving.keys import Key

KEYS_HELP = "the file of API keys (default: FINTUNE_KEYS, else ~/.config/fintune/keys.json)"


def _demo_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    address_flags(command, 7860)
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
    model_path_flag(command)
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
    json_flag(command)


_LIMITS = (
    ("max_adapters", count, "N", "in memory at once (default: 4)"),
    ("rate", count, "N", "requests a minute for each key, or address (default: any)"),
    ("rate_records", count, "N", "records a minute for each (default: any)"),
    ("rate_tokens", count, "N", "tokens a minute for each (default: any)"),
    ("max_batch", count, "N", "records computed together (default: 32)"),
    (
        "max_batch_tokens",
        count,
        "N",
        "tokens computed together, without what all of a task share (default: 4096)",
    ),
    (
        "max_text_tokens",
        count,
        "N",
        "tokens of the texts written at once, prompts and answers (default: 16,384)",
    ),
    ("max_queue", count, "N", "records that may wait (default: 512)"),
    ("timeout", seconds, "S", "of a request (default: 60)"),
    (
        "max_step",
        seconds,
        "S",
        "a step of the model may take before the server ends, to be started anew (default: 600)",
    ),
    ("slow", seconds, "S", "a client may take to send it (default: 10)"),
    ("max_body", count, "BYTES", "of a request (default: 1,000,000)"),
    (
        "max_document",
        count,
        "BYTES",
        "of a request with a document, which base64 makes a third larger (default: 16,000,000)",
    ),
    ("max_tokens", count, "N", "written for a request (default: 512)"),
)
"""Fields of `Settings` that have a flag of their name: how it is read, its unit, and what the help says."""


def _serve_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    backend_flag(command)
    address_flags(command, 8000, "; 0 takes a free one")
    command.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="DIR",
        help="adapters that requests may name, or folders that hold some",
    )
    command.add_argument("--keys", metavar="FILE", help=KEYS_HELP)
    command.add_argument("--insecure", action="store_true", help="ask for no key, even on a public address")
    command.add_argument(
        "--max_wait_ms", type=float, default=5, metavar="MS", help="wait for company so long (default: 5)"
    )
    for name, kind, unit, text in _LIMITS:
        default = getattr(Settings, name)
        command.add_argument(f"--{name}", type=kind, default=default, metavar=unit, help=text)
    command.add_argument(
        "--cors", nargs="+", default=[], metavar="ORIGIN", help="origins whose pages may call the API"
    )
    command.add_argument("--log_text", action="store_true", help="write the texts of requests to the log too")


def _keys_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--name", required=True, help="whose it is")
    create.add_argument("--rate", type=count, metavar="N", help="requests a minute (default: the server's)")
    create.add_argument("--rate_records", type=count, metavar="N", help="records a minute")
    create.add_argument("--rate_tokens", type=count, metavar="N", help="tokens a minute")
    create.add_argument("--admin", action="store_true", help="may load and unload adapters")
    create.add_argument("--metrics", action="store_true", help="may read /metrics, and nothing else")
    listing = actions.add_parser("list", help="the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="make a key good for nothing, on running servers too")
    revoke.add_argument("key", metavar="KEY", help="its id or its name")
    for action in (create, listing, revoke):
        action.add_argument("--keys", metavar="FILE", help=KEYS_HELP)
    json_flag(listing)


def _monitor_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    profile = actions.add_parser(
        "profile", help="the reference: an adapter's inputs and answers on test data"
    )
    model_path_flag(profile)
    profile.add_argument("--split", choices=("validation", "test"), default="test", help="(default: test)")
    profile.add_argument("--max", type=count, metavar="N", help="examples per task at most")
    recipe_flags(profile)
    drift = actions.add_parser("drift", help="the newest kept answers against the reference")
    model_path_flag(drift, "the adapter's folder, with its profile.json")
    drift.add_argument("--output_file", metavar="FILE", help="write it, as .json, .md or .html")
    drift.add_argument("--strict", action="store_true", help="exit with 1 where there is drift")
    store_flag(drift)
    feedback = actions.add_parser("feedback", help="how many answers were right, as feedback says")
    feedback.add_argument(
        "--forget", type=count, metavar="DAYS", help="delete the predictions older than this first"
    )
    store_flag(feedback)
    for action in (drift, feedback):
        json_flag(action)


def _demo(args: argparse.Namespace) -> int:
    from fintune.demo.app import launch

    launch(adapter_of(args.model_path), args.port, args.host, args.live_dir, args.allow_host)
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

    count = run_live(adapter_of(args.model_path), config, once=args.once)
    text = f"{count} new items; answers: {config.output}"
    shown(args, {"new_items": count, "output": config.output}, lambda: print(text))
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
    card = scorecard.score(output or LiveConfig().output, prices)
    shown(args, card, lambda: scorecard.show(card))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _serve(args: argparse.Namespace) -> int:
    from fintune.serving.server import serve

    serve(
        Settings(
            model_path=adapter_of(args.model_path),
            backend=args.backend,
            adapters=tuple(args.adapters),
            host=args.host,
            port=args.port,
            keys=Path(args.keys) if args.keys else None,
            insecure=args.insecure,
            max_wait=args.max_wait_ms / 1000,
            **{name: getattr(args, name) for name, *_ in _LIMITS},
            cors=tuple(args.cors),
            hosts=tuple(args.allow_host),
            log_text=args.log_text,
        )
    )
    return 0


def _keys(args: argparse.Namespace) -> int:
    from fintune.serving import keys

    path = Path(args.keys) if args.keys else keys.default_path()
    if args.action == "create":
        limits = {"rate": args.rate, "rate_records": args.rate_records, "rate_tokens": args.rate_tokens}
        print(keys.create(path, args.name, admin=args.admin, metrics=args.metrics, **limits))
        print(f"This key is shown once; {path} keeps a hash of it.", file=sys.stderr)
    elif args.action == "revoke":
        print(f"Revoked {keys.revoke(path, args.key).id}.")
    else:
        found = keys.load(path).values()
        public = (
            "id",
            "name",
            "created",
            "revoked",
            "rate",
            "rate_records",
            "rate_tokens",
            "admin",
            "metrics",
        )
        listed = [{field: getattr(key, field) for field in public} for key in found]
        shown(args, {"file": path, "keys": listed}, lambda: _print_keys(found))
    return 0


def _print_keys(found: Iterable[Key]) -> None:
    for key in found:
        state = f"revoked {key.revoked}" if key.revoked else f"made {key.created}"
        limits = {"": key.rate, " records": key.rate_records, " tokens": key.rate_tokens}
        set_ = [f"{limit}{what}/min" for what, limit in limits.items() if limit is not None]
        rate = ", ".join(set_) or "server's rate"
        kind = "admin" if key.admin else "metrics" if key.metrics else "user"
        print(f"{key.id}  {key.name}  {rate}  {kind}  {state}")


def _monitor(args: argparse.Namespace) -> int:
    from fintune.monitoring import commands

    if args.action == "feedback":
        scores = commands.feedback(args.store, args.forget)
        shown(args, {"tasks": scores}, lambda: commands.show_feedback(scores))
        return 0
    model_path = adapter_of(args.model_path)
    if model_path is None:
        raise DataError("The untuned base model has no profile: name an adapter with --model_path.")
    if args.action == "drift":
        report = commands.drift(model_path, args.store, args.output_file)
        shown(args, report, lambda: None if args.output_file else commands.show_drift(report))
        return FAILED if args.strict and report["status"] == "drift" else 0
    from fintune.data.prepare.dataset import prepare
    from fintune.inference.engine import Engine
    from fintune.monitoring.profile import make_profile

    recipe = trained_recipe(model_path, args)
    prepared = prepare(recipe)
    profile = make_profile(Engine.load(model_path, recipe), prepared, args.split, args.max)
    print(f"Reference profile: {profile.save(model_path)}")
    return 0


COMMANDS = (
    Command("demo", "open the demo, a page to try every task in a browser", _demo, _demo_flags),
    Command("live", "score headlines as they come, from feeds and Yahoo Finance", _live, _live_flags),
    Command("serve", "serve the tasks and OpenAI's API over HTTP", _serve, _serve_flags),
    Command("keys", "make, list and revoke the API keys of the server", _keys, _keys_flags),
    Command("monitor", "drift of live answers, and what feedback says of them", _monitor, _monitor_flags),
)
