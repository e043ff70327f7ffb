"""Compiled layers compute what they computed before, and are compiled once, however long the rows."""

import copy

import torch
from families import tiny
from torch._dynamo.utils import counters

from fintune.config import LoraConfig
from fintune.kernels import attention, compiled, lora, norm
from fintune.kernels.likelihood import target_nll
from fintune.kernels.packing import join, pack
from fintune.models.adapters import add_adapter


def row_of(examples, length):
    prompts = [[1] * 4 + [5 + i] + [3] * (length + i) for i in range(examples)]
    return join([pack(prompts, [[[7, 8], [9]] for _ in prompts]), pack([[4, 5]], [[[6, 7]]])])


def test_compiled_layers_are_the_layers_and_are_compiled_once():
    """Of Gemma 3, which has windows, its own norms and two kinds of layers, with DoRA."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = add_adapter(
        tiny("gemma3_text").requires_grad_(False), LoraConfig(r=4, lora_dropout=0.0, use_dora=True)
    )
    for name, weight in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ours = copy.deepcopy(plain)
    for model in (plain, ours):
        assert attention.enable(model)
        lora.enable(model)
        norm.enable(model)
        model.train()
    assert compiled.enable(ours, backend="aot_eager") == 4
    counters.clear()
    graphs = []
    for row in (row_of(2, 3), row_of(5, 20), row_of(4, 6)):
        gradients = []
        for model in (plain, ours):
            loss = target_nll(model, row).mean()
            weights = [p for p in model.parameters() if p.requires_grad]
            gradients.append([loss.detach(), *torch.autograd.grad(loss, weights)])
        for theirs, found in zip(*gradients, strict=True):
            assert (found - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == graphs[:1] * len(graphs)
    with torch.no_grad():  # answers are not compiled
        target_nll(ours, row_of(1, 40))
    assert counters["stats"]["unique_graphs"] == graphs[0]


def test_a_layer_that_cannot_be_compiled_runs_as_usual_and_says_so(caplog):
    torch._dynamo.reset()
    model = add_adapter(tiny("llama").requires_grad_(False), LoraConfig(r=4, lora_dropout=0.0))
    assert attention.enable(model)
    lora.enable(model)
    plain = target_nll(model, row_of(2, 3))

    def broken(graph, inputs):
        raise RuntimeError("no such card")

    compiled.enable(model, backend=broken)
    torch.testing.assert_close(target_nll(model, row_of(2, 3)), plain)
    (line,) = (r.getMessage() for r in caplog.records if r.name == compiled.__name__)
    assert line.startswith("training.torch_compile: LlamaDecoderLayer cannot be compiled")
