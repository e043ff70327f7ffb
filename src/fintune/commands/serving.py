"""`fintune demo`, `live`, `serve`, `keys` and `monitor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.commands.common import (
    Command,
    action,
    adapter_of,
    address_flags,
    backend_flag,
    count,
    former,
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

KEYS_HELP = "file of API keys (default: FINTUNE_KEYS, else ~/.config/fintune/keys.json)"


def _demo_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    address_flags(command, 7860)
    command.add_argument(
        "--live_dir",
        default="output/live",
        metavar="DIR",
        help="folder that fintune live writes to (default: output/live)",
    )


def _live_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        nargs="?",
        choices=("run", "score"),
        default="run",
        help="run: answer news as it comes (default); score: compare answers with what prices did then",
    )
    command.add_argument(
        "--feed", action="append", metavar="URL", help="RSS, Atom or JSON feed; can be repeated"
    )
    command.add_argument(
        "--yahoo", metavar="SYMBOLS", help="stocks to read Yahoo Finance's news on, such as AAPL,MSFT"
    )
    command.add_argument(
        "--config", metavar="YAML", help="settings, such as configs/live.yaml; flags override them"
    )
    command.add_argument(
        "--tasks", metavar="TASKS", help="tasks to answer, with commas (default: headline,sentiment)"
    )
    model_path_flag(command)
    command.add_argument("--output_dir", metavar="DIR", help="folder for the answers (default: output/live)")
    former(command, "--output_dir", "--output")
    command.add_argument(
        "--interval", type=float, metavar="S", help="seconds between two polls (default: 300)"
    )
    command.add_argument("--once", action="store_true", help="poll each source once and end")
    command.add_argument("--webhook", metavar="URL", help="address that gets the alerts, signed")
    command.add_argument(
        "--allow_network",
        action="append",
        metavar="CIDR",
        help="private network in which feeds and webhook may be, such as 127.0.0.0/8; can be repeated",
    )
    command.add_argument(
        "--prices",
        metavar="DIR",
        help="for score: folder of SYMBOL.csv files with prices (default: ask Yahoo Finance)",
    )
    json_flag(command)


_LIMITS = (
    ("max_adapters", count, "N", "keep at most N adapters in memory (default: 4)"),
    (
        "rate",
        count,
        "N",
        "allow N requests a minute for each key, or each address without keys (default: no limit)",
    ),
    ("rate_records", count, "N", "allow N records a minute for each key or address (default: no limit)"),
    ("rate_tokens", count, "N", "allow N tokens a minute for each key or address (default: no limit)"),
    ("max_batch", count, "N", "compute at most N records together (default: 32)"),
    (
        "max_batch_tokens",
        count,
        "N",
        "compute at most N tokens together, not counting a task's common beginning (default: 4096)",
    ),
    (
        "max_text_tokens",
        count,
        "N",
        "hold at most N tokens of the texts being written, prompts and answers (default: 16,384)",
    ),
    ("max_queue", count, "N", "let at most N records wait; further ones are refused (default: 512)"),
    ("timeout", seconds, "S", "give up a request after S seconds (default: 60)"),
    (
        "max_step",
        seconds,
        "S",
        "end the server if one step of the model takes S seconds, so that it can be restarted (default: 600)",
    ),
    ("slow", seconds, "S", "give a client S seconds to send its request (default: 10)"),
    ("max_body", count, "BYTES", "refuse requests larger than this (default: 1,000,000)"),
    (
        "max_document",
        count,
        "BYTES",
        "refuse requests with a document larger than this; base64 makes it a third larger "
        "(default: 16,000,000)",
    ),
    ("max_tokens", count, "N", "write at most N tokens for a request (default: 512)"),
)
"""Fields of `Settings` that have a flag of their name: how it is read, its unit, and what the help says."""


def _serve_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    backend_flag(command)
    address_flags(command, 8000, "; 0 is any free one")
    command.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="DIR",
        help="further adapters that requests may name, or folders that hold some",
    )
    command.add_argument("--keys", metavar="FILE", help=KEYS_HELP)
    command.add_argument("--insecure", action="store_true", help="require no key, even on a public address")
    command.add_argument(
        "--max_wait_ms",
        type=float,
        default=5,
        metavar="MS",
        help="wait so long for further records to compute together (default: 5)",
    )
    for name, kind, unit, text in _LIMITS:
        default = getattr(Settings, name)
        command.add_argument(f"--{name}", type=kind, default=default, metavar=unit, help=text)
    command.add_argument(
        "--cors", nargs="+", default=[], metavar="ORIGIN", help="web origins whose pages may call the API"
    )
    command.add_argument("--log_text", action="store_true", help="log the texts of requests, too")


def _keys_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    create = action(actions, "create", "create a key and print it; it is shown this once")
    create.add_argument("--name", required=True, metavar="NAME", help="name of the person or program")
    for flag, what in (("rate", "requests"), ("rate_records", "records"), ("rate_tokens", "tokens")):
        text = f"allow N {what} a minute (default: the server's limit)"
        create.add_argument(f"--{flag}", type=count, metavar="N", help=text)
    create.add_argument("--admin", action="store_true", help="allow to load and unload adapters")
    create.add_argument("--metrics", action="store_true", help="allow to read /metrics, and nothing else")
    listing = action(actions, "list", "list the keys, without their secrets")
    revoke = action(actions, "revoke", "revoke a key; running servers refuse it, too")
    revoke.add_argument("key", metavar="KEY", help="id or name of the key")
    for each in (create, listing, revoke):
        each.add_argument("--keys", metavar="FILE", help=KEYS_HELP)
    json_flag(listing)


def _monitor_flags(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    profile = action(
        actions, "profile", "describe an adapter's inputs and answers on held-out data, as the reference"
    )
    model_path_flag(profile, "folder of the adapter (default: the newest under output/)")
    profile.add_argument(
        "--split", choices=("validation", "test"), default="test", help="held-out data to use (default: test)"
    )
    profile.add_argument("--max_test", type=count, metavar="N", help="use at most N examples of each task")
    former(profile, "--max_test", "--max")
    recipe_flags(profile)
    drift = action(actions, "drift", "compare the newest answers of a server with the reference")
    model_path_flag(drift, "folder of the adapter, with its profile.json (default: the newest under output/)")
    drift.add_argument(
        "--output_file",
        metavar="FILE",
        help="write the report to a .json, .md or .html file, not the terminal",
    )
    drift.add_argument("--strict", action="store_true", help="exit with 1 if there is drift")
    store_flag(drift)
    feedback = action(actions, "feedback", "show how many answers were right, by users' feedback")
    feedback.add_argument(
        "--forget", type=count, metavar="DAYS", help="first delete predictions older than DAYS days"
    )
    store_flag(feedback)
    for each in (drift, feedback):
        json_flag(each)


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
        "output": args.output_dir,
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

    output = load_live_config(args.config, changes).output if args.config else args.output_dir
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
        public = "id name created revoked rate rate_records rate_tokens admin metrics".split()
        listed = [{field: getattr(key, field) for field in public} for key in found]
        shown(args, {"file": path, "keys": listed}, lambda: _print_keys(found))
    return 0


def _print_keys(found: Iterable[Key]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "limits", "kind", "state", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in found:
        state = f"revoked {key.revoked[:10]}" if key.revoked else f"made {key.created[:10]}"
        limits = {"": key.rate, " records": key.rate_records, " tokens": key.rate_tokens}
        set_ = [f"{limit}{what}/min" for what, limit in limits.items() if limit is not None]
        rate = ", ".join(set_) or "server's rate"
        kind = "admin" if key.admin else "metrics" if key.metrics else "user"
        table.add_row(key.id, key.name, rate, kind, state)
    Console(highlight=False).print(table)


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
    profile = make_profile(Engine.load(model_path, recipe), prepared, args.split, args.max_test)
    print(f"Reference profile: {profile.save(model_path)}")
    return 0


COMMANDS = (
    Command("demo", "open a web page to try every task", _demo, _demo_flags),
    Command("live", "answer headlines as they come, from feeds and Yahoo Finance", _live, _live_flags),
    Command("serve", "serve the tasks and OpenAI's API over HTTP", _serve, _serve_flags),
    Command("keys", "create, list and revoke the server's API keys", _keys, _keys_flags),
    Command("monitor", "measure drift of live answers, and show feedback on them", _monitor, _monitor_flags),
)
