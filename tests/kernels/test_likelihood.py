"""The head in chunks is the head and a cross entropy, in value and gradient; spans are sums and means."""

from unittest.mock import patch

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import linear
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from fintune.kernels import attention, likelihood
from fintune.kernels.likelihood import frozen_head, head_nll, nll_plain, target_nll
from fintune.kernels.packing import pack

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def head_of(dtype, bias, tokens=7, width=5, vocabulary=11):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    added = torch.randn(vocabulary, generator=generator, dtype=dtype) if bias else None
    return hidden, weight, added, torch.randint(vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_of_the_head_is_the_derivative_of_its_loss(bias):
    hidden, *rest = head_of(torch.float64, bias)
    with patch.object(likelihood, "CHUNK", 3):
        assert gradcheck(lambda x: head_nll(x, *rest), [hidden])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_chunks_is_the_cross_entropy_of_all_logits(dtype, bias):
    hidden, weight, added, targets = head_of(dtype, bias, tokens=300, width=32, vocabulary=50)
    factor = torch.linspace(-1, 2, 300)
    ours = head_nll(hidden, weight, added, targets)
    plain = nll_plain(linear(hidden, weight, added), targets)
    assert ours.dtype == plain.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(ours, plain)
    found, expected = (
        torch.autograd.grad((each * factor).sum(), hidden)[0].float() for each in (ours, plain)
    )
    assert (found - expected).norm() <= (0.01 if dtype == torch.bfloat16 else 1e-6) * expected.norm()


def test_a_second_derivative_of_the_head_is_refused_and_not_wrong():
    hidden, *rest = head_of(torch.float32, bias=False)
    (gradient,) = torch.autograd.grad(head_nll(hidden, *rest).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_row_through_the_frozen_head_is_the_row_through_the_models_own(tied, checkpointed):
    """Also where the forward pass is computed again for the backward pass."""
    config = LlamaConfig(vocab_size=41, num_key_value_heads=1, tie_word_embeddings=tied, **SIZES)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double()
    model.get_output_embeddings().requires_grad_(False)  # the embeddings too, where they are tied
    assert attention.enable(model)
    head = frozen_head(model)
    assert head is model.lm_head
    row = pack([[3, 4, 5], [3, 4, 6, 7]], [[[8, 9], [10]], [[11, 12, 13, 14]]])
    weights = [model.model.layers[0].self_attn.k_proj.weight, model.model.layers[1].mlp.up_proj.weight]
    plain = target_nll(model, row)
    expected = torch.autograd.grad(plain.square().sum(), weights)
    if checkpointed:
        model.train()
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with patch.object(likelihood, "CHUNK", 3):
        ours = target_nll(model, row, head=head)
        found = torch.autograd.grad(ours.square().sum(), weights)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(found, expected)
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 41)  # the head is the model's own again


def test_a_head_whose_logits_are_changed_afterwards_or_trained_is_left_to_the_model():
    config = GraniteConfig(vocab_size=11, num_key_value_heads=1, logits_scaling=4.0, **SIZES)
    scaled = GraniteForCausalLM(config).requires_grad_(False)
    assert frozen_head(scaled) is None
    config.logits_scaling = 1.0
    plain = GraniteForCausalLM(config).requires_grad_(False)
    assert frozen_head(plain) is plain.lm_head
    plain.lm_head.requires_grad_(True)
    assert frozen_head(plain) is None


def test_a_spans_log_likelihood_is_a_sum_and_its_loss_a_mean():
    nll, owner = torch.tensor([1.0, 2.0, 6.0, 0.5]), torch.tensor([0, 1, 1, 2])
    assert likelihood.span_log_likelihoods(nll, owner, 3).tolist() == [-1.0, -8.0, -0.5]
    assert likelihood.span_mean_nll(nll, owner, 3).tolist() == [1.0, 4.0, 0.5]
