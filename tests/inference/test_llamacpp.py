"""llama.cpp behind the engine: labels, likelihoods and texts as of the built-in backend, from a GGUF."""

import json

import pytest

from fintune.config import Recipe
from fintune.data.raw.sample import sample_records
from fintune.errors import ModelError
from fintune.inference.engine import Engine
from fintune.models.export import export
from fintune.tasks import Record

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install -e '.[llamacpp]'")


@pytest.fixture(scope="module")
def engines(random_adapter, tmp_path_factory):
    """The built-in engine of an adapter, and llama.cpp's of its GGUF in float32."""
    folder = export(random_adapter, tmp_path_factory.mktemp("export") / "gguf", "gguf", "f32").folder
    return Engine.load(random_adapter), Engine.load(folder, backend="llama.cpp")


def some(task, count):
    return [r for r in sample_records(task) if r.split == "test"][:count]


def assert_alike(own, other, task, records, tolerance=1e-4):
    for a, b in zip(own.predict(task, records), other.predict(task, records), strict=True):
        assert a.value == b.value
        assert b.probabilities == pytest.approx(a.probabilities, abs=tolerance)


@pytest.mark.parametrize("task", ["sentiment", "headline"])
def test_labels_and_their_probabilities_are_those_of_the_builtin_backend(engines, task, monkeypatch):
    own, other = engines
    assert_alike(own, other, task, some(task, 6))
    for engine in engines:
        monkeypatch.setattr(engine.tasks[task], "calibration", "contextual")
        monkeypatch.setattr(engine.tasks[task], "normalization", "tokens")
    assert_alike(own, other, task, some(task, 3))


def test_more_answers_than_are_scored_at_once_have_their_own_likelihoods(engines):
    own, other = engines
    prompts = [own.template.prompt_ids(own.tasks["headline"], r, 200)[0] for r in some("headline", 2)]
    answers = [own.template.completion_ids(f"{n / 4:+.2f}") for n in range(-70, 70)]
    assert sum(map(len, answers)) > 512  # in two groups by tokens, and in five by number
    with own.backend.session(), other.backend.session():
        wanted = own.backend.log_likelihoods(prompts, answers)
        found = other.backend.log_likelihoods(prompts, answers)
    for a, b in zip(wanted, found, strict=True):
        assert b == pytest.approx(a, abs=1e-3)


def test_texts_are_the_same_word_for_word_whatever_was_asked_before(engines, monkeypatch):
    from fintune.tasks.base import TextFormat

    own, other = engines
    records = some("qa", 3)
    found = other.predict("qa", records)
    for a, b in zip(own.predict("qa", records), found, strict=True):
        assert a.value == b.value and a.value
        assert b.token_probability == pytest.approx(a.token_probability, rel=1e-3)
    again = other.predict("qa", records[::-1])[::-1]
    assert [answer.value for answer in again] == [answer.value for answer in found]
    for engine in engines:
        monkeypatch.setattr(
            engine.tasks["summarization"], "text_format", TextFormat(bullets=2, bullet_tokens=6)
        )
    wanted, bullets = (engine.predict("summarization", some("summarization", 1))[0] for engine in engines)
    assert bullets.value == wanted.value and bullets.value.startswith("-")


def begun(texts):
    """The logits after the prompts, which take several passes if they are long."""
    while (logits := texts.advance(None)) is None:
        pass
    return logits


def test_texts_written_side_by_side_are_those_written_alone(engines):
    """What the server does: two texts a step at a time, one ends first, its place is taken again."""
    _, other = engines
    prompts = [other.template.prompt_ids(other.tasks["qa"], r, 200)[0] for r in some("qa", 3)]
    with other.backend.session():
        alone = [each.ids for each in other.backend.generate(prompts, 6, (), None)]
        texts = other.backend.begin(prompts[:2], 6)
        written, logits = [[], []], begun(texts)
        for step in range(6):
            tokens = logits.argmax(1).tolist()
            for text, token in zip(written, tokens, strict=False):
                text.append(token)
            if step == 2:
                texts.keep([0])
                tokens = tokens[:1]
            logits = texts.advance(tokens)
        texts.keep([])
        assert written == [alone[0], alone[1][:3]]
        texts = other.backend.begin([prompts[2]], 6)
        assert int(begun(texts).argmax()) == alone[2][0]
        texts.keep([])


