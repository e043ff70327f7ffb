"""Import the Python modules that a recipe names under `plugins:`, from the places its author expects.

Modules are searched among the installed packages; for a recipe file, also in its folder and the working
folder; and in the folders listed in the environment variable FINTUNE_PLUGINS. `sys.path` is not changed, so
only modules that a recipe names can be imported from such a folder. An adapter, which may come from someone
else, names modules too: they are imported only if the user trusts them (`--trust_plugins`, or a recipe of the
user's with the same names), and code beside the adapter is never run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from fintune.errors import ConfigError

VARIABLE = "FINTUNE_PLUGINS"
"""Environment variable: folders to search for plug-ins, as in PATH."""

_places: dict[str, list[str]] = {}
"""Top-level module or package named by a recipe → the folders to search, in order."""


_trusted: set[str] = set()
"""Modules that an adapter may name."""
_trust_all = False


def trust(modules: Sequence[str] | None = None) -> None:
    """Let adapters name these modules; None allows any."""
    global _trust_all
    _trust_all = _trust_all or modules is None
    _trusted.update(modules or ())


def check_trusted(modules: Sequence[str], adapter: str) -> None:
    """Raise a ConfigError if an adapter names a module that the user has not trusted."""
    if not _trust_all and (named := [module for module in modules if module not in _trusted]):
        raise ConfigError(
            f"The adapter at {adapter} names the plug-ins {', '.join(map(repr, named))}, and a plug-in is "
            "code that runs here: pass --trust_plugins if you trust the adapter's author."
        )


class _Finder:
    """Finds the modules in `_places`; last in `sys.meta_path`, so that installed packages come first."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, _places[name]) if path is None and name in _places else None


def places() -> dict[str, list[str]]:
    """What to pass to `allow` in another process that unpickles a plug-in's objects."""
    return dict(_places)


def allow(more: Mapping[str, Sequence[str]]) -> None:
    """Allow top-level modules to be imported from folders that are not on `sys.path`."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
    _places.update({name: list(folders) for name, folders in more.items()})


def import_plugins(modules: Sequence[str], recipe_folder: str | None) -> None:
    """Import modules by name; each registers its tasks.

    Args:
        recipe_folder: the folder of the user's recipe that names them; None if an adapter names them.

    Raises:
        ConfigError: a module is not found, fails on import, or shares its name with another module.
    """
    listed = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    own = () if recipe_folder is None else (recipe_folder, ".")
    folders = list(dict.fromkeys(str(Path(folder).resolve()) for folder in (*own, *listed)))
    allow({module.partition(".")[0]: folders for module in modules})
    if recipe_folder is not None:
        trust(modules)  # the user's own: adapters trained with this recipe may name them too
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a plug-in may raise anything
            where = ", ".join(["the installed packages", *folders])
            more = f" (searched: {where}): set {VARIABLE} to its folder, if you trust it"
            raise ConfigError(
                f"plugins names the module {module!r}, which cannot be imported: {error}"
                + (more if isinstance(error, ModuleNotFoundError) else "")
            ) from error
        _refuse_namesake(module.partition(".")[0], folders)


def _refuse_namesake(name: str, folders: list[str]) -> None:
    """Raise a ConfigError if importing a name did not give the user's file of that name."""
    ours, imported = PathFinder.find_spec(name, folders), getattr(sys.modules[name], "__file__", None)
    if ours is not None and ours.origin and (not imported or not Path(ours.origin).samefile(imported)):
        raise ConfigError(
            f"plugins names the module {name!r}, but {ours.origin} has the name of another module "
            f"({imported or 'built into Python'}): rename the file, and change plugins to the new name."
        )
