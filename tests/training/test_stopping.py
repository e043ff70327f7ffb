"""A run that ends early, by a signal, a full disk or a second run, loses nothing and says how it goes on."""

import errno
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fintune.errors import ConfigError, FintuneError, Interrupted
from fintune.files import Lock
from fintune.models.export import export
from fintune.training import stopping
from fintune.training.checkpoints import checkpoints
from fintune.training.run import train

ONE_TASK = {"task_weights": {"sentiment": 1}}


def same_weights(*folders):
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=0)


def test_ctrl_c_ends_a_run_after_its_step_and_says_the_command_that_goes_on(tiny_recipe, workdir):
    recipe = tiny_recipe(training={"max_steps": 60, "num_train_epochs": 60}, multi_task=ONE_TASK)
    (workdir / "my recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(exclude_unset=True)))
    flags = ["--config", "my recipe.yaml", "--output_dir", "out", "--overwrite"]
    command = [sys.executable, "-m", "fintune.cli", "train", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 3/60"):
            process.send_signal(signal.SIGINT)
            break
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    *_, checkpoint = checkpoints(workdir / "out")
    assert 3 <= int(checkpoint.name.rpartition("-")[2]) < 60
    assert f"Stopped. out/{checkpoint.name} is complete" in told and "Traceback" not in told
    printed = told.strip().splitlines()[-1].removeprefix("Go on with:  ")
    assert printed == "fintune train --config 'my recipe.yaml' --output_dir out --resume_from_checkpoint"


def test_a_run_that_sigterm_stopped_resumes_to_the_same_weights(tiny_recipe, workdir):
    recipe = tiny_recipe(training={"num_train_epochs": 8}, multi_task=ONE_TASK)

    def say(line):
        if line.startswith("step 2/4"):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"checkpoint-3 is complete") as told:
        train(recipe, workdir / "out", say=say, progress=False)
    assert (told.value.flag, told.value.number) == ("--resume_from_checkpoint", signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    train(recipe, workdir / "out", resume="latest", progress=False)
    train(recipe, workdir / "whole", progress=False)
    same_weights(workdir / "whole", workdir / "out")


def test_checkpoints_come_by_the_clock_too(tiny_recipe, workdir, monkeypatch):
    monkeypatch.setattr(stopping, "SHARE", 0)
    training = {"save_minutes": 1e-6, "save_total_limit": 9, "num_train_epochs": 8, "save_steps": 99}
    train(tiny_recipe(training=training, multi_task=ONE_TASK), workdir / "often", progress=False)
    assert [folder.name for folder in checkpoints(workdir / "often")] == [
        f"checkpoint-{i}" for i in (1, 2, 3, 4)
    ]
    train(tiny_recipe(training={"max_steps": 1}, multi_task=ONE_TASK), workdir / "once", progress=False)
    assert [folder.name for folder in checkpoints(workdir / "once")] == ["checkpoint-1"]


def test_the_clock_asks_for_no_more_than_a_fiftieth_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    args, callback = SimpleNamespace(device="cpu", world_size=1), stopping.Stopping(minutes=1)

    def step(seconds, saving):
        now[0] += seconds
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback.on_step_end(args, None, control)
        if control.should_save:
            now[0] += saving
            callback.on_save(args, None, control)
        return control.should_save

    assert [step(25, saving=10) for _ in range(4)] == [False, False, True, False]
    saved = [step(25, saving=10) for _ in range(45)]
    assert saved.count(True) == 2  # 10 seconds each in 500 of training


def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before(
    tiny_recipe, workdir, monkeypatch
):
    recipe = tiny_recipe(training={"save_steps": 2, "num_train_epochs": 8}, multi_task=ONE_TASK)
    train(recipe, workdir / "whole", progress=False)
    save, written = torch.save, []

    def full(value, path, *args, **kwargs):
        written.append(path)
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FintuneError) as told:
        train(recipe, workdir / "out", progress=False)
    for part in (
        "The disk of",
        "is full",
        "the checkpoint of step 4 needs about",
        "checkpoint-2 is complete",
    ):
        assert part in str(told.value)
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    assert [path.name for path in (workdir / "out").iterdir() if path.name != "tensorboard"] == [
        "checkpoint-2"
    ]
    train(recipe, workdir / "out", resume="latest", progress=False)
    same_weights(workdir / "whole", workdir / "out")


def test_a_disk_without_room_is_refused_before_training_with_what_is_missing(
    tiny_recipe, workdir, monkeypatch
):
    from fintune import files

    usage = files.shutil.disk_usage(workdir)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(
        FintuneError, match=r"a checkpoint needs about .* MB, and 0\.0 MB are free; .* missing"
    ):
        train(tiny_recipe(multi_task=ONE_TASK), workdir / "out", progress=False)
    assert not (workdir / "out" / "adapter_model.safetensors").exists()


def test_a_folder_in_use_is_left_alone_until_one_says_what_to_do_with_it(tiny_recipe, workdir):
    recipe = tiny_recipe(training={"max_steps": 2, "save_steps": 1}, multi_task=ONE_TASK)
    train(recipe, workdir / "out", progress=False)
    with pytest.raises(
        ConfigError, match=r"a finished adapter, of 20.*--resume_from_checkpoint.*--overwrite"
    ):
        train(recipe, workdir / "out", progress=False)
    (workdir / "out" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoint-2 of an unfinished run"):
        train(recipe, workdir / "out", progress=False)

    one = tiny_recipe(training={"max_steps": 1}, multi_task=ONE_TASK)
    train(one, workdir / "out", overwrite=True, progress=False)
    assert [folder.name for folder in checkpoints(workdir / "out")] == ["checkpoint-1"]

    other = Lock(workdir / "new", "lock")  # what another process would hold
    assert other.take()
    with pytest.raises(ConfigError, match=rf"Another run trains into .*new \(process {os.getpid()}, since"):
        train(one, workdir / "new", progress=False)
    other.release()
    train(one, workdir / "new", progress=False)
    assert not list(workdir.glob(".new.*"))


def test_what_is_saved_can_be_read_by_who_reads_its_neighbours(tiny_recipe, workdir):
    old = os.umask(0o022)
    try:
        recipe = tiny_recipe(training={"max_steps": 1}, lora_config={"init_lora_weights": "pissa"})
        train(recipe, workdir / "out", progress=False)
        export(workdir / "out", workdir / "merged")
    finally:
        os.umask(old)
    files = [path for path in workdir.rglob("*.safetensors") if "prepared" not in path.parts]
    assert {path.name for path in files} >= {
        "adapter_model.safetensors",
        "best.safetensors",
        "model.safetensors",
    }
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o644, path
