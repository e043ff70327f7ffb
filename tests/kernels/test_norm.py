"""The fast RMS normalization is Transformers' own, in value and gradient, wherever it is put in its place."""

import copy

import pytest
import torch
from families import SMALL
from torch.autograd import gradcheck
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fintune.kernels import norm
from fintune.kernels.norm import rms_norm, rms_norm_plain


def states_of(dtype, width=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, width, generator=generator, dtype=dtype, requires_grad=True)
    return x, torch.randn(width, generator=generator, dtype=dtype)


@pytest.mark.parametrize("plus_one", [False, True])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(plus_one):
    x, weight = states_of(torch.float64)
    assert gradcheck(lambda states: rms_norm(states, weight, 1e-5, plus_one), [x])


def test_a_second_derivative_is_refused_and_not_wrong():
    x, weight = states_of(torch.float32)
    (gradient,) = torch.autograd.grad(rms_norm(x, weight, 1e-5).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("dtype", "of_weight"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),  # normalizations kept in fp32 over a base in 16 bits
    ],
)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
def test_the_fast_normalization_is_transformers_own(dtype, of_weight, kind):
    x, weight = states_of(dtype, width=64)
    plus_one = kind is GemmaRMSNorm
    own = kind(64, eps=1e-5).to(of_weight)
    own.weight.data.copy_(weight)
    plain = own.requires_grad_(False)(x)
    ours = rms_norm(x, own.weight, 1e-5, plus_one)
    assert ours.dtype == plain.dtype == rms_norm_plain(x, own.weight, 1e-5, plus_one).dtype
    torch.testing.assert_close(ours, plain)
    weights = torch.linspace(-1, 1, 64)
    found, expected = (torch.autograd.grad((y * weights).sum(), x)[0].float() for y in (ours, plain))
    assert (found - expected).norm() <= (1e-6 if dtype == torch.float32 else 0.01) * expected.norm()


@pytest.mark.parametrize(
    ("kind", "changes", "fast"),
    [
        ("llama", {}, 5),
        ("qwen3", {"head_dim": 8}, 9),  # queries and keys are normalized too
        ("gemma", {"head_dim": 8}, 5),  # its factor is 1 + w
        ("gemma3_text", {"head_dim": 8}, 13),
        ("cohere", {}, 0),  # it takes the mean off first
        ("mamba2", {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}, 3),
    ],
)
def test_a_model_computes_the_same_and_keeps_normalizations_of_another_kind(kind, changes, fast):
    """In Mamba-2 two of five are gated: the gate is a second argument."""
    config = AutoConfig.for_model(kind, **(SMALL | {"pad_token_id": 0} | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    for parameter in model.parameters():  # norms' weights are all 1 (Gemma's 0) at first
        parameter.add_(0.1 * torch.randn_like(parameter))
    plain = copy.deepcopy(model)
    assert norm.enable(model) == fast
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_normalization_that_is_trained_keeps_its_own_forward():
    layer = LlamaRMSNorm(8)
    assert norm.enable(torch.nn.Sequential(layer)) == 0
    assert norm.enable(torch.nn.Sequential(layer.requires_grad_(False))) == 1
