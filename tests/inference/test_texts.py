"""Texts of many bases are those that Transformers writes for each prompt alone; so are scores of labels."""

import pytest
import torch
from families import tiny

from fintune.inference.backends.builtin import Builtin
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
