"""Run the complete pipeline: the same as `fintune run`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent / "src")
    from fintune.cli import entry

    raise SystemExit(entry("run"))
