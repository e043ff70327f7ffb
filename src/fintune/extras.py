"""Optional parts: the packages each one needs, and the command that installs them."""

from __future__ import annotations

import importlib.metadata
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def install_command(extra: str) -> str:
    """`pip install` with the extra's packages that are missing or too old, or with all of them.

    It names the packages instead of `fintune[extra]`, because fintune is on no package index.
    """
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("fintune") or ()]
    except importlib.metadata.PackageNotFoundError:  # run from source, not installed
        return f"pip install -e '.[{extra}]'  in fintune's folder"
    parts = []
    for each in wanted:
        if each.marker and each.marker.evaluate({"extra": extra}) and not each.marker.evaluate({"extra": ""}):
            each.marker = None  # so that `str` gives only name, extras and versions
            parts.append(each)
    missing = [each for each in parts if not fits(each)]
    return shlex.join(["pip", "install", *map(str, missing or parts)])


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def fits(requirement: Requirement) -> bool:
    """Whether the package is installed and new enough."""
    found = version(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
