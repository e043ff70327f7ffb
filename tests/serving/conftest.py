"""A real server process on a free port, with two adapters on the tiny base."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from adapter_folders import reseal
from forked import Forked, fintune

pytest.importorskip("fastapi", reason="the API needs the serve extra")


@dataclass
class Server:
    """A running `fintune serve`; `log` is what it wrote to standard error."""

    process: subprocess.Popen | Forked
    url: str
    log: list[str] = field(default_factory=list)

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


def _started(process):
    server = Server(process, "")
    threading.Thread(target=lambda: server.log.extend(process.stderr), daemon=True).start()
    for line in process.stdout:
        if found := re.search(r"is at (http://\S+:\d+) ", line):
            server.url = found[1]
            return server
    process.wait(10)
    raise AssertionError(f"the server did not start: {''.join(server.log)}")


@pytest.fixture(scope="session")
def adapters(tiny_base, tmp_path_factory):
    """A folder with two adapters on the tiny base, `first` and `second`, that answer differently."""
    import torch
    from safetensors.torch import load_file, save_file

    from fintune.config import Recipe
    from fintune.training.run import train

    folder = tmp_path_factory.mktemp("adapters")
    names = ("sentiment", "headline", "summarization", "qa", "regression")
    data = {name: {"dataset": "sample", "max_train": 8, "max_validation": 2, "max_test": 2} for name in names}
    training = {"max_steps": 2, "gradient_accumulation_steps": 2, "warmup_steps": 0, "max_length": 192}
    recipe = {
        "base_model": {"name": str(tiny_base)},
        "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        "training": {**training, "bf16": False, "learning_rate": 1e-3},
        "data": {"prepared_dir": str(tmp_path_factory.mktemp("prepared")), "tasks": data},
        "evaluation": {"formats": {name: {"max_new_tokens": 16} for name in ("summarization", "qa")}},
    }
    with contextlib.chdir(tmp_path_factory.mktemp("logs")):
        train(Recipe.model_validate(recipe), folder / "first", progress=False)
    for path in folder.joinpath("first").glob("checkpoint-*"):
        shutil.rmtree(path)
    shutil.copytree(folder / "first", folder / "second")
    weights = folder / "second" / "adapter_model.safetensors"
    torch.manual_seed(1)
    changed = {name: value + 0.2 * torch.randn_like(value) for name, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    reseal(folder / "second")
    return folder


@pytest.fixture(scope="session")
def start():
    """A function: flags → a server of one's own, to be stopped."""

    def run(*flags, keys, port=0, command=fintune, **environment):
        """Args: keys: the file of keys, or where there is none (`no_keys`)."""
        named = ["--keys", str(keys)] if keys.exists() else []
        flags = ["--port", str(port), *named, *map(str, flags)]
        environment = {"XDG_CONFIG_HOME": str(keys.parent), **environment}
        return _started(Forked(command, ["serve", *flags], **environment))

    return run


@pytest.fixture(scope="session")
def no_keys(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="session")
def server(adapters, no_keys):
    """One for all tests that leave it as it is."""
    command = [sys.executable, "-m", "fintune.cli", "serve", "--port", "0"]
    command += ["--model_path", adapters / "first", "--adapters", adapters]
    command += ["--max_body", "100000", "--max_tokens", "64", "--timeout", "30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FINTUNE_ALLOCATOR": "system"}
    environment["XDG_CONFIG_HOME"] = str(no_keys.parent)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = _started(subprocess.Popen(command, env=environment, **pipes))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def client(server):
    """OpenAI's own client of the server."""
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def engine(untuned):
    return untuned()


@pytest.fixture
def thread(engine):
    """A function: settings → a model thread over the engine."""
    from fintune.serving.queue import ModelThread
    from fintune.serving.settings import Settings

    begun = []

    def make(**settings):
        models = SimpleNamespace(
            get=lambda name: (engine, False), ready=lambda name: engine, texts=None, default="base"
        )
        begun.append(ModelThread(models, Settings(**settings)))
        return begun[-1]

    yield make
    for each in begun:
        each.stop()
