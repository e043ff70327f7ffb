"""What an optional part consists of, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def install_command(extra: str) -> str:
    """`pip install` with the packages of the extra that are missing or too old, or with all of them.

    It names the packages and not `fintune[extra]`, which pip finds on no index.
    """
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("fintune") or ()]
    except importlib.metadata.PackageNotFoundError:  # run from its sources, without an installation
        return f"pip install -e '.[{extra}]'  in fintune's folder"
    parts = []
    for each in wanted:
        if each.marker and each.marker.evaluate({"extra": extra}) and not each.marker.evaluate({"extra": ""}):
            each.marker = None  # so that `str` is the name, its own extras and its versions
            parts.append(each)
    missing = [each for each in parts if not _is_there(each)]
    return shlex.join(["pip", "install", *map(str, missing or parts)])


def _is_there(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False
