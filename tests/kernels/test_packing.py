"""A packed row computes what separate sequences compute: log-likelihoods and gradients."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention
from transformers import GraniteConfig, GraniteForCausalLM

from fintune.kernels import attention, flex, likelihood
from fintune.kernels.likelihood import frozen_head, span_log_likelihoods, target_nll
from fintune.kernels.packing import common_prefix_length, join, pack, rows_of

TOKEN = st.integers(3, 40)


def packed_scores(model, prompts, completions, share, own_head):
    """`own_head`: the LM head runs three targets at a time in `_TargetNLL`, else in the model's forward."""
    row = pack(prompts, completions, share)
    head = frozen_head(model) if own_head else None
    assert (head is not None) == own_head
    with patch.object(likelihood, "CHUNK", 3):
        return span_log_likelihoods(target_nll(model, row, head=head), row.owner, row.spans)


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
    own_head=st.booleans(),
)
def test_packed_log_likelihoods_and_gradients_equal_those_of_separate_sequences(
    model, prefix, rest, answers, share, own_head
):
    prompts = [prefix + own for own in rest]
    completions = [answers for _ in prompts]
    weight = model.model.layers[0].self_attn.k_proj.weight
    values, gradients = [], []
    for scores in (
        packed_scores(model, prompts, completions, share, own_head),
        separate_scores(model, prompts, completions),
    ):
        values.append(scores.detach())
        gradients.append(torch.autograd.grad(scores.sum(), weight)[0])
    # Normalization and rotary embeddings compute in fp32, whatever the model's dtype.
    for ours, plain in (values, gradients):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
        assert (ours - plain).norm() <= 1e-5 * plain.norm() + 1e-8


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    prefix=st.integers(0, 4),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_block_attention_equals_attention_under_the_dense_mask(lengths, prefix, chunk, seed):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [[[5, 6], [7, 8, 9]] for _ in prompts])
    row = join([row, pack([[4, 5]], [[[6, 7]]]), row])
    generator = torch.Generator().manual_seed(seed)
    tokens = row.input_ids.shape[1]
    states = [
        torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    weight = torch.randn(1, tokens, 4, 8, generator=generator, dtype=torch.float64)

    def on_gpu(compute):
        def attend(query, key, value, layout):
            rows = (state[0].transpose(0, 1) for state in (query, key, value))
            return compute(*rows, layout, 8**-0.5)[None]

        return attend

    results = []
    for compute in (
        attention.dense_attention,
        attention.block_attention,
        on_gpu(attention.fused_blocks),
        on_gpu(attention.flex_blocks),
    ):
        # PyTorch's uncompiled FlexAttention has gradients on a CPU, but refuses to give them.
        with patch.object(attention, "CHUNK", chunk), patch.object(flex_attention, "_validate_device"):
            out = compute(*states, row.layout)
            results.append([out.detach(), *torch.autograd.grad((out * weight).sum(), states)])
    for result in results[1:]:
        for ours, plain in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, plain)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    prefix=st.integers(0, 12),
    tile=st.sampled_from([2, 4, 8]),
)
def test_flex_attention_visits_every_tile_with_an_allowed_entry_and_no_other(lengths, prefix, tile):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    (block,) = pack(prompts, [[[5]] for _ in prompts]).layout
    with patch.object(flex, "TILE", tile):
        ours = flex.block_mask(block).to_dense()
    size = (1, 1, block.tokens, block.tokens)
    plain = flex_attention.create_block_mask(flex.allowed(block), *size, device="cpu", BLOCK_SIZE=tile)
    assert torch.equal(ours.bool(), plain.to_dense().bool())


def test_a_head_whose_logits_are_changed_afterwards_or_trained_is_left_to_the_model():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=11, num_key_value_heads=1, logits_scaling=4.0, **sizes)
    scaled = GraniteForCausalLM(config).requires_grad_(False)
    assert frozen_head(scaled) is None
    config.logits_scaling = 1.0
    plain = GraniteForCausalLM(config).requires_grad_(False)
    assert frozen_head(plain) is plain.lm_head
    plain.lm_head.requires_grad_(True)
    assert frozen_head(plain) is None


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
