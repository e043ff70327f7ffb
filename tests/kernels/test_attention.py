"""Attention by blocks is masked softmax attention, in value and gradient."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fintune.kernels import attention, attention_cpu
from fintune.kernels.attention_plain import allowed_plain, attention_plain
from fintune.kernels.packing import join, pack
from fintune.kernels.rule import Rule

ANSWERS = [[5, 6], [7, 8, 9]]
HALF = Rule(0.5)
SINKS = torch.linspace(-2, 2, 4, dtype=torch.float64)


def row_of(lengths, prefix):
    """Prompts with a shared prefix, each with two branches; a prompt of its own; the first ones again."""
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [ANSWERS for _ in prompts])
    return join([row, pack([[4, 5]], [[[6, 7]]]), row])


def states_of(tokens, heads=(4, 2, 2), dims=(4, 4, 4), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, each, tokens, dim, generator=generator, dtype=dtype, requires_grad=True)
        for each, dim in zip(heads, dims, strict=True)
    ]


@pytest.mark.parametrize("heads", [(4, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("chunk", [2, 256])
@pytest.mark.parametrize("rule", [HALF, Rule(0.5, 3, cap=0.7, sinks_H=SINKS)])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(heads, chunk, rule):
    """Probabilities are kept for the backward pass, or computed again two queries at a time."""
    row = join([pack([[1, 1, 2], [1, 1, 3, 4]], [ANSWERS, [[5]]]), pack([[4, 5]], [[[6, 7]]])])
    rule = replace(rule, sinks_H=None if rule.sinks_H is None else rule.sinks_H[: heads[0]])
    states = states_of(row.input_ids.shape[1], heads, dims=(2, 2, 3))
    with patch.object(attention_cpu, "CHUNK", chunk):
        assert gradcheck(lambda *qkv: attention.block_attention(*qkv, row.layout, rule), states)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    prefix=st.integers(0, 4),
    chunk=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(1, 12)),
    cap=st.sampled_from([None, 0.5]),
    sinks=st.sampled_from([None, SINKS]),
    seed=st.integers(0, 99),
)
def test_attention_by_blocks_is_attention_under_the_mask_of_the_whole_row(
    lengths, prefix, chunk, window, cap, sinks, seed
):
    """Values are wider than keys, as multi-head latent attention's are narrower."""
    row, rule = row_of(lengths, prefix), Rule(0.5, window, cap, sinks)
    tokens = row.input_ids.shape[1]
    states = states_of(tokens, dims=(4, 4, 6), seed=seed)
    weight = torch.randn(1, tokens, 4, 6, dtype=torch.float64)

    def fused(query, key, value):
        rows = (state[0].transpose(0, 1) for state in (query, key, value))
        return attention.fused_blocks(*rows, row.layout, rule)[None]

    results = []
    for compute in (
        lambda *qkv: attention_plain(*qkv, allowed_plain(row.layout, window), rule),
        lambda *qkv: attention.block_attention(*qkv, row.layout, rule),
        fused,
    ):
        with patch.object(attention_cpu, "CHUNK", chunk):
            out = compute(*states)
            results.append([out.detach(), *torch.autograd.grad((out * weight).sum(), states)])
    for result in results[1:]:
        for ours, plain in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, plain)


def test_attention_in_bfloat16_stays_close_to_fp32():
    row = row_of([3, 5], 4)
    wide = states_of(row.input_ids.shape[1], dims=(16, 16, 16), dtype=torch.float32)
    narrow = [state.detach().bfloat16().requires_grad_() for state in wide]
    out = attention.block_attention(*narrow, row.layout, HALF)
    plain = attention_plain(*wide, allowed_plain(row.layout), HALF)
    assert out.dtype == torch.bfloat16
    gradients = [torch.autograd.grad(x.float().square().sum(), y) for x, y in ((out, narrow), (plain, wide))]
    for ours, theirs in ((out, plain), *zip(*gradients, strict=True)):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_a_prefix_whose_keys_are_in_a_cache_is_attended_to_as_if_it_stood_in_the_row():
    row = pack([[1, 1, 1, 2, 3], [1, 1, 1, 4]], [ANSWERS, ANSWERS])
    query, key, value = states_of(row.input_ids.shape[1])
    whole = attention_plain(query, key, value, allowed_plain(row.layout), HALF)
    row = row.after_prefix()
    assert row.input_ids.tolist() == [[2, 3, 5, 7, 8, 4, 5, 7, 8]]
    assert row.logit_positions.tolist()[:2] == [1, 2]
    out, _ = attention.attention_forward(None, query[:, :, 3:], key, value, None, layout=row.layout)
    torch.testing.assert_close(out, whole[:, 3:])


@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
@pytest.mark.parametrize(("window", "cap", "sinks"), [(None, None, None), (3, 0.5, SINKS.float())])
def test_decoding_attends_to_what_is_no_padding_and_in_the_window(heads, window, cap, sinks):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, h, t, 4, generator=generator) for h, t in ((heads[0], 1), (heads[1], 7), (heads[1], 7))
    )
    hidden = (torch.arange(7) < torch.tensor([[0], [2], [5]]))[:, None, None]
    given = {"scaling": 0.3, "sliding_window": window, "softcap": cap, "s_aux": sinks}
    layout = attention.Decode(hidden)
    out, _ = attention.attention_forward(None, query, key, value, None, layout=layout, **given)
    seen = ~hidden & (torch.arange(7) > 6 - (window or 7))
    torch.testing.assert_close(out, attention_plain(query, key, value, seen, Rule(0.3, None, cap, sinks)))


def test_a_second_derivative_is_refused_and_not_wrong():
    row = pack([[1, 2], [1, 3]], [[[5]], [[6]]])
    states = states_of(row.input_ids.shape[1])
    out = attention.block_attention(*states, row.layout, HALF)
    (gradient,) = torch.autograd.grad(out.square().sum(), states[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("rule", [HALF, Rule(0.5, 4), Rule(0.5, 4, cap=0.7, sinks_H=SINKS)])
@pytest.mark.parametrize("compute", [attention_cpu.decode, attention.decode_fused])
def test_a_new_token_sees_the_same_keys_in_growing_buffers_and_in_fixed_ones(rule, compute, monkeypatch):
    """Three texts of 3, 7 and 6 tokens, the new one included, in buffers with room for 10."""
    monkeypatch.setattr(attention_cpu, "decode", compute)
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(3, heads, tokens, 4, generator=generator, dtype=torch.float64)
        for heads, tokens in ((4, 1), (2, 10), (2, 10))
    )
    place, padding = torch.tensor([6]), torch.tensor([4, 0, 1])
    at = torch.arange(10)
    hidden = (at < padding[:, None])[:, None, None]
    near = at[None] > 6 - (rule.window or 10)
    wanted = attention_plain(query, keys[:, :, :7], values[:, :, :7], ~hidden[..., :7] & near[:, :7], rule)
    growing = attention.Decode(hidden[..., :7])
    fixed = attention.Decode(hidden | (at > place), place)
    found = attention.decode_attention(query, keys[:, :, :7], values[:, :, :7], growing, rule)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(attention.decode_attention(query, keys, values, fixed, rule), wanted)
