"""Every family of bases: several texts in one pass are what each is alone, in value and gradient."""

import re
from pathlib import Path

import pytest
import torch
from families import PACKED, PADDED, SHAPE, tiny
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM

from fintune.kernels import attention
from fintune.kernels.likelihood import frozen_head, target_nll
from fintune.kernels.packing import join, pack
from fintune.kernels.probing import length_warning


def nll_alone(model, prompts, completions):
    """The NLL of every target, a forward pass for each completion."""
    found = []
    for prompt, answers in zip(prompts, completions, strict=True):
        for answer in answers:
            logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
            found.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    return torch.cat(found)


PROMPTS = [[3, 4, 5, 6, 7, 8, 10, 11], [3, 4, 5, 6, 7, 9], [3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 17]]
ANSWERS = [[[20, 21, 22], [23]], [[24, 25, 26, 27, 28, 29]], [[30, 31]]]


@pytest.mark.parametrize("kind", [*PACKED, *PADDED])
def test_several_texts_in_one_pass_are_each_text_alone(kind):
    model = tiny(kind)
    head = model.get_output_embeddings().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "sinks" in name:  # constants for the kernels
            parameter.requires_grad_(False)
    weights = {name: each for name, each in model.named_parameters() if each.requires_grad}
    plain = nll_alone(model, PROMPTS, ANSWERS)
    share = torch.linspace(-1, 2, len(plain))
    expected = torch.autograd.grad((plain * share).sum(), list(weights.values()), allow_unused=True)
    found = attention.enable(model)
    assert length_warning(model, 9999) == ""
    assert found.way == ("packed" if kind in PACKED else "padded"), found
    assert bool(found.reason) == (kind in PADDED)
    rows = [pack(PROMPTS, ANSWERS, share=bool(found)), pack([PROMPTS[0]], [ANSWERS[0]])]
    row = join(rows)
    share = torch.cat([share, torch.zeros(4)])
    fast = frozen_head(model)
    assert fast.module is head
    for each in (fast, None):
        ours = target_nll(model, row, bool(found), each)
        torch.testing.assert_close(ours, torch.cat([plain, plain[:4]]), rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad((ours * share).sum(), list(weights.values()), allow_unused=True)
        for name, one, other in zip(weights, gradients, expected, strict=True):
            if other is not None:
                torch.testing.assert_close(
                    one, other, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_the_table_of_the_manual_names_these_families():
    manual = Path(__file__).parents[2] / "docs" / "training.md"
    rows = [line.split("|")[1:3] for line in manual.read_text(encoding="utf-8").splitlines() if "| `" in line]
    for way, kinds in (("packed rows", PACKED), ("padded batch", PADDED)):
        named = [kind for first, names in rows if way in first for kind in re.findall("`(.+?)`", names)]
        assert sorted(named) == sorted(kinds)


@pytest.mark.parametrize("kind", ["stablelm", "llama4_text", "mamba2", "mixtral"])
def test_a_base_that_is_only_laid_out_is_judged_alike(kind):
    """`fintune plan` has no weights."""
    with torch.device("meta"):
        model = type(tiny(kind))(tiny(kind).config)
        assert attention.enable(model).way == ("packed" if kind in PACKED else "padded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_mixes_tokens_or_texts_beside_attention_is_found(dtype):
    def after_a_layer(mix):
        model = tiny("llama").to(dtype)
        model.model.layers[1].register_forward_hook(lambda layer, given, hidden: mix(hidden))
        return attention.enable(model)

    assert after_a_layer(lambda hidden: hidden).way == "packed"
    token = after_a_layer(lambda hidden: hidden + pad(hidden[:, :-1], (0, 0, 1, 0)))
    assert token.way == "padded" and "by more than attention" in str(token)
    text = after_a_layer(lambda hidden: hidden - hidden.mean((0, 1), keepdim=True))
    assert text.way == "single" and "one text goes through at a time" in str(text)
    assert not text.several


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4}


@pytest.mark.parametrize(
    "kind, rope, usual",
    [
        ("phi3", LONG | {"original_max_position_embeddings": 32}, 32),
        ("llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 64),
    ],
)
def test_a_text_so_long_that_it_changes_its_neighbours_positions_is_warned_of(kind, rope, usual):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, rope_parameters=rope, original_max_position_embeddings=32)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    attention.enable(model)

    def beside(tokens):
        """NLL of a short text in a row with one of so many tokens."""
        row = join([pack([[3] * (tokens - 1)], [[[4, 4]]]), pack([[5, 6, 7]], [[[8]]])])
        return target_nll(model, row)[-1]

    torch.testing.assert_close(beside(usual), beside(4), rtol=1e-4, atol=1e-4)
    assert length_warning(model, usual) == ""
    assert (beside(4 * usual) - beside(4)).abs() > 1e-3
    assert f"{usual:,} or less" in length_warning(model, usual + 1)
