"""`fintune runs`: what stands in output/, compared, and cleaned up without losing what nobody named."""

import json
import os

import pytest

from fintune.cli import main
from fintune.config import Recipe
from fintune.files import Lock


@pytest.fixture
def make_run(workdir):
    """A function: a name, its checkpoints' steps, whether it has an adapter → its folder, without weights."""

    def make(name, steps=(4, 8), adapter=True, accuracy=0.75, **training):
        folder = workdir / "output" / name
        facts = {
            "base_model": "smollm2-135m-instruct",
            "optimizer_steps": 8,
            "training": {"seconds": 100.0},
            "kept": {"step": 8},
            "validation": {"eval_sentiment_accuracy": accuracy, "eval_loss": 0.1},
            "recipe": Recipe.model_validate({"training": training}).model_dump(),
            "tasks": [{"name": "sentiment", "type": "classification"}],
        }
        for at, step in enumerate(steps):
            checkpoint = folder / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "fintune.json").write_text(json.dumps(facts))
            (checkpoint / "optimizer.pt").write_bytes(b"x" * 1000)
            os.utime(checkpoint, (1000 + at, 1000 + at))
        if adapter:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "fintune.json").write_text(json.dumps(facts))
            (folder / "adapter_model.safetensors").write_bytes(b"x" * 500)
            os.utime(folder / "adapter_model.safetensors", (2000, 2000))
        return folder

    return make


def runs(capsys, *arguments, code=0):
    assert main(["runs", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_runs_are_listed_with_their_figures_size_and_whether_they_are_complete(capsys, make_run):
    make_run("good", accuracy=0.9)
    make_run("bad", accuracy=0.5)
    make_run("half", adapter=False, steps=(4,))
    damaged = make_run("damaged", steps=())
    (damaged / "fintune.json").write_text("{")
    listed = {run["folder"].rpartition("/")[2]: run for run in runs(capsys, "--sort", "sentiment")["runs"]}
    assert list(listed)[:2] == ["good", "bad"]
    good, half = listed["good"], listed["half"]
    assert (good["state"], good["split"], good["figures"][0]["value"]) == ("complete", "validation", 0.9)
    assert good["checkpoint_bytes"] == 2 * (1000 + (damaged.parent / "good" / "fintune.json").stat().st_size)
    assert (half["state"], half["has_adapter"], half["step"], half["steps"]) == ("unfinished", False, 4, 8)
    assert listed["damaged"]["base_model"] is None and listed["damaged"]["tasks"] == []
    other = {"base_model": 1, "kept": None, "training": [], "tasks": [{}, 1], "recipe": "x", "validation": 2}
    (damaged / "fintune.json").write_text(json.dumps(other))
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "unfinished, step 4 of 8" in shown and "sentiment accuracy 0.900 (validation)" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_two_runs_are_compared_by_what_differs_in_their_recipes(capsys, make_run):
    make_run("a", learning_rate=0.001)
    make_run("b", learning_rate=0.002, accuracy=0.8)
    found = runs(capsys, "a", "output/b")
    assert found["recipe_differences"] == {"training.learning_rate": [0.001, 0.002]}
    assert main(["runs", "a", "b"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "training.learning_rate 0.001 0.002" in shown and "sentiment accuracy 0.750 0.800" in shown
    assert main(["runs", "a", "absent"]) == 2 and "There is no run absent" in capsys.readouterr().err


def test_cleaning_shows_first_and_then_removes_the_checkpoints_of_finished_runs_alone(capsys, make_run):
    done, half = make_run("done"), make_run("half", adapter=False)
    again = make_run("again")  # an adapter that a newer, unfinished run was to replace
    os.utime(again / "checkpoint-8", (3000, 3000))
    busy = make_run("busy")
    lock = Lock(busy, "lock")
    assert lock.take()

    def left():
        return {str(path.relative_to(done.parent)) for path in done.parent.rglob("*") if path.is_file()}

    before = left()
    found = runs(capsys, "clean")
    assert not found["removed"] and left() == before
    assert {folder["path"] for folder in found["folders"]} == {
        "output/done/checkpoint-4",
        "output/done/checkpoint-8",
    }
    assert main(["runs", "clean", "--yes"]) == 0
    assert "Left alone: output/busy" in capsys.readouterr().out
    assert not list(done.glob("checkpoint-*")) and (done / "adapter_model.safetensors").is_file()
    assert all(len(list(run.glob("checkpoint-*"))) == 2 for run in (half, again, busy))
    runs(capsys, "clean", "--unfinished", "--yes")
    assert not [*half.glob("checkpoint-*"), *again.glob("checkpoint-*")]
    assert (again / "adapter_model.safetensors").is_file() and len(list(busy.glob("checkpoint-*"))) == 2
    lock.release()


def test_an_adapter_goes_only_when_it_is_named(capsys, make_run, workdir):
    kept, gone = make_run("kept"), make_run("gone")
    assert main(["runs", "clean", "--whole", "--yes"]) == 2
    make_run("gone/inner")
    assert main(["runs", "clean", "gone", "--whole", "--yes"]) == 2
    assert "holds another run" in capsys.readouterr().err
    runs(capsys, "clean", "gone/inner", "--whole", "--yes")
    runs(capsys, "clean", "gone", "--whole", "--yes")
    assert kept.is_dir() and not gone.exists()
    assert main(["runs", "--yes"]) == 2 and "fintune runs clean" in capsys.readouterr().err


def test_no_run_is_no_error(capsys, workdir):
    assert main(["runs"]) == 0 and "train one with  fintune train" in capsys.readouterr().out
    assert runs(capsys)["runs"] == []
    assert main(["runs", "absent"]) == 2
