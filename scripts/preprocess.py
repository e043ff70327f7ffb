"""Prepare the datasets of a recipe: the same as `fintune data prepare`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "src")
    from fintune.cli import entry

    raise SystemExit(entry("data", "prepare"))
