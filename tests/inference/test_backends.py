"""Backends by name: what each takes, one of another package, and evaluation through them."""

import contextlib
import importlib
import json
import textwrap

import pytest
import yaml

from fintune.cli import main
from fintune.data.prepare.dataset import load_prepared
from fintune.errors import ConfigError, DataError, MissingExtraError, ModelError
from fintune.evaluation.evaluate import resume_key
from fintune.inference import backends
from fintune.inference.answers import answers, predict_file
from fintune.inference.backends import BackendSpec, register
from fintune.inference.decoding import Generated
from fintune.inference.engine import Engine
from fintune.models.export import export
from fintune.tasks import Record
from fintune.tasks.types import QATask


class Toy:
    """Prefers short answers and writes the prompt's last token; takes 1000 prompts in one call."""

    texts = 0
    context = 256

    def __init__(self, source):
        self.path = source.path
        self.calls = []

    def session(self, use_adapter=True):
        assert use_adapter
        return contextlib.nullcontext()

    def batch_limits(self, size, scoring):
        return 1000, 10**6

    def shared(self, prompts):
        return 0

    def lookups(self):
        return 0, 0

    def log_likelihoods(self, prompts, answers, shared=0):
        self.calls.append(len(prompts))
        return [[-float(len(answer)) for answer in answers] for _ in prompts]

    def generate(self, prompts, max_new_tokens, end, allowed, shared=0):
        self.calls.append(len(prompts))
        return [Generated([prompt[-1]], [-1.0, 0.0]) for prompt in prompts]


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    return register(BackendSpec("toy", Toy, takes=("adapter",), untuned_base=False))


