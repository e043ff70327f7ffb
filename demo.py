"""Open the demo with a trained adapter: the same as `fintune demo`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent / "src")
    from fintune.cli import entry

    raise SystemExit(entry("demo"))
