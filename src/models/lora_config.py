"""The guide's import path of `fintune.models.adapters`, from the repository root, installed or not."""

import sys
from pathlib import Path

_SRC = str(Path(__file__).resolve().parents[1])
if _SRC not in sys.path:
    sys.path.append(_SRC)

from fintune.models.adapters import *  # noqa: E402, F403
from fintune.models.adapters import test_model_loading  # noqa: E402, F401
