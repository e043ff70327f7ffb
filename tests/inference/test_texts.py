"""Texts of many bases are those that Transformers writes for each prompt alone; so are scores of labels."""

import pytest
import torch
from families import tiny

from fintune.inference import recording
from fintune.inference.backends.builtin import Builtin
from fintune.kernels import attention
from fintune.kernels.likelihood import log_likelihoods_plain

PROMPTS = [
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
    [3, 4, 5, 6, 7, 20, 21],
    [3, 4, 5, 6, 7, 30, 31, 32, 33],
]
END = 2


@pytest.mark.parametrize("step", [4, 2048])
@pytest.mark.parametrize(
    "kind",
    [
        *("mistral", "gemma2", "gemma3_text", "gpt_oss", "cohere2", "deepseek_v3"),  # packed
        *("lfm2", "mamba2", "stablelm", "qwen3_next", "falcon_h1", "llama4_text", "bloom"),
    ],
)
def test_what_is_written_and_scored_is_what_each_prompt_gets_alone(kind, step, monkeypatch):
    """Windows of 4 tokens are shorter than the common prefix; `step` cuts prompts into parts."""
    model = tiny(kind).requires_grad_(False)
    plain = tiny(kind)
    written = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        found = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, eos_token_id=END
        )
        written.append([token for token in found[0, len(prompt) :].tolist() if token != END])
    backend = Builtin(model, pad=0)
    monkeypatch.setattr("fintune.inference.backends.builtin.ROW_TOKENS", step)
    with backend.session():
        for shared in (0, backend.shared(PROMPTS)):
            found = backend.generate(PROMPTS, 9, [END], None, shared)
            assert [each.ids for each in found] == written
            answers = [[40, 41], [42, 43, 44], [45]]
            scores = torch.tensor(backend.log_likelihoods(PROMPTS, answers, shared))
            alone = log_likelihoods_plain(plain, PROMPTS, [answers] * 3)
            torch.testing.assert_close(scores.flatten(), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [3, 2048])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "lfm2", "stablelm", "bloom"])
def test_a_watched_prompt_shows_the_logits_after_each_of_its_tokens(kind, step, monkeypatch):
    """Beside prompts that are not watched, one of which leaves before its text begins."""
    model = tiny(kind).requires_grad_(False)
    backend, plain = Builtin(model, pad=0), tiny(kind)
    monkeypatch.setattr("fintune.inference.backends.builtin.STEP_TOKENS", {"cpu": step})
    seen, unwatched = [], [*PROMPTS, PROMPTS[1]]
    with backend.session():
        texts = backend.begin(unwatched, 3, watched={2: seen.append})
        logits, place = texts.advance(None), 2
        if logits is None:
            texts.keep([1, 2])
            place = 1
        while logits is None:
            logits = texts.advance(None)
        wanted = plain(input_ids=torch.tensor([PROMPTS[2]])).logits[0]
        torch.testing.assert_close(torch.cat(seen), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits[place], wanted[-1], rtol=1e-4, atol=1e-4)
        texts.keep([])


def graph(step):
    """A recording as strict as a CUDA graph's: the step must not ask the host, nor change its shapes."""
    torch._dynamo.reset()
    return torch.compile(step, fullgraph=True, dynamic=False, backend="eager")


@pytest.fixture
def record(monkeypatch):
    """Sets what records steps from their second on, on any device."""
    monkeypatch.setattr(recording, "PLAIN_STEPS", 1)
    monkeypatch.setattr(recording, "failures", [])
    attention.register()  # another test may have excluded it from graphs
    return lambda recorder: monkeypatch.setattr(recording, "recorder", lambda device: recorder)


@pytest.mark.parametrize(
    "kind, recorder",
    [
        *((kind, lambda step: step) for kind in ("llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3")),
        ("gemma3_text", graph),
    ],
)
def test_recorded_steps_write_what_plain_ones_do(kind, recorder, record, monkeypatch):
    """Answers end at different lengths, so that the texts, and with them the recording, change on the way."""
    if recorder is graph:  # a graph takes seconds, so there is one
        monkeypatch.setattr("fintune.inference.decoding.COMPACT", 0)
    backend = Builtin(tiny(kind).requires_grad_(False), pad=0)
    prompts = [*PROMPTS, PROMPTS[0][:5]]

    def stop(row, written):
        return [END] if len(written) == (2, 11, 5, 3)[row] else None

    with backend.session():
        wanted = backend.generate(prompts, 12, [END], stop)
        record(recorder)
        found = backend.generate(prompts, 12, [END], stop, backend.shared(prompts))
    assert not recording.failures
    assert [each.ids for each in found] == [each.ids for each in wanted]
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.log_probabilities == pytest.approx(plain.log_probabilities, abs=1e-4)


def impossible(step):
    """What CUDA says where a step waits for the device."""
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\n…")


@pytest.mark.parametrize(
    "recorder, problem",
    [
        (lambda step: lambda: step() + 1.0, "differ from the plain one's by"),
        (impossible, "operation not permitted when stream is capturing"),
    ],
)
def test_a_recording_that_is_wrong_or_impossible_is_not_used(recorder, problem, record, caplog):
    backend = Builtin(tiny("llama").requires_grad_(False), pad=0)
    with backend.session():
        wanted = backend.generate(PROMPTS, 6, [], None)
        record(recorder)
        found = backend.generate(PROMPTS, 6, [], None)
    assert [each.ids for each in found] == [each.ids for each in wanted]
    (message,) = [each.message for each in caplog.records if each.name == recording.__name__]
    assert problem in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_cuda_graphs_write_what_plain_steps_do(kind, record):
    backend = Builtin(tiny(kind).requires_grad_(False).cuda(), pad=0)
    with backend.session():
        record(None)
        wanted = backend.generate(PROMPTS, 12, [], None)
        record(recording.cuda_graph)
        found = backend.generate(PROMPTS, 12, [], None)
    assert not recording.failures
    assert [each.ids for each in found] == [each.ids for each in wanted]
