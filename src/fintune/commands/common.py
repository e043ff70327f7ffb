"""What the commands share: the recipe's flags, the adapter that is meant, and `--json`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.errors import ConfigError, FintuneError

OUTPUT_DIR = "output/model"
MODEL_PATH_HELP = (
    "folder of an adapter, or of fintune export (default: the newest adapter under output/, else the "
    "untuned base model)"
)
STORE = "sqlite:///output/monitoring.db"


@dataclass(frozen=True)
class Command:
    """One word after `fintune`."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None


def json_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object on standard output, and all else on standard error",
    )


def former(command: argparse.ArgumentParser, flag: str, name: str) -> None:
    """Keep a flag's former name, which help does not show."""
    command._option_string_actions[name] = command._option_string_actions[flag]


def action(actions: Any, name: str, help: str) -> argparse.ArgumentParser:
    """The parser of an action, such as `list` of `fintune data list`."""
    found: argparse.ArgumentParser = actions.add_parser(name, help=help, description=sentence(help))
    return found


def sentence(help: str) -> str:
    return f"{help[0].upper()}{help[1:]}."


@contextlib.contextmanager
def apart(args: argparse.Namespace) -> Iterator[None]:
    """With `--json` keep standard output for `shown`: what else is printed goes to standard error."""
    args.stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if getattr(args, "json", False) else contextlib.nullcontext():
        yield


def shown(args: argparse.Namespace, value: Any, show: Callable[[], object] | None = None) -> None:
    """Show a command's result: by `show`, or with `--json` as JSON alone."""
    if getattr(args, "json", False):
        args.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        args.stdout.flush()
    elif show:
        show()


def plain(value: Any) -> Any:
    """A value as JSON has it: objects by field, numbers as numbers, and null for NaN and infinity."""
    from pydantic_core import to_json

    def other(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else str(value)  # the first are NumPy's

    return json.loads(to_json(value, inf_nan_mode="null", fallback=other))


def recipe_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        metavar="YAML",
        help="recipe file, or an adapter's folder to take its recipe (default: configs/default.yaml)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the recipe, such as training.learning_rate=1e-4; can be repeated",
    )
    data_dir_flag(command)
    trust_flag(command)
    command.add_argument(
        "--debug", action="store_true", help="use very little data and few steps, to try everything"
    )


def data_dir_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder of public datasets to search first, before FINTUNE_DATA_DIR and data/raw",
    )


def backend_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--backend",
        metavar="NAME",
        default="builtin",
        help="library that runs the model: builtin, vllm, llama.cpp (for a folder of fintune export "
        "--format gguf), or one that another package adds (default: builtin)",
    )


def _above_0(kind: Callable[[str], Any], text: str, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be {what}, got {text}")
    return value


def count(text: str) -> int:
    return int(_above_0(int, text, "a whole number of at least 1"))


def seconds(text: str) -> float:
    return float(_above_0(float, text, "a number of seconds above 0"))


class Pairs(argparse.Action):
    """Reads `text=Headline question=Q` as a dict."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: Any = None) -> None:
        pairs = [value.partition("=") for value in values]
        if wrong := [field for field, equals, column in pairs if not (field and equals and column)]:
            parser.error(f"{flag} takes FIELD=COLUMN, such as text=Headline, got {wrong[0]}")
        setattr(namespace, self.dest, {field: column for field, _, column in pairs})


def recipe_of(args: argparse.Namespace) -> Any:
    from fintune.models import manifest
    from fintune.recipes import default_recipe_path, load_recipe

    if args.config and Path(args.config).is_dir():
        recipe = _recipe_in(Path(args.config), overrides(args))
        if recipe is None:
            raise ConfigError(
                f"--config is the folder {args.config}, which has no {manifest.NAME} with a recipe."
            )
    else:
        recipe = load_recipe(args.config or default_recipe_path(), overrides(args))
    return _debugged(recipe, args) if args.debug else recipe


def _debugged(recipe: Any, args: argparse.Namespace) -> Any:
    """The recipe at `--debug`'s small scale; what `--set` says comes last, and so holds."""
    from fintune.recipes import recipe_from

    small = recipe.debugged()
    if not (changes := overrides(args)):
        return small
    changed = recipe_from(small.model_dump(exclude_unset=True), changes, "--debug")
    return changed.read_from(recipe.plugin_folder)


def _recipe_in(folder: Path, changes: list[str]) -> Any:
    """The recipe that a folder's adapter was trained by, or None; what fitted its data is to fit again."""
    from fintune.models import manifest
    from fintune.recipes import recipe_from
    from fintune.tasks import plugins

    if not (trained := manifest.asked(manifest.read_raw(folder))):
        return None
    recipe = recipe_from(trained, changes, f"{folder}/{manifest.NAME}")
    plugins.check_trusted(recipe.plugins, str(folder))
    return recipe


def overrides(args: argparse.Namespace) -> list[str]:
    commercial = ["data.commercial_only=true"] if getattr(args, "commercial_only", False) else []
    return [*args.set, *([f"data.dir={args.data_dir}"] if args.data_dir else []), *commercial]


def adapter_of(model_path: str | None) -> str | Path | None:
    """The adapter given, else the newest under output/, else None: the untuned base, and it says so."""
    from fintune.models.source import newest_adapter

    if model_path:
        return model_path
    try:
        return newest_adapter()
    except FintuneError:
        print("There is no adapter under output/: the untuned base model answers.", file=sys.stderr)
        return None


def trained_recipe(model_path: str | Path | None, args: argparse.Namespace) -> Any:
    """The recipe that an adapter, or what was exported of it, was trained by, unless another one is given."""
    from fintune.models.source import check_model

    trained = None
    if model_path and not args.config:
        trained = _recipe_in(check_model(model_path), overrides(args))
    if trained is None:
        return recipe_of(args)
    return _debugged(trained, args) if args.debug else trained


def model_path_flag(command: argparse.ArgumentParser, help: str = MODEL_PATH_HELP) -> None:
    command.add_argument("--model_path", metavar="DIR", help=help)
    trust_flag(command)


def trust_flag(command: argparse.ArgumentParser) -> None:
    with contextlib.suppress(argparse.ArgumentError):  # it is there: the command has a recipe and a model
        command.add_argument(
            "--trust_plugins",
            action="store_true",
            help="import the Python modules that an adapter lists under plugins; this runs their code",
        )


def address_flags(command: argparse.ArgumentParser, port: int, more: str = "") -> None:
    """`--port` and `--host`; `more` is what the help says of the port besides its default."""
    command.add_argument(
        "--port", type=int, default=port, metavar="N", help=f"port to listen on{more} (default: {port})"
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    command.add_argument(
        "--allow_host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="further host names that requests may use, such as that of a proxy in front",
    )


def store_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store",
        default=os.environ.get("FINTUNE_STORE", STORE),
        metavar="URL",
        help=f"database of predictions, sqlite:/// or postgresql:// (default: FINTUNE_STORE, else {STORE})",
    )
