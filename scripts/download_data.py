"""Fetch the public datasets: the same as `fintune data download`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "src")
    from fintune.cli import main

    raise SystemExit(main(["data", "download", *sys.argv[1:]]))
