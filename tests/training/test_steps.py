"""The step's loss is the stated formula, and how a step is cut into rows changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.kernels.likelihood import target_nll
from fintune.prompts import TokenizedExample
from fintune.training.objectives import Likelihood, Scores
from fintune.training.steps import StepBuilder
from fintune.training.trainer import _whole_step

WEIGHTS = {"a": 1.0, "b": 2.5}


def loss_of(model, objective, step):
    """Σ over a step's rows, as the trainer adds them."""
    total = torch.zeros((), dtype=torch.float64)
    for row in step.rows:
        scores = Scores(target_nll(model, row.packed), row.packed.owner, row.packed.spans, None)
        total = total + (row.weights * objective.loss(scores, row)).sum()
    return total


def step_loss(model, examples, **cut):
    step = StepBuilder(examples, [list(range(len(examples)))], WEIGHTS, **cut)[0]
    return loss_of(model, Likelihood(), step), step


def test_a_process_without_examples_takes_part_with_rows_that_count_for_nothing():
    batch = [TokenizedExample([1, 2, 5], [6], "a")]
    steps = [StepBuilder(batch, [[0]], WEIGHTS, 9, 99, rank=rank, world=2)[0] for rank in range(2)]
    (row,), (idle,) = (step.rows for step in steps)
    assert (float(row.weights), row.counted) == (1.0, True)
    assert (float(idle.weights), idle.counted) == (0.0, False)
    assert (steps[1].examples, steps[1].tokens, steps[1].targets, steps[1].slots) == (0, 0, 0, 0)
    padded = steps[0].padded(3)
    assert [each.counted for each in padded.rows] == [True, False, False] and padded.tokens == steps[0].tokens


ids = st.lists(st.integers(3, 29), min_size=1, max_size=5)
examples = st.lists(
    st.builds(
        lambda own, answer, task: TokenizedExample([1, 2, *own], answer, task),
        ids,
        ids,
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=20, deadline=None)
@given(examples, st.integers(1, 8), st.integers(1, 60), st.booleans())
def test_the_loss_and_its_gradient_do_not_depend_on_the_rows(model, batch, row_size, row_tokens, share):
    weight = model.model.layers[1].mlp.up_proj.weight
    results = []
    for cut in (
        {"row_size": 99, "row_tokens": 999},
        {"row_size": row_size, "row_tokens": row_tokens, "share": share},
    ):
        loss, _ = step_loss(model, batch, **cut)
        results.append((loss.detach(), torch.autograd.grad(loss, weight)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_weighted_mean_of_each_examples_mean_nll(model):
    batch = [
        TokenizedExample([1, 2, 5], [6], "a"),
        TokenizedExample([1, 2, 7, 8], [9, 10, 11], "b"),
        TokenizedExample([1, 2, 4], [3, 5], "b"),
    ]
    expected = 0.0
    for e in batch:
        logits = model(torch.tensor([e.prompt_ids + e.completion_ids])).logits[0, len(e.prompt_ids) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(e.completion_ids))
        expected += WEIGHTS[e.task] * float(nll.detach())
    expected /= 1.0 + 2.5 + 2.5
    loss, step = step_loss(model, batch, row_size=2, row_tokens=999)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert step.examples == 3
    assert step.plain_tokens == sum(len(e) - 1 for e in batch)
    assert step.tokens < step.plain_tokens


def test_a_step_from_a_worker_is_the_step_in_one_piece_of_memory():
    batch = [TokenizedExample([1, 2, 5 + i], [6, 7], "ab"[i % 2]) for i in range(7)]
    builder = StepBuilder(batch, [range(7)] * 2, WEIGHTS, 2, 99)
    loader = torch.utils.data.DataLoader(builder, batch_size=1, collate_fn=_whole_step, num_workers=1)
    for found in loader:
        for row, own in zip(found.rows, builder[0].rows, strict=True):
            assert torch.equal(row.packed.input_ids, own.packed.input_ids)
            assert torch.equal(row.weights, own.weights)
            assert torch.equal(row.packed.layout[-1].places, own.packed.layout[-1].places)
        assert len({row.weights.untyped_storage().data_ptr() for row in found.rows}) == 1 < len(found.rows)
