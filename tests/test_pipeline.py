"""The main job on the real base model: `run_training.py --debug`, and a prediction with what it made."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fintune.allocator import library
from fintune.cli import main

ROOT = Path(__file__).parents[1]


def test_the_complete_pipeline_runs_from_the_guides_command_and_its_adapter_predicts(workdir, capsys):
    command = [sys.executable, str(ROOT / "run_training.py"), "--debug"]
    for setting in (
        "evaluation.base_model_max_test=1",
        "evaluation.max_validation=2",
        "evaluation.formats={summarization: {max_new_tokens: 8}, qa: {max_new_tokens: 8}}",
    ):
        command += ["--set", setting]
    environment = {k: v for k, v in os.environ.items() if k != "FINTUNE_DATA_DIR"}
    done = subprocess.run(command, cwd=workdir, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    output = done.stdout
    lines = output.splitlines()
    assert lines[0] == "This run uses the built-in sample (HF_HUB_OFFLINE is set)."  # by conftest.py
    assert lines[-1].startswith("Done in ") and "with the built-in sample" in lines[-1]
    assert "Test results on the built-in sample" in output
    assert "Adapter   output/model" in output
    results = json.loads((workdir / "output" / "model" / "results.json").read_text())
    expected = "mimalloc" if library() and not Path("/dev/nvidiactl").exists() else "system"
    assert results["machine"]["allocator"] == expected
    assert results["complete"] and len(results["tasks"]) == 5
    for task in results["tasks"].values():
        assert {"baseline", "base", "adapter"} <= set(task["systems"])
    assert all((workdir / "output" / "model" / f"results.{kind}").is_file() for kind in ("md", "html"))
    assert "On test examples" in (workdir / "output" / "model" / "README.md").read_text()
    lines = (workdir / "output" / "model" / "results-predictions.jsonl").read_text().splitlines()
    assert len(lines) == 5 * 8

    assert main(["predict", "--task", "sentiment", "Profit rose to $5 million."]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert "no adapter" not in said.err
    assert answer["prediction"] in {"positive", "negative", "neutral"}
