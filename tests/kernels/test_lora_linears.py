"""The function under the fast LoRA layers: its gradients, its precision, and what it keeps."""

import pytest
import torch
from torch.autograd import gradcheck

from fintune.kernels.lora_linears import cast_of, lora_linears, lora_plain, row_norms


def layers_of(count, biases, dtype, dropout=False, adapter=None, dora=False):
    """x, dropout's factors or None, scalings, frozen weights and biases, then what is trained (A, B and, with
    DoRA, magnitudes) and its norms, of layers that differ in size."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=dtype, grad=False):
        return torch.randn(*shape, generator=generator, dtype=dtype, requires_grad=grad)

    outs, ranks, adapter = range(4, 4 + count), range(2, 2 + count), adapter or dtype
    x, mask = random(2, 3, 5, grad=True), (random(2, 3, 5) > 0) / 0.6
    scalings = [0.5 * (i + 1) for i in range(count)]
    weights = [random(out, 5) for out in outs]
    a = [random(rank, 5, dtype=adapter, grad=True) for rank in ranks]
    b = [random(out, rank, dtype=adapter, grad=True) for out, rank in zip(outs, ranks, strict=True)]
    m = [random(out, dtype=adapter, grad=True) for out in outs] if dora else []
    frozen = weights, [random(out) if biases else None for out in outs]
    with torch.no_grad():
        norms = list(map(row_norms, weights, a, b, scalings)) if dora else []
    return x, mask if dropout else None, scalings, frozen, [*a, *b, *m], norms


def compute(function, x, mask, scalings, frozen, trained, norms, **options):
    n = len(scalings)
    parts = [trained[i : i + n] for i in range(0, len(trained), n)]
    dropped = None if mask is None else (x * mask).to(x.dtype)
    return function(x, dropped, scalings, *frozen, *parts, *([norms] if norms else []), **options)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(count, biases, dropout, dora, early):
    x, mask, scalings, frozen, trained, norms = layers_of(count, biases, torch.float64, dropout, dora=dora)

    def forward(x, *trained):
        return compute(lora_linears, x, mask, scalings, frozen, trained, norms, early=early)

    assert gradcheck(forward, [x, *trained])


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("dora", [True, False])
def test_layers_in_one_function_are_layers_one_by_one(dtype, near, dropout, dora):
    """The adapter's weights are wider than the base's, as in training."""
    wide = torch.promote_types(dtype, torch.float32)
    x, *layers, trained, norms = layers_of(3, True, dtype, dropout, wide, dora)
    results = []
    for function in (lora_linears, lora_plain):
        outs = compute(function, x, *layers, trained, norms)
        assert all(out.dtype == dtype for out in outs)
        loss = sum((i + 1) * out.float().square().sum() for i, out in enumerate(outs))
        results.append([*outs, *torch.autograd.grad(loss, [x, *trained])])
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        assert (ours - plain).norm() <= near * plain.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_those_of_the_whole_matrix(monkeypatch, dtype):
    """Also where its rows are taken some at a time."""
    monkeypatch.setattr("fintune.kernels.lora_linears.ROWS", 3)
    weight = torch.randn(7, 5).to(dtype)
    a, b = torch.randn(2, 5), torch.randn(7, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = row_norms(weight, a, b, 0.3)
    torch.testing.assert_close(found, (weight.double() + 0.3 * b.double() @ a.double()).norm(dim=1).float())


def test_a_factor_near_1_is_not_rounded_to_it():
    """DoRA's magnitudes change by less than the steps of bfloat16: 1.003 is 1 in it."""
    x, weight = torch.ones(1, 4).bfloat16(), torch.full((1, 4), 255 / 64).bfloat16()
    a, b, norm = torch.zeros(1, 4), torch.zeros(1, 1), torch.tensor([4.0])
    (out,) = lora_linears(x, None, [1.0], [weight], [None], [a], [b], [norm * 1.003], [norm])
    assert out.item() == 16.0  # of 15.985; with a factor of 1 it were 15.9375


def test_a_cast_at_hand_is_used():
    x, mask, scalings, frozen, trained, _ = layers_of(2, True, torch.float32)
    doubled = cast_of(torch.float32, [2 * a for a in trained[:2]], trained[2:])
    found = compute(lora_linears, x, mask, scalings, frozen, trained, [], cast=doubled)
    plain = compute(lora_plain, x, mask, [2 * s for s in scalings], frozen, trained, [])
    torch.testing.assert_close(found, plain)


def test_a_second_derivative_is_refused_and_not_wrong():
    x, *layers = layers_of(1, False, torch.float32)
    (out,) = compute(lora_linears, x, *layers)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
