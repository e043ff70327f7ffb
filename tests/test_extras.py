"""The command that installs an optional part names what pip finds."""

import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fintune.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
LINES = [
    "torch>=2.6",
    "nothing-of-the-kind[data]>=3,<4; extra == 'ray'",
    "pytest>=8; extra == 'ray'",
    "pytest>=9999; extra == 'new'",
]


@pytest.mark.parametrize(
    "extra, packages",
    [("ray", ["nothing-of-the-kind[data]<4,>=3"]), ("new", ["pytest>=9999"])],
)
def test_what_is_missing_or_too_old_is_installed_by_name(monkeypatch, extra, packages):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: LINES)
    said = str(MissingExtraError("It", extra))
    assert said.startswith("It needs an optional part: run  pip install ")
    assert shlex.split(said.split("run  ")[1])[2:] == packages


def test_every_extra_that_the_program_names_is_one_of_the_package():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(Requirement(line) for lines in extras.values() for line in lines)
    text = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = re.findall(r"""(?:MissingExtraError\([^)]*, |install_command\()["'](\w+)["']\)""", text)
    assert len(named) > 10 and set(named) <= set(extras)
