"""Greedy decoding over a cache written in place: the same tokens as Transformers' generate, text by text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.inference.decoding import greedy
from fintune.inference.prefix import PrefixStore
from fintune.inference.texts import PackedTexts, PaddedTexts

prompts = st.lists(
    st.lists(st.integers(3, 29), min_size=1, max_size=9).map(lambda own: [1, 2, *own]), min_size=1, max_size=5
)


def reference(model, prompt, budget, end):
    """The tokens of Transformers' own `generate`, the end left out, and each one's log-probability."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=budget,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = found.sequences[0, len(prompt) :].tolist()
    values = [float(row[0].log_softmax(0)[token]) for row, token in zip(found.logits, tokens, strict=True)]
    return [token for token in tokens if token != end], values


@settings(max_examples=25, deadline=None)
@given(prompts, st.integers(3, 40), st.integers(1, 12), st.integers(1, 60))
def test_texts_are_those_of_generate_whenever_each_of_them_ends(model, prompts, end, budget, row_tokens):
    model.eval()
    with torch.no_grad():
        prefix = PrefixStore().get(model, [1, 2], adapter=True)
        packed = PackedTexts(model, prompts, prefix, row_tokens, budget)
        found = greedy(packed, range(len(prompts)), budget, [end])
        plain = greedy(PaddedTexts(model, prompts, 0, row_tokens), range(len(prompts)), budget, [end])
        for prompt, own, padded in zip(prompts, found, plain, strict=True):
            ids, values = reference(model, prompt, budget, end)
            assert own.ids == padded.ids == ids
            assert own.log_probabilities == pytest.approx(values, rel=1e-4, abs=1e-5)
            assert padded.log_probabilities == pytest.approx(values, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_a_text_that_leaves_while_prompts_are_computed_changes_nothing_for_the_others(model, kind):
    prompts = [[*range(1, 30)], [1, 2, 5], [*range(3, 23)], [1, 2, 7, 8]]
    model.eval()

    def begun(chosen, tokens):
        if kind == "padded":
            return PaddedTexts(model, chosen, 0, tokens)
        return PackedTexts(model, chosen, PrefixStore().get(model, [], True), tokens, 5)

    for gone in range(4):
        left = [i for i in range(4) if i != gone]
        with torch.no_grad():
            texts = begun(prompts, 8)
            assert texts.advance(None) is None  # a part of the first prompt, or of all
            texts.keep(left)
            found = greedy(texts, range(3), 5, ends=[0])
            whole = greedy(begun([prompts[i] for i in left], 999), range(3), 5, ends=[0])
        for one, other in zip(found, whole, strict=True):
            assert one.ids == other.ids
            assert one.log_probabilities == pytest.approx(other.log_probabilities, rel=1e-6)


def test_a_constraint_chooses_among_the_allowed_tokens_of_each_text(model):
    prompts = [[1, 2, 5], [1, 2, 7, 8]]
    wanted = [[11, 12, 13], [21, 22, 23]]

    def allowed(row, sofar):
        return [wanted[row][len(sofar)]] if len(sofar) < 3 else [30]

    with torch.no_grad():
        prefix = PrefixStore().get(model.eval(), [1, 2], adapter=True)
        found = greedy(PackedTexts(model, prompts, prefix, 99, 9), range(2), 9, [30], allowed)
    assert [each.ids for each in found] == wanted
    assert all(len(each.log_probabilities) == 4 and 0 < each.probability < 1 for each in found)
