"""The step's loss is the stated formula, and how a step is cut into rows changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.kernels.likelihood import span_log_likelihoods, span_mean_nll, target_nll
from fintune.prompts import Levels, TokenizedExample
from fintune.training.steps import StepBuilder

WEIGHTS = {"a": 1.0, "b": 2.5}


def step_loss(model, examples, **cut):
    step = StepBuilder(examples, [list(range(len(examples)))], WEIGHTS, **cut)[0]
    loss = sum(
        (w * span_mean_nll(target_nll(model, row), row.owner, len(w))).sum()
        for row, w in zip(step.rows, step.weights, strict=True)
    )
    return loss, step


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


LEVELS = ([6, 9], [6, 7, 9], [8, 9])


def numbers(count, own=0):
    means = (-1.0, 0.5, 2.0)
    return [
        TokenizedExample(
            [1, 2, 5 + i], LEVELS[own], "a", levels=Levels(LEVELS, own, means, 0.75 * i - 1, 1.5)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("row_size", [1, 2, 99])
def test_the_expectations_loss_and_gradient_are_those_of_the_plain_computation(model, row_size):
    batch = [*numbers(3, own=1), TokenizedExample([1, 2, 7, 8], [9, 10, 11], "b")]
    weight, factor = model.model.layers[1].mlp.up_proj.weight, 0.7
    plain = torch.zeros((), dtype=torch.float64)
    for e in batch:
        scores, mean_nll = [], None
        for ids in e.levels.completions if e.levels else [e.completion_ids]:
            logits = model(torch.tensor([e.prompt_ids + ids])).logits[0, len(e.prompt_ids) - 1 : -1]
            own = logits.log_softmax(1)[range(len(ids)), ids]
            scores.append(own.sum())
            if ids == e.completion_ids:
                mean_nll = -own.mean()
        loss = mean_nll
        if e.levels:
            p = torch.stack(scores).softmax(0)
            expected = sum(q * m for q, m in zip(p, e.levels.means, strict=True))
            loss = loss + factor * (expected - e.levels.target) ** 2 / e.levels.variance
        plain = plain + WEIGHTS[e.task] / (3 * 1.0 + 2.5) * loss
    step = StepBuilder(batch, [[0, 1, 2, 3]], WEIGHTS, row_size, 999)[0]
    total = torch.zeros((), dtype=torch.float64)
    for row, w, own in zip(step.rows, step.weights, step.expectations, strict=True):
        nll = target_nll(model, row)
        total = total + (w * span_mean_nll(nll, row.owner, row.spans)).sum()
        if own is not None:
            total = total + factor * own.loss(span_log_likelihoods(nll, row.owner, row.spans))
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (total, plain)]
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
    assert sorted(task for tasks in step.tasks for task in tasks if task) == ["a", "a", "a", "b"]
    assert step.examples == 4


def test_training_the_expectation_lowers_the_squared_error_more_than_the_likelihood_alone(model):
    """Targets that lie between levels, where the nearest level's likelihood is not the whole error."""
    import copy

    batch = numbers(4, own=1)
    errors = []
    for factor in (0.0, 3.0):
        learner = copy.deepcopy(model)
        learner.train()
        optimizer = torch.optim.Adam(learner.model.layers[1].mlp.parameters(), lr=3e-3)
        step = StepBuilder(batch, [[0, 1, 2, 3]], WEIGHTS, 99, 999)[0]
        (row,), (weights,), (own,) = step.rows, step.weights, step.expectations
        for _ in range(30):
            nll = target_nll(learner, row)
            error = own.loss(span_log_likelihoods(nll, row.owner, row.spans))
            loss = (weights * span_mean_nll(nll, row.owner, row.spans)).sum() + factor * error
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors.append(float(error.detach()))
    assert errors[1] < 0.8 * errors[0]
