"""`fintune completion`: what makes a shell complete commands, flags, files, tasks and the recipe's keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")
_FILES = ("BUNDLE", "FILE", "HTML", "JSON", "OUT", "PATH", "RESULTS", "RUN", "YAML")
_FOLDERS = ("ADAPTER", "DIR")


def flags(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Write the script to where the shell looks; a new shell then completes:\n"
        "  bash  ~/.local/share/bash-completion/completions/fintune\n"
        "  zsh   _fintune in a folder of $fpath\n"
        "  fish  ~/.config/fish/completions/fintune.fish"
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a shell."""
    import shtab

    from fintune.config import BUILT_IN_TASKS

    tasks = shtab.cmd(f"echo {' '.join(BUILT_IN_TASKS)}")
    keys = shtab.cmd(f"echo {' '.join(_keys())}")
    for action in _actions(parser):
        of = {"TASK": tasks, "KEY=VALUE": keys}
        of |= dict.fromkeys(_FILES, shtab.FILE) | dict.fromkeys(_FOLDERS, shtab.DIRECTORY)
        if isinstance(action.metavar, str) and action.metavar in of:
            action.complete = of[action.metavar]  # type: ignore[attr-defined]  # where shtab looks
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from _actions(below)


def _keys() -> list[str]:
    """The recipe's keys for `--set`."""
    from pydantic import BaseModel

    from fintune.config import Recipe

    found = []
    for section, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += [f"{section}.{name}" for name in kind.model_fields]
    return found
