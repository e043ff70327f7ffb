"""Fast LoRA layers compute what PEFT's compute: outputs, and the gradient of every trained weight."""

import copy

import peft
import pytest
import torch
from families import small_llama

from fintune.kernels import lora
from fintune.models import recomputation
from fintune.models.adapters import mixed_precision
from fintune.training.validating import Best

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 21).view(2, 9)


class SameMask(torch.nn.Dropout):
    """Dropout that drops the same places at every call, so that two models can be compared."""

    def forward(self, x):
        torch.manual_seed(0)
        return super().forward(x)


def base():
    model = small_llama(attention_bias=True, initializer_range=0.3)
    for name, parameter in model.named_parameters():  # biases are 0 at first
        if name.endswith("bias"):
            parameter.data.normal_()
    return model


def adapted(**changes):
    config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": False}
    return peft.get_peft_model(base(), peft.LoraConfig(**(config | changes)))


def gradients(model):
    model.zero_grad()
    out = model(input_ids=IDS, labels=IDS, use_cache=False)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours, plain):
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-4, atol=1e-4)
    assert ours[1].keys() == plain[1].keys()
    for name, expected in plain[1].items():
        assert expected is not None and (ours[1][name] - expected).norm() <= 1e-4 * expected.norm() + 1e-8


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_model_with_fast_layers_is_pefts_model(dropout, rslora, dora, checkpointed):
    """Biased base layers, siblings in groups, also where the forward pass is computed twice."""
    model = adapted(lora_dropout=dropout, use_rslora=rslora, use_dora=dora).train()
    if dropout:
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.lora_dropout["default"] = SameMask(dropout)
    plain = gradients(model)
    assert lora.enable(model) == (14, 14)
    groups = {id(module.fintune_group) for module in model.modules() if hasattr(module, "fintune_group")}
    assert len(groups) == 2 * 4  # q with k and v; o; gate with up; down
    if checkpointed:
        recomputation.enable(model)
    assert_same(gradients(model), plain)
    lora.disable(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "fast"),
    [
        ({"lora_bias": True}, 0),
        ({"bias": "lora_only"}, 6),  # the biases of q, k, v and o are trained
        ({"bias": "all"}, 6),
        ({"use_dora": True}, 14),
        ({"use_dora": True, "rank_pattern": {"k_proj": 2}}, 14),
        ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 3}}, 14),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, 6),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 2),
    ],
)
def test_adapters_of_another_kind_keep_pefts_forward_layer_by_layer(changes, fast):
    model = adapted(**changes)
    plain = gradients(model)
    assert lora.enable(model)[0] == fast
    assert_same(gradients(model), plain)


def test_what_is_done_to_an_adapter_afterwards_holds():
    """Switched off, merged, or changed for one of another kind, which is not computed as plain LoRA."""
    model = adapted().eval()
    model.add_adapter(
        "other",
        peft.LoraConfig(r=4, target_modules=ATTENTION, use_dora=True, init_lora_weights=False),
    )
    plain = copy.deepcopy(model)
    assert lora.enable(model) == (14, 14)
    outs = []
    with torch.no_grad():
        for each in (model, plain):
            found = [each(IDS).logits]
            with each.disable_adapter():
                found.append(each(IDS).logits)
            each.merge_adapter()
            found.append(each(IDS).logits)
            each.unmerge_adapter()
            each.set_adapter("other")
            found.append(each(IDS).logits)
            outs.append(found)
    for ours, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outs[0][0], outs[0][3], atol=1e-2)


@pytest.mark.parametrize("dora", [True, False])
def test_bfloat16_over_fp32_adapters_is_near_to_fp32(dora):
    """As near as PEFT's layers are, of which each rounds more often."""
    whole = adapted(use_dora=dora)
    exact = gradients(whole)
    model = copy.deepcopy(whole)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()

    def distance():
        with mixed_precision(model):
            found = gradients(model)
        return [(found[0] - exact[0]).norm() / exact[0].norm()] + [
            (found[1][name] - expected).norm() / expected.norm() for name, expected in exact[1].items()
        ]

    pefts = distance()
    lora.enable(model)
    ours = distance()
    assert sum(ours) <= 1.2 * sum(pefts)
    assert max(ours) < 0.2


def answers(model):
    with torch.no_grad(), mixed_precision(model):
        return model(input_ids=IDS, use_cache=False).logits


def stepped(model):
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1).step()


def loaded(model):
    state = peft.get_peft_model_state_dict(model)
    peft.set_peft_model_state_dict(model, {name: value * 1.5 for name, value in state.items()})


def given_back(model):
    best = Best()
    best.take(model, 1, 0.0)
    for name in best.weights:
        best.weights[name] *= 1.5
    best.give_back(model)


def switched(model):
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    model.set_adapter("other")
    if any("fintune_group" in vars(module) for module in model.modules()):
        lora.disable(model)
        assert lora.enable(model) == (14, 14)


@pytest.mark.parametrize("change", [stepped, loaded, given_back, switched])
@pytest.mark.parametrize("dora", [True, False])
def test_answers_follow_the_weights(change, dora):
    """Nothing that was derived of the weights before serves after them: casts, and DoRA's norms."""
    model = adapted(use_dora=dora).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    lora.enable(model)
    before = answers(model)
    with mixed_precision(model):
        change(model)
    after = answers(model)
    lora.disable(model)
    lora.enable(model)
    assert torch.equal(after, answers(model))
    assert not torch.allclose(after, before, rtol=0.1, atol=0.4)


def test_an_output_made_without_gradients_does_not_serve_a_sibling_that_needs_them():
    model = adapted()
    lora.enable(model)
    attention = model.base_model.model.model.layers[0].self_attn
    x = torch.randn(1, 3, 32)
    with torch.no_grad():
        attention.q_proj(x)
    assert attention.k_proj(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiler_sees_a_group_as_one_graph(dtype):
    model = adapted(target_modules=["gate_proj", "up_proj", "down_proj"])
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    lora.enable(model)
    mlp, x = model.base_model.model.model.layers[0].mlp, torch.randn(1, 5, 32, dtype=dtype)
    assert torch._dynamo.explain(mlp)(x).graph_break_count == 0
    found = []
    for compute in (mlp, torch.compile(mlp, backend="aot_eager", fullgraph=True)):
        own = x.clone().requires_grad_()
        out = compute(own)
        found.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), [own, *trained(mlp)])])
    near = 1e-4 if dtype == torch.float32 else 0.03
    for compiled, plain in zip(*found, strict=True):
        assert (compiled - plain).norm() <= near * plain.norm()


def trained(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
