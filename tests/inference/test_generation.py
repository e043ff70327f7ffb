"""Greedy decoding over a cache written in place: the same tokens as Transformers' generate, text by text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.inference.decoding import greedy, greedy_plain
from fintune.inference.prefix import PrefixStore

prompts = st.lists(
    st.lists(st.integers(3, 29), min_size=1, max_size=9).map(lambda own: [1, 2, *own]), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(prompts, st.integers(3, 40), st.integers(1, 12), st.integers(4, 60))
def test_texts_are_those_of_generate_whenever_each_of_them_ends(model, prompts, end, budget, row_tokens):
    model.eval()
    with torch.no_grad():
        prefix = PrefixStore().get(model, [1, 2], adapter=True)
        found = greedy(model, prompts, prefix, budget, end, row_tokens)
        plain = greedy_plain(model, prompts, budget, end, pad=0)
        for prompt, own, reference in zip(prompts, found, plain, strict=True):
            ids = torch.tensor([prompt])
            alone = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=budget,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            assert own.ids == [token for token in alone if token != end] == reference.ids
            assert own.log_probabilities == pytest.approx(reference.log_probabilities, rel=1e-4, abs=1e-5)


def test_a_constraint_chooses_among_the_allowed_tokens_of_each_text(model):
    prompts = [[1, 2, 5], [1, 2, 7, 8]]
    wanted = [[11, 12, 13], [21, 22, 23]]

    def allowed(row, sofar):
        return [wanted[row][len(sofar)]] if len(sofar) < 3 else [30]

    with torch.no_grad():
        prefix = PrefixStore().get(model.eval(), [1, 2], adapter=True)
        found = greedy(model, prompts, prefix, 9, 30, 99, allowed)
    assert [each.ids for each in found] == wanted
    assert all(len(each.log_probabilities) == 4 and 0 < each.probability < 1 for each in found)
