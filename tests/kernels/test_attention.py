"""Attention by blocks is masked softmax attention, in value and gradient; models get it where that holds."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from transformers import AutoConfig, AutoModelForCausalLM

from fintune.kernels import attention, attention_cpu
from fintune.kernels.attention import allowed_plain, attention_plain
from fintune.kernels.likelihood import log_likelihoods_plain, span_log_likelihoods, target_nll
from fintune.kernels.packing import join, pack

ANSWERS = [[5, 6], [7, 8, 9]]


def row_of(lengths, prefix):
    """Prompts with a shared prefix, each with two branches; a prompt of its own; the first ones again."""
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [ANSWERS for _ in prompts])
    return join([row, pack([[4, 5]], [[[6, 7]]]), row])


def states_of(tokens, heads=(4, 2, 2), dim=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, each, tokens, dim, generator=generator, dtype=dtype, requires_grad=True)
        for each in heads
    ]


@pytest.mark.parametrize("heads", [(4, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("chunk", [2, 256])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(heads, chunk):
    """Probabilities are kept for the backward pass, or computed again two queries at a time."""
    row = join([pack([[1, 1, 2], [1, 1, 3, 4]], [ANSWERS, [[5]]]), pack([[4, 5]], [[[6, 7]]])])
    states = states_of(row.input_ids.shape[1], heads, dim=2)
    with patch.object(attention_cpu, "CHUNK", chunk):
        assert gradcheck(lambda *qkv: attention.block_attention(*qkv, row.layout), states)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    prefix=st.integers(0, 4),
    chunk=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_attention_by_blocks_is_attention_under_the_mask_of_the_whole_row(
    lengths, prefix, chunk, window, seed
):
    row = row_of(lengths, prefix)
    tokens = row.input_ids.shape[1]
    states = states_of(tokens, seed=seed)
    weight = torch.randn(1, tokens, 4, 4, dtype=torch.float64)

    def fused(query, key, value):
        rows = (state[0].transpose(0, 1) for state in (query, key, value))
        return attention.fused_blocks(*rows, row.layout, 4**-0.5, window)[None]

    results = []
    for compute in (
        lambda *qkv: attention_plain(*qkv, allowed_plain(row.layout, window)),
        lambda *qkv: attention.block_attention(*qkv, row.layout, window=window),
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
    wide = states_of(row.input_ids.shape[1], dtype=torch.float32, dim=16)
    narrow = [state.detach().bfloat16().requires_grad_() for state in wide]
    out = attention.block_attention(*narrow, row.layout)
    plain = attention_plain(*wide, allowed_plain(row.layout))
    assert out.dtype == torch.bfloat16
    gradients = [torch.autograd.grad(x.float().square().sum(), y) for x, y in ((out, narrow), (plain, wide))]
    for ours, theirs in ((out, plain), *zip(*gradients, strict=True)):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_a_prefix_whose_keys_are_in_a_cache_is_attended_to_as_if_it_stood_in_the_row():
    row = pack([[1, 1, 1, 2, 3], [1, 1, 1, 4]], [ANSWERS, ANSWERS])
    query, key, value = states_of(row.input_ids.shape[1])
    whole = attention_plain(query, key, value, allowed_plain(row.layout))
    row = row.after_prefix()
    assert row.input_ids.tolist() == [[2, 3, 5, 7, 8, 4, 5, 7, 8]]
    assert row.logit_positions.tolist()[:2] == [1, 2]
    out, _ = attention.attention_forward(None, query[:, :, 3:], key, value, None, layout=row.layout)
    torch.testing.assert_close(out, whole[:, 3:])


@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
def test_decoding_attends_to_what_is_no_padding(heads):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, h, t, 4, generator=generator) for h, t in ((heads[0], 1), (heads[1], 7), (heads[1], 7))
    )
    hidden = (torch.arange(7) < torch.tensor([[0], [2], [5]]))[:, None, None]
    layout = attention.Decode(hidden)
    out, _ = attention.attention_forward(None, query, key, value, None, scaling=0.3, layout=layout)
    torch.testing.assert_close(out, attention_plain(query, key, value, ~hidden, scaling=0.3))


def test_a_second_derivative_is_refused_and_not_wrong():
    row = pack([[1, 2], [1, 3]], [[[5]], [[6]]])
    states = states_of(row.input_ids.shape[1])
    out = attention.block_attention(*states, row.layout)
    (gradient,) = torch.autograd.grad(out.square().sum(), states[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def tiny(kind, **changes):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {
        "vocab_size": 41,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(kind, **(shape | own | changes))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.mark.parametrize(
    ("kind", "changes", "able"),
    [
        ("qwen2", {}, True),
        ("gpt_neox", {}, True),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}, True),
        ("mistral", {"sliding_window": 4}, False),
        ("gemma2", {"head_dim": 8}, False),  # windows, and scores that are capped
        ("stablelm", {}, False),  # its layers do not hand the layout on to their attention
        ("nemotron", {}, False),
        ("deepseek_v3", LATENT, False),  # values narrower than keys
    ],
)
def test_a_model_is_switched_to_blocks_only_where_they_compute_what_it_computes(kind, changes, able):
    model = tiny(kind, **changes)
    own = model.config._attn_implementation
    assert attention.enable(model) is able
    assert model.config._attn_implementation == (attention.NAME if able else own)
    assert attention.enable(model) is able  # again, by another engine
    prompts, completions = [[3, 4, 5, 6, 7], [3, 4, 9]], [[[5, 6], [7]], [[8, 9, 3]]]
    with torch.no_grad():
        plain = log_likelihoods_plain(model, prompts, completions)
        if able:
            row = pack(prompts, completions)
            scores = span_log_likelihoods(target_nll(model, row), row.owner, row.spans)
            torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-4)