@pytest.fixture
def evaluated(workdir, tiny_base):
    """A function: a model's folder and flags → the results of `fintune evaluate`."""
    sizes = {"dataset": "sample", "max_train": 12, "max_validation": 2, "max_test": 3}
    recipe = {
        "base_model": {"name": str(tiny_base)},
        "training": {"bf16": False, "max_length": 256},
        "multi_task": {"task_weights": {"sentiment": 1, "qa": 1}},
        "data": {"tasks": {"sentiment": sizes, "qa": sizes}},
        "evaluation": {"baselines": []},
    }
    (workdir / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def run(folder, *flags):
        output = ["--output_file", "results.json"]
        command = ["evaluate", "--config", "recipe.yaml", "--model_path", str(folder), *output, *flags]
        assert main(command) == 0
        return json.loads((workdir / "results.json").read_text())

    return run


def test_a_merged_export_is_evaluated_as_the_adapter_that_it_was_made_of(
    evaluated, toy, random_adapter, tiny_base, workdir
):
    merged = export(random_adapter, workdir / "merged", "merged", "f32").folder
    ours, theirs = evaluated(merged), evaluated(random_adapter)
    assert ours["model"] == {"base": str(tiny_base), "adapter": str(merged), "backend": "builtin"}
    assert ours["complete"] and ours["tasks"].keys() == {"sentiment", "qa"}
    for name, task in ours["tasks"].items():
        assert task["systems"]["adapter"]["metrics"] == pytest.approx(
            theirs["tasks"][name]["systems"]["adapter"]["metrics"], abs=1e-3
        )
        assert "base" in theirs["tasks"][name]["systems"] and "base" not in task["systems"]
        assert "an adapter merged into its base" in task["systems_skipped"]["base"]
    engine, prepared = Engine.load(merged), load_prepared(workdir / "data" / "processed")
    with pytest.raises(ModelError, match="untuned base cannot be asked"):
        engine.predict("qa", [Record("Up.", question="What?")], use_adapter=False)
    other = Engine.load(random_adapter, backend="toy")
    keys = {ours["key"], theirs["key"], *(resume_key(each, prepared, {}) for each in (engine, other))}
    weights = merged / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    keys |= {resume_key(each, prepared, {}) for each in (engine, Engine.load(random_adapter))}
    assert len(keys) == 6  # other weights, or another backend, are another evaluation


def test_a_registered_backend_is_evaluated_and_says_why_there_is_no_untuned_base(
    evaluated, toy, random_adapter
):
    results = evaluated(random_adapter, "--backend", "toy")
    assert results["model"]["backend"] == "toy"
    for task in results["tasks"].values():
        assert task["systems"]["adapter"]["n"] == 3 and "base" not in task["systems"]
        assert task["systems_skipped"]["base"] == "the backend toy cannot answer without the adapter"


class Choosy(QATask):
    """A plug-in's task that refuses an answer once it is written."""

    def parse(self, text):
        self.refusals = getattr(self, "refusals", 0) + 1
        if self.refusals == 3:
            raise DataError("this answer is no answer")
        return super().parse(text)


def test_a_refused_row_costs_no_call_of_the_backend(toy, random_adapter):
    engine = Engine.load(random_adapter, backend="toy")
    engine.tasks.tasks["choosy"] = Choosy("choosy", "Answer.")
    rows = [Record(f"Sales rose by {n} %.", question="Why?", id=str(n)) for n in range(64)]
    lines = answers(engine, "choosy", rows, truncate=False)
    assert [line["id"] for line in lines if "error" in line] == ["2"]
    assert engine.backend.calls == [64]
    rows[7], rows[40] = Record("profit " * 500, id="7"), Record("", id="40")
    lines = answers(engine, "headline", rows, truncate=False)
    assert [line["id"] for line in lines if "error" in line] == ["7", "40"]
    assert engine.backend.calls == [64, 62]
    lines = answers(engine, "regression", rows, truncate=False)  # it has no levels: none can be answered
    assert all("no levels yet" in line["error"] for line in lines)
    assert engine.backend.calls == [64, 62]


def test_a_backend_is_given_as_many_rows_of_a_file_at_once_as_it_takes(toy, random_adapter, tmp_path):
    (tmp_path / "in.csv").write_text("text\n" + "Sales rose.\n" * 300)
    engine = Engine.load(random_adapter, backend="toy")
    assert predict_file(engine, "headline", tmp_path / "in.csv", tmp_path / "out.jsonl", False) == 300
    assert engine.backend.calls == [300]


def test_what_a_backend_does_not_take_is_refused_before_anything_is_loaded(random_adapter, tmp_path):
    merged = tmp_path / "merged"
    merged.mkdir()
    raw = json.loads((random_adapter / "fintune.json").read_text())
    for format, backend, says in (
        ("gguf", "vllm", "which holds a GGUF file: ask it with --backend builtin or llama.cpp"),
        ("merged", "llama.cpp", "which holds a merged model: ask it with --backend builtin or vllm"),
    ):
        (merged / "fintune.json").write_text(json.dumps({**raw, "exported": {"format": format}}))
        with pytest.raises(ModelError, match=says):
            Engine.load(merged, backend=backend)
    with pytest.raises(ModelError, match=r"holds an adapter: make one with  fintune export --format gguf"):
        Engine.load(random_adapter, backend="llama.cpp")
    with pytest.raises(
        ConfigError, match=r"--backend is absent, but the backends are builtin, llama\.cpp, vllm"
    ):
        Engine.load(random_adapter, backend="absent")


def test_a_backend_that_is_not_installed_is_named_with_its_extra(toy, random_adapter):
    register(BackendSpec("far", Toy, takes=("adapter",), needs=("no_such_library", "vllm")))
    with pytest.raises(MissingExtraError, match=r"--backend far .* pip install 'vllm"):
        Engine.load(random_adapter, backend="far")


def test_another_packages_backend_is_found_by_its_entry_point(toy, tmp_path, monkeypatch):
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    points = "[fintune.backends]\nelsewhere = elsewhere:SPEC\nbroken = elsewhere:ABSENT\n"
    (info / "entry_points.txt").write_text(points)
    source = """
        from fintune.inference.backends import BackendSpec

        SPEC = BackendSpec("elsewhere", lambda source: None, takes=("merged",))
    """
    (tmp_path / "elsewhere.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert {"elsewhere", "broken", "toy", "builtin"} <= set(backends.names())
    assert backends.find("elsewhere").takes == ("merged",)
    with pytest.raises(ConfigError, match=r"broken \(elsewhere:ABSENT\), which cannot be loaded"):
        backends.find("broken")
