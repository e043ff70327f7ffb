"""Every family of bases: several texts in one pass are what each is alone, in value and gradient."""

import pytest
import torch
from families import PACKED, PADDED, tiny

from fintune.kernels import attention
from fintune.kernels.likelihood import frozen_head, target_nll
from fintune.kernels.packing import join, pack


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
