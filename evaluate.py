"""Evaluate an adapter on the test splits: the same as `fintune evaluate`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent / "src")
    from fintune.cli import entry

    raise SystemExit(entry("evaluate"))
