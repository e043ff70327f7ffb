"""vLLM behind the engine, where it is installed (or vllm-cpu): the built-in backend's answers."""

import os

import pytest

from fintune.data.raw.sample import sample_records
from fintune.errors import ModelError
from fintune.inference.engine import Engine
from fintune.tasks.base import TextFormat

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e '.[vllm]'")


@pytest.fixture(scope="module")
def engines(tiny_base, random_adapter_on, tmp_path_factory):
    """The built-in engine of an adapter, and vLLM's, whose kernels are for heads of 32 and wider."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    base = tmp_path_factory.mktemp("base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(base)
    config = AutoConfig.from_pretrained(tiny_base, head_dim=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter = random_adapter_on(base, tmp_path_factory.mktemp("adapter") / "own")
    return Engine.load(adapter), Engine.load(adapter, backend="vllm")


def some(task, count):
    return [r for r in sample_records(task) if r.split == "test"][:count]


@pytest.mark.parametrize("use_adapter", [True, False])
def test_labels_and_texts_are_those_of_the_builtin_backend(engines, use_adapter):
    own, other = engines
    records = some("sentiment", 5)
    wanted = own.predict("sentiment", records, use_adapter=use_adapter)
    found = other.predict("sentiment", records, use_adapter=use_adapter)
    for a, b in zip(wanted, found, strict=True):
        assert a.value == b.value
        assert b.probabilities == pytest.approx(a.probabilities, abs=1e-3)
    records = some("qa", 2)
    wanted = own.predict("qa", records, use_adapter=use_adapter)
    for a, b in zip(wanted, other.predict("qa", records, use_adapter=use_adapter), strict=True):
        assert a.value == b.value
        assert b.token_probability == pytest.approx(a.token_probability, rel=1e-2)


def test_more_next_tokens_than_one_request_tells_of_are_all_scored(engines):
    prompts = [[1, 9125, 198], [1, 4093, 198, 87]]
    answers = [[token, 11, 2] for token in range(300, 500)]  # 200 different first tokens
    found = []
    for engine in engines:
        with engine.backend.session():
            found.append(engine.backend.log_likelihoods(prompts, answers))
    for a, b in zip(*found, strict=True):
        assert b == pytest.approx(a, abs=2e-3)


def test_a_format_is_refused(engines, monkeypatch):
    monkeypatch.setattr(engines[1].tasks["summarization"], "text_format", TextFormat(bullets=2))
    with pytest.raises(ModelError, match="cannot keep texts to a format"):
        engines[1].predict("summarization", some("summarization", 1))
