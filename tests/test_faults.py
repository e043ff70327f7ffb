"""The fault benchmark in its short form: nothing that 64 clients were answered is lost or wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the API needs the serve extra")
pytest.importorskip("feedparser", reason="feeds need the live extra")

ROOT = Path(__file__).parent.parent
SHORT = "hostile_adapter locked_database slow_readers greedy_key killed_server".split()


def test_nothing_is_lost_or_wrong_while_all_around_a_server_fails(tmp_path):
    out = tmp_path / "faults.json"
    command = [
        sys.executable,
        ROOT / "benchmarks" / "faults.py",
        "--quick",
        "--json",
        out,
        "--faults",
        *SHORT,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["answered"] > 100 and found["lost"] == found["wrong"] == 0
    assert found["end_mib"] < found["begin_mib"] + 200