@pytest.mark.parametrize("failing", [1, 2], ids=["of the prompt", "of the labels"])
def test_a_pass_that_fails_leaves_nothing_behind(engines, monkeypatch, failing):
    import llama_cpp

    _, other = engines
    first, second = some("headline", 2)
    wanted = [other.predict("headline", [record])[0] for record in (first, second)]
    decode, passes = llama_cpp.llama_decode, []

    def fails(*given):
        passes.append(given)
        return 1 if len(passes) == failing else decode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_decode", fails)
        with pytest.raises(ModelError, match="could not compute"):
            other.predict("headline", [first])
    assert len(passes) == failing
    for record, before in zip((first, second), wanted, strict=True):
        again = other.predict("headline", [record])[0]
        assert again.probabilities == pytest.approx(before.probabilities, abs=1e-5)


KINDS = {
    "llama3": (
        "llama",
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0},
    ),
    "qwen2": ("qwen2", {"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3": ("qwen3", {"rope_type": "default", "rope_theta": 1000000.0}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_and_scaled_positions_are_computed_alike(kind, tiny_base, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model_type, rope = KINDS[kind]
    if kind == "llama3":
        rope = {**rope, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    given = json.loads((tiny_base / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
    shape = {key: given[key] for key in keys}
    if kind == "qwen3":
        shape["head_dim"] = 32
    config = AutoConfig.for_model(model_type, rope_parameters=rope, tie_word_embeddings=False, **shape)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms and biases that are not 1 and 0
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    raw = {"base_model": {"name": str(tmp_path / "base")}, "training": {"bf16": False, "max_length": 256}}
    recipe = Recipe.model_validate(raw)
    folder = export(None, tmp_path / "gguf", "gguf", "f32", recipe).folder
    own, other = Engine.load(None, recipe), Engine.load(folder, backend="llama.cpp")
    assert_alike(own, other, "sentiment", some("sentiment", 3))


def test_a_16_bit_gguf_without_a_vocabulary_answers_nearly_the_same(random_adapter, tmp_path, monkeypatch):
    from fintune.models import gguf

    monkeypatch.setattr(gguf, "pre_tokenizer_name", lambda described: None)
    done = export(random_adapter, tmp_path / "gguf", "gguf", "f16")
    assert not done.vocabulary
    other = Engine.load(done.folder, backend="llama.cpp")
    own, records = Engine.load(random_adapter), some("headline", 6)
    for a, b in zip(own.predict("headline", records), other.predict("headline", records), strict=True):
        assert b.probabilities == pytest.approx(a.probabilities, abs=0.02)


def test_what_llama_cpp_cannot_answer_from_is_refused_in_a_sentence(engines, random_adapter, tmp_path):
    _, other = engines
    with pytest.raises(ModelError, match="an adapter merged into its base, which cannot be separated"):
        other.predict("sentiment", [Record(text="Profit rose.")], use_adapter=False)
    (tmp_path / "model.gguf").write_bytes(b"GGUF, or not")
    (tmp_path / "fintune.json").write_text((random_adapter / "fintune.json").read_text())
    raw = json.loads((tmp_path / "fintune.json").read_text())
    (tmp_path / "fintune.json").write_text(json.dumps({**raw, "exported": {"format": "gguf"}}))
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read by llama\.cpp: the file is damaged"):
        Engine.load(tmp_path, backend="llama.cpp")
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"has several GGUF files \(model\.gguf, other\.gguf\): keep exactly one"
    ):
        Engine.load(tmp_path, backend="llama.cpp")
