"""Fetch the public datasets: the same as `fintune data download`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "src")
    from fintune.cli import entry

    raise SystemExit(entry("data", "download"))
