"""The guide's import path of `fintune.data.prepare.dataset`, from the repository root, installed or not."""

import sys
from pathlib import Path

_SRC = str(Path(__file__).resolve().parents[1])
if _SRC not in sys.path:
    sys.path.append(_SRC)

from fintune.data.prepare.dataset import *  # noqa: E402, F403
from fintune.data.prepare.dataset import test_data_loading  # noqa: E402, F401
