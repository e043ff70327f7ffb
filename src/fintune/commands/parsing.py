"""The parser of every command: a mistake is one sentence with the nearest right word, and exit code 2."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from fintune.errors import hint

FLAG_ALIASES = {
    "adapter": "model_path",
    "checkpoint": "resume_from_checkpoint",
    "model_name_or_path": "model_path",
    "num_proc": "workers",
    "outdir": "output_dir",
    "recipe": "config",
    "report_to": "use_wandb",
    "wandb": "use_wandb",
    "yaml": "config",
}
"""What other programs call a flag → what it is called here; a command may lack it."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help in which a long name of a command and its text stand on one line."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2  # their indentation, which argparse leaves out


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors say what was probably meant; parsers of its commands are such, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, but a command without actions of its own refuses what it does not know.

        An unknown flag comes first, before a missing one: it is most likely that one, misspelt.
        """
        if args is not None:
            self._refuse_unknown_flags(list(args))
        found, rest = super().parse_known_args(args, namespace)
        if rest and self._subparsers is None:
            self.error(f"there is no place for {rest[0]!r} here")
        return found, rest

    def _refuse_unknown_flags(self, args: list[str]) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for place, argument in enumerate(args):
            name, equals, value = argument.partition("=")
            if name == "--" or (self._subparsers and not name.startswith("-")):
                return  # what follows are values, or belongs to an action's own parser
            if not name.startswith("--") or " " in name or any(flag.startswith(name) for flag in known):
                continue
            if not equals and place + 1 < len(args) and not args[place + 1].startswith("-"):
                value = args[place + 1]
            self.error(f"there is no flag {name}{self._meant(name[2:], value, known)}")

    def _meant(self, name: str, value: str, flags: list[str]) -> str:
        """The end of a sentence on an unknown flag: a flag of this command, or a key of the recipe."""
        alias = f"--{FLAG_ALIASES.get(name, '')}"
        if alias in flags:
            return f"; did you mean {alias}?"
        near = difflib.get_close_matches(name, [flag[2:] for flag in flags], n=1)
        if "--set" in flags:
            from fintune.recipes import key_meant

            if key := key_meant(name, spelt_alike=not near):
                return f"; did you mean --set {key}={value or '…'}?"
        return f"; did you mean --{near[0]}?" if near else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "/".join(action.option_strings) or str(action.metavar or action.dest).lower()
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(None, f"there is no {what} {value!r}{hint(str(value), choices)}")

    def error(self, message: str) -> NoReturn:
        self.exit(
            2, f"{self.prog}: {message}{'' if message.endswith('?') else '.'} See  {self.prog} --help\n"
        )


def underscored(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--output-dir` as `--output_dir`: flags are known by underscores, both are typed."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    flags = (
        re.sub(r"(?<=^--)[\w-]+(?==|$)", lambda name: name[0].replace("-", "_"), argument)
        for argument in arguments[:end]
    )
    return [*flags, *arguments[end:]]
