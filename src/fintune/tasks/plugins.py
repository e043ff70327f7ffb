"""The Python modules that a recipe names under `plugins:`, imported from where their author expects it.

A module is looked for among the installed ones, then in the recipe's own folder, then in the working folder.
`sys.path` stays as it is: from those two folders nothing can be imported that no recipe has named.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from fintune.errors import ConfigError

_places: dict[str, list[str]] = {}
"""Top-level module or package that a recipe named → the folders it may come from, in order."""


class _Finder:
    """Finds what `_places` lists; last in `sys.meta_path`, so that installed packages come first."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, _places[name]) if path is None and name in _places else None


def places() -> dict[str, list[str]]:
    """What `allow` makes importable in another process that is to unpickle a plug-in's objects."""
    return dict(_places)


def allow(more: Mapping[str, Sequence[str]]) -> None:
    """Let top-level modules be imported from folders that are not on `sys.path`."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
    _places.update({name: list(folders) for name, folders in more.items()})


def import_plugins(modules: Sequence[str], recipe_dir: str | None) -> None:
    """Import modules by name, each of which registers its tasks.

    Args:
        recipe_dir: the folder of the recipe that names them; None leaves the working folder alone.

    Raises:
        ConfigError: a module is not found, fails when it is imported, or has the name of another module.
    """
    folders = [str(Path(folder).resolve()) for folder in (recipe_dir, ".") if folder is not None]
    allow({module.partition(".")[0]: folders for module in modules})
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a plug-in may raise anything
            searched = ", ".join(["the installed packages", *dict.fromkeys(folders)])
            more = f" (searched: {searched})" if isinstance(error, ModuleNotFoundError) else ""
            raise ConfigError(
                f"plugins names the module {module!r}, which cannot be imported: {error}{more}"
            ) from error
        _refuse_namesake(module.partition(".")[0], folders)


def _refuse_namesake(name: str, folders: list[str]) -> None:
    """Raise a ConfigError where a file of the user's is not what was imported under its name."""
    ours, imported = PathFinder.find_spec(name, folders), getattr(sys.modules[name], "__file__", None)
    if ours is not None and ours.origin and (not imported or not Path(ours.origin).samefile(imported)):
        raise ConfigError(
            f"plugins names the module {name!r}, but {ours.origin} has the name of another module "
            f"({imported or 'built into Python'}): rename the file, and name it so."
        )
