"""The script for a GPU machine in its dry run: every path of it, in tiny shapes on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def test_a_dry_run_measures_every_cell_or_says_why_not(tmp_path):
    pytest.importorskip("bitsandbytes", reason="4 and 8 bit need the gpu extra")
    out = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    environment.pop("FINTUNE_DATA_DIR", None)
    kinds = ["check", "6.7 B", "8 B"]  # bases of other sizes are the same code
    command = [sys.executable, SCRIPT, "--tiny", "--json", out, "--only", *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cells = json.loads(out.read_text())["cells"]
    ours = {name: cell for name, cell in cells.items() if "trl" not in name and "vllm" not in name}
    assert len(ours) == 9 and not [cell for cell in ours.values() if "not_run" in cell]
    assert cells["check, fp32"]["exact"] and cells["check, fp32"]["gradient_error"] < 1e-4
    assert cells["check, bf16"]["exact"]
    for name in ("6.7 B, bf16", "6.7 B, 4 bit", "6.7 B, 8 bit"):
        assert cells[f"{name}, fintune"]["examples_per_second"] > 0
    told = [cell["not_run"] for cell in cells.values() if "not_run" in cell]
    assert all("not installed" in why or "No module" in why for why in told)
    assert "aten::mm" in (tmp_path / "gpu-profile-6.7b.txt").read_text()


def test_a_run_that_is_cut_tells_what_was_left(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, SCRIPT, "--minutes", "0", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "not measured" in done.stdout
    cells = json.loads(out.read_text())["cells"]
    assert cells and all(cell == {"not_run": "time"} for cell in cells.values())


def test_without_smollm2_texts_still_become_tokens(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", gpu)
    spec.loader.exec_module(gpu)
    monkeypatch.setattr("fintune.models.base.load_tokenizer", missing)
    texts = ["Revenue rose 8 percent to $4.1 million.", "Shares fell after the profit warning."]
    tokenizer, told = gpu._tokenizer(texts)
    from fintune.config import Recipe
    from fintune.prompts import PromptTemplate
    from fintune.tasks import Record, task_set

    prompt = PromptTemplate(tokenizer, 512).prompt_text(task_set(Recipe())["headline"], Record(text=texts[0]))
    assert prompt.startswith("<|im_start|>system\n") and texts[0] in prompt and "not installed" in told
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]


def missing(name):
    from fintune.errors import ModelError

    raise ModelError(f"{name} is not installed")
