"""Where the deployment files are, and how a tool that may be missing is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def deploy():
    """The folder of the deployment files."""
    return DEPLOY


@pytest.fixture
def tool():
    """A function: a tool's name and arguments → its output; skips where the tool is not installed."""

    def run(name, *arguments, cwd=DEPLOY):
        beside = Path(sys.executable).with_name(name)
        found = str(beside) if beside.exists() else shutil.which(name)
        if not found:
            pytest.skip(f"{name} is not installed")
        done = subprocess.run(
            [found, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
