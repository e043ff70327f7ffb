"""Shared fixtures: a tiny Llama with the real SmolLM2 tokenizer for speed; the real base where it matters."""

import os

import hypothesis
import pytest
from adapter_folders import make_random_adapter, make_tiny_base

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests never wait for a hub
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # their servers are on loopback


# How long an example takes says nothing: the first one imports libraries, and machines do other work.
# `--hypothesis-profile=thorough` draws ten times as many.
hypothesis.settings.register_profile("fintune", deadline=None, max_examples=40, database=None)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=400)
hypothesis.settings.load_profile("fintune")


SLOW_FIXTURES = {
    "tiny_base",
    "tiny_recipe",
    "random_adapter",
    "server",
    "adapters",
    "start",
    "page",
    "browser",
}
"""Their tests load or train a model, start a server or a browser: they are `slow`, not in `make check`."""


SLOW_FILES = {
    *("test_pipeline.py", "test_cluster.py", "test_repository.py", "test_base.py", "test_export.py"),
    *(
        "test_faults.py",
        "test_gpu_benchmark.py",
        "test_average.py",
        "test_plain_twin.py",
        "test_throughput.py",
        "test_lifecycle.py",
        "test_openai.py",
    ),
}
"""These load or train models, or start other processes, in all their tests that take any time."""

LONGEST = ("test_pipeline.py", "test_cluster.py", "test_train.py", "test_demo.py")
"""They come first, so that none runs alone at the end."""


def _is_slow(path):
    return "real" in path.parts or path.name in SLOW_FILES


def pytest_ignore_collect(collection_path, config):
    """The quick tests do without the imports of the slow ones."""
    return True if config.option.markexpr == "not slow" and _is_slow(collection_path) else None


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames) or _is_slow(item.path):
            item.add_marker("slow")
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture
def wandb_anew():
    """W&B without what an earlier test made of it: it keeps folder and mode for the life of a process."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install -e '.[track]'")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """`make_tiny_base` in a folder."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def untuned(tiny_base):
    """A function: settings of `training` → an engine of the tiny base in fp32, without an adapter."""

    def engine(**training):
        from fintune.config import Recipe
        from fintune.inference.engine import Engine

        raw = {"base_model": {"name": str(tiny_base)}, "training": {"bf16": False, **training}}
        return Engine.load(None, Recipe.model_validate(raw))

    return engine


@pytest.fixture(scope="session")
def random_adapter(tiny_base, tmp_path_factory):
    """`make_random_adapter` on the tiny base."""
    return make_random_adapter(tiny_base, tmp_path_factory.mktemp("adapter") / "own")


@pytest.fixture(scope="session")
def random_adapter_on():
    """A function: a base's folder and a new one → `make_random_adapter`."""
    return make_random_adapter


@pytest.fixture(scope="session")
def model():
    """A random two-layer Llama in fp64 with block attention, for what must hold to the last digits."""
    from families import small_llama

    from fintune.kernels import attention

    model = small_llama(max_position_embeddings=256, initializer_range=0.3).double()
    assert attention.enable(model)
    model.lm_head.requires_grad_(False)
    return model


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty working folder, and no real data in sight."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FINTUNE_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture
def tiny_recipe(tiny_base, tmp_path):
    """A function: changes → a recipe for a few steps on the tiny base, fp32, all five tasks."""
    from fintune.config import Recipe

    def recipe(**changes):
        tasks = ("sentiment", "headline", "summarization", "qa", "regression")
        sizes = {"dataset": "sample", "max_train": 12, "max_validation": 4, "max_test": 4}
        raw = {
            "base_model": {"name": str(tiny_base)},
            "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
            "training": {
                "num_train_epochs": 1,
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "max_length": 128,
                "bf16": False,
                "logging_steps": 1,
            },
            "data": {
                "prepared_dir": str(tmp_path / "prepared"),
                "tasks": {task: dict(sizes) for task in tasks},
            },
            # Validation writes with every run: its length is most of a tiny training's time.
            "evaluation": {"formats": {task: {"max_new_tokens": 4} for task in ("summarization", "qa")}},
        }
        for section, values in changes.items():
            raw.setdefault(section, {}).update(values)
        return Recipe.model_validate(raw)

    return recipe
