"""A packed row computes what separate sequences compute: log-likelihoods and gradients."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.data.batching import common_prefix_length, join, pack, rows_of
from fintune.models import attention
from fintune.models.likelihood import row_logits, span_log_likelihoods

TOKEN = st.integers(3, 40)


def packed_scores(model, prompts, completions, share):
    row = pack(prompts, completions, share)
    return span_log_likelihoods(row_logits(model, row).double(), row.targets, row.owner, row.spans)


def separate_scores(model, prompts, completions):
    scores = []
    for prompt, answers in zip(prompts, completions, strict=True):
        for answer in answers:
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            scores.append(torch.log_softmax(logits, -1)[range(len(answer)), answer].sum())
    return torch.stack(scores)


@settings(max_examples=25, deadline=None)
@given(
    prefix=st.lists(TOKEN, max_size=6),
    rest=st.lists(st.lists(TOKEN, min_size=1, max_size=7), min_size=1, max_size=4),
    answers=st.lists(st.lists(TOKEN, min_size=1, max_size=3), min_size=1, max_size=3),
    share=st.booleans(),
)
def test_packed_log_likelihoods_and_gradients_equal_those_of_separate_sequences(
    model, prefix, rest, answers, share
):
    prompts = [prefix + own for own in rest]
    completions = [answers for _ in prompts]
    weight = model.model.layers[0].self_attn.k_proj.weight
    values, gradients = [], []
    for scores in (
        packed_scores(model, prompts, completions, share),
        separate_scores(model, prompts, completions),
    ):
        values.append(scores.detach())
        gradients.append(torch.autograd.grad(scores.sum(), weight)[0])
    # The loss is taken in fp32, whatever the model computes in.
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    prefix=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_block_attention_equals_attention_under_the_dense_mask(lengths, prefix, seed):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [[[5, 6], [7, 8, 9]] for _ in prompts])
    row = join([row, pack([[4, 5]], [[[6, 7]]]), row])
    generator = torch.Generator().manual_seed(seed)
    tokens = row.input_ids.shape[1]
    query = torch.randn(1, 4, tokens, 8, generator=generator)
    key, value = (torch.randn(1, 2, tokens, 8, generator=generator) for _ in range(2))
    torch.testing.assert_close(
        attention.block_attention(query, key, value, row.layout),
        attention.dense_attention(query, key, value, row.layout),
    )


def test_the_shared_prefix_is_computed_once():
    prompts = [[1, 2, 3, 4, 10, 11], [1, 2, 3, 4, 12]]
    row = pack(prompts, [[[7]], [[8, 9]]])
    assert row.layout[0].prefix_length == 4
    assert row.input_ids.tolist() == [[1, 2, 3, 4, 10, 11, 12, 8]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_common_prefix_leaves_every_sequence_a_token_of_its_own(sequences):
    length = common_prefix_length(sequences)
    assert length < min(map(len, sequences))
    assert len({tuple(sequence[:length]) for sequence in sequences}) == 1


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from("ab")), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 80),
)
def test_rows_hold_every_example_once_within_their_limits(examples, row_size, row_tokens):
    lengths, tasks = zip(*examples, strict=True)
    rows = rows_of(lengths, tasks, row_size, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    for row in rows:
        assert len(row) <= row_size
        assert len({tasks[i] for i in row}) == 1
        assert len(row) == 1 or sum(lengths[i] for i in row) <= row_tokens
