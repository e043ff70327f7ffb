"""The head in chunks is the head and a cross entropy, in value and gradient; spans are sums and means."""

from unittest.mock import patch

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fintune.kernels import attention, likelihood
from fintune.kernels.likelihood import Head, frozen_head, head_nll, nll_plain, target_nll
from fintune.kernels.packing import pack

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def head_of(dtype, bias, tokens=7, width=5, vocabulary=11):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    added = torch.randn(vocabulary, generator=generator, dtype=dtype) if bias else None
    return hidden, weight, added, torch.randint(vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (0.3, 2.0)])
def test_the_gradient_of_the_head_is_the_derivative_of_its_loss(bias, scale, cap):
    hidden, *rest = head_of(torch.float64, bias)
    with patch.object(likelihood, "chunk", lambda vocabulary: 3):
        assert gradcheck(lambda x: head_nll(x, *rest, scale, cap), [hidden])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (0.3, 2.0)])
def test_the_head_in_chunks_is_the_cross_entropy_of_all_logits(dtype, bias, scale, cap):
    hidden, weight, added, targets = head_of(dtype, bias, tokens=300, width=32, vocabulary=50)
    factor = torch.linspace(-1, 2, 300)
    head = Head(None, scale, cap)
    ours = head_nll(hidden, weight, added, targets, scale, cap)
    plain = nll_plain(head.logits(linear(hidden, weight, added)), targets)
    assert ours.dtype == plain.dtype == torch.promote_types(dtype, torch.float32)
    near = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 and scale != 1 else {}
    torch.testing.assert_close(ours, plain, **near)
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
    assert head == Head(model.lm_head)
    row = pack([[3, 4, 5], [3, 4, 6, 7]], [[[8, 9], [10]], [[11, 12, 13, 14]]])
    weights = [model.model.layers[0].self_attn.k_proj.weight, model.model.layers[1].mlp.up_proj.weight]
    plain = target_nll(model, row)
    expected = torch.autograd.grad(plain.square().sum(), weights)
    if checkpointed:
        model.train()
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with patch.object(likelihood, "chunk", lambda vocabulary: 3):
        ours = target_nll(model, row, head=head)
        found = torch.autograd.grad(ours.square().sum(), weights)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(found, expected)
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 41)  # the head is the model's own again


@pytest.mark.parametrize(
    ("kind", "changes", "scale", "cap"),
    [
        ("llama", {}, 1.0, None),
        ("granite", {"logits_scaling": 6.0}, 1 / 6, None),
        ("cohere", {"logit_scale": 0.0625}, 0.0625, None),
        ("gemma2", {"final_logit_softcapping": 30.0}, 1.0, 30.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_model_makes_of_its_heads_output_is_found(kind, changes, scale, cap, dtype):
    config = AutoConfig.for_model(
        kind, vocab_size=11, num_key_value_heads=1, pad_token_id=0, **SIZES, **changes
    )
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).to(dtype)
    head = frozen_head(model)
    assert head.module is model.lm_head
    assert (head.scale, head.cap) == (pytest.approx(scale, rel=1e-6), cap)


def test_a_head_that_is_trained_or_whose_logits_are_changed_in_another_way_is_left_to_the_model():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, num_key_value_heads=1, **SIZES)).requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert frozen_head(model) is None
    model.lm_head.requires_grad_(False)
    own = model.forward

    def shifted(*args, **kwargs):
        found = own(*args, **kwargs)
        found.logits = found.logits + 1
        return found

    model.forward = shifted
    assert frozen_head(model) is None


@pytest.mark.parametrize(("vocabulary", "targets"), [(32_000, 393), (49_152, 256), (262_144, 96)])
def test_the_heads_chunk_is_chosen_by_bytes(vocabulary, targets):
    assert likelihood.chunk(vocabulary) == targets


def test_a_spans_log_likelihood_is_a_sum_and_its_loss_a_mean():
    nll, owner = torch.tensor([1.0, 2.0, 6.0, 0.5]), torch.tensor([0, 1, 1, 2])
    assert likelihood.span_log_likelihoods(nll, owner, 3).tolist() == [-1.0, -8.0, -0.5]
    assert likelihood.span_mean_nll(nll, owner, 3).tolist() == [1.0, 4.0, 0.5]
