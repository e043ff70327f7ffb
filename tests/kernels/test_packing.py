"""A packed row computes what separate sequences compute: losses and their gradients."""

import gc
import tracemalloc
import weakref
from unittest.mock import patch

import torch
from copies import Copies
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.kernels import flex, packing
from fintune.kernels.likelihood import (
    log_likelihoods_plain,
    span_log_likelihoods,
    span_mean_nll,
    target_nll,
)
from fintune.kernels.packing import common_prefix_length, join, moved, pack, rows_of

TOKEN = st.integers(3, 40)
TEXT = st.lists(TOKEN, min_size=1, max_size=7)
ANSWERED = [[[5, 6], [7, 8, 9]], [[9, 9]], [[4]], [[3, 3, 3]]]
ANSWERS = st.lists(st.lists(TOKEN, min_size=1, max_size=4), min_size=1, max_size=3)


def tensors_of(row):
    (block,) = row.layout
    return [
        *(row.input_ids, row.position_ids, row.logit_positions, row.targets, row.owner),
        *(block.places, block.branch, block.positions),
    ]


def test_a_row_is_laid_out_as_the_module_draws_it():
    p, a, b, (x, y, z, w, e, u, v) = 1, 2, 3, range(10, 17)
    row = pack([[p, p, p, a, a], [p, p, p, b, b, b]], [[[x, y], [z, w, e]], [[u, v]]])
    (block,) = row.layout
    assert row.input_ids.tolist() == [[p, p, p, a, a, x, z, w, b, b, b, u]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 5, 6, 3, 4, 5, 6]]
    assert block.branch.tolist() == [0, 0, 1, 2, 2, 0, 0, 0, 1]
    assert row.targets.tolist() == [x, y, z, w, e, u, v]
    assert row.logit_positions.tolist() == [4, 5, 4, 6, 7, 10, 11]
    assert row.owner.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert (block.tokens, block.prefix_length, block.longest, block.slots, row.spans) == (12, 3, 5, 13, 3)
    assert block.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # of 2 suffixes padded to 5
    assert block.places_with_prefix.tolist() == [3, 4, 5, 6, 7, 11, 12, 13, 14]


@settings(max_examples=25, deadline=None)
@given(
    prefix=st.lists(TOKEN, max_size=6),
    rest=st.lists(st.tuples(TEXT, ANSWERS), min_size=1, max_size=4),
    other=st.lists(st.tuples(TEXT, ANSWERS), max_size=2),
    share=st.booleans(),
)
def test_the_loss_of_a_row_and_its_gradient_are_those_of_separate_sequences(
    model, prefix, rest, other, share
):
    """`other`: prompts with a prefix of their own, joined to the same row."""
    prompts, completions = [prefix + own for own, _ in rest], [answers for _, answers in rest]
    rows = [pack(prompts, completions, share)]
    if other:
        own, answers = [ids for ids, _ in other], [answers for _, answers in other]
        prompts, completions = prompts + own, completions + answers
        rows.append(pack(own, answers, share))
    row = join(rows)
    lengths = torch.tensor([len(answer) for answers in completions for answer in answers])
    nll = target_nll(model, row)
    plain = log_likelihoods_plain(model, prompts, completions)
    weights = [model.model.embed_tokens.weight, model.model.layers[0].self_attn.k_proj.weight]
    for ours, theirs in (
        (span_log_likelihoods(nll, row.owner, row.spans), plain),
        (span_mean_nll(nll, row.owner, row.spans), -plain / lengths),
    ):
        # Normalization and rotary embeddings compute in fp32, whatever the model's dtype.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for weight in weights:
            found, expected = (
                torch.autograd.grad((scores * lengths).sum(), weight, retain_graph=True)[0]
                for scores in (ours, theirs)
            )
            assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-8


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_common_prefix_is_the_longest_that_leaves_every_sequence_a_token_of_its_own(sequences):
    length, shortest = common_prefix_length(sequences), min(map(len, sequences))
    assert length < shortest
    assert len({tuple(sequence[:length]) for sequence in sequences}) == 1
    if length < shortest - 1:
        assert len({tuple(sequence[: length + 1]) for sequence in sequences}) > 1


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from("ab")), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 80),
)
def test_rows_hold_every_example_once_within_their_limits(examples, row_size, row_tokens):
    lengths, groups = zip(*examples, strict=True)
    rows = rows_of(lengths, groups, row_size, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    for row in rows:
        assert len(row) <= row_size
        assert len({groups[i] for i in row}) == 1
        assert len(row) == 1 or sum(lengths[i] for i in row) <= row_tokens


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 4))
def test_a_row_goes_to_another_device_in_one_copy(lengths, prefix):
    """The meta device stands for a GPU: what arrives has the same shapes, and bytes are copied once."""
    prompts = [[1] * prefix + [5 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, ANSWERED[: len(prompts)])
    with Copies() as copies:
        there = row.to("meta")
    assert len(copies.seen) == 1
    assert there.spans == row.spans
    assert there.layout[0].lengths == row.layout[0].lengths
    for ours, theirs in zip(tensors_of(there), tensors_of(row), strict=True):
        assert (ours.device.type, ours.shape, ours.dtype) == ("meta", theirs.shape, theirs.dtype)


def test_things_that_are_moved_keep_their_values(monkeypatch):
    row = pack([[1, 2, 3], [1, 2, 4, 5]], ANSWERED[:2])
    numbers = torch.arange(5) / 3
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: torch.device("meta")))
    (again, (same, name)) = moved([row, (numbers, "name")], "cpu")
    monkeypatch.undo()
    assert name == "name"
    assert torch.equal(same, numbers)
    assert all(map(torch.equal, tensors_of(again), tensors_of(row)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 4), st.integers(1, 9))
def test_a_part_of_a_mask_is_the_same_kept_or_made_anew(lengths, prefix, window):
    prompts = [[1] * prefix + [5 + i] + [2] * n for i, n in enumerate(lengths)]
    (block,) = pack(prompts, ANSWERED[: len(prompts)], prefix=prefix).layout
    for in_prefix in (False, True)[: 1 + bool(prefix)]:
        mask = block.mask(window, in_prefix)
        middle = mask.queries // 2
        kept = mask.hidden(middle, mask.queries)
        with patch.object(packing, "WHOLE", 0):
            assert torch.equal(mask.hidden(middle, mask.queries), kept)


def test_a_long_text_is_packed_without_a_mask_of_its_pairs():
    tracemalloc.start()
    pack([list(range(16_384))], [[[1, 2]]])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_384 * 300


def test_a_rows_masks_go_when_it_goes():
    """Without waiting for Python to look for circles: on a GPU they hold its memory."""
    row = pack([[1, 1, 2], [1, 1, 3, 4]], ANSWERED[:2])
    assert row.layout[0].mask().whole.any()
    flex.block_mask(row.layout)
    gone = weakref.ref(row.layout[0])
    gc.disable()
    try:
        del row
        assert gone() is None
    finally:
        gc.enable()
