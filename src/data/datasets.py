"""The guide's import path of `fintune.data.datasets`, from the repository root, installed or not."""

import sys
from pathlib import Path

_SRC = str(Path(__file__).resolve().parents[1])
if _SRC not in sys.path:
    sys.path.append(_SRC)

from fintune.data.datasets import *  # noqa: E402, F403
from fintune.data.datasets import test_data_loading  # noqa: E402, F401
