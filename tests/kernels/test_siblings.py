"""Layers are grouped by the tensor that they read, in every family, and compute there what PEFT's compute."""

import peft
import pytest
import torch
import transformers
from families import SMALL, small_llama

from fintune.kernels import lora, siblings

IDS = torch.arange(3, 21).view(2, 9)
SHAPE = SMALL | {"head_dim": 8, "pad_token_id": 0}
GPT2 = {"vocab_size": 41, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
DROPOUT = {
    name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout")
}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 1}

FAMILIES = {
    # name → its configuration, and how many layers each group of one decoder layer holds
    "Llama": (SHAPE, [3, 1, 2, 1]),
    "Qwen2": (SHAPE, [3, 1, 2, 1]),  # biases
    "Qwen3": (SHAPE, [3, 1, 2, 1]),  # normalized queries and keys
    "Gemma": (SHAPE, [3, 1, 2, 1]),
    "Gemma2": (SHAPE, [3, 1, 2, 1]),
    "Phi3": (SHAPE, [1, 1, 1, 1]),  # fused queries, keys and values, and gate and up
    "GPTNeoX": (SHAPE, [1, 1, 1, 1]),
    "GPT2": (GPT2, [1, 1, 1, 1]),  # transposed weights
    "Phi": (SHAPE, [3, 1, 1, 1]),  # biases, attention beside the MLP
    "Mixtral": (SHAPE | EXPERTS, [3, 1]),  # experts and router, no linear layers, keep PEFT's forward
}


def family(name):
    torch.manual_seed(0)
    changes, groups = FAMILIES[name]
    config = getattr(transformers, f"{name}Config")(**changes)
    for key, value in DROPOUT.items():
        if hasattr(config, key):
            setattr(config, key, value)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            parameter.data.normal_()  # they are 0 at first
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=name == "GPT2"
    )
    return peft.get_peft_model(model, config).train(), groups


def step(model):
    model.zero_grad()
    out = model(input_ids=IDS, labels=IDS, use_cache=False)
    out.loss.backward()
    return [out.logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_with_fast_layers_is_pefts_model(name):
    model, groups = family(name)
    plain = step(model)
    fast, layers = lora.enable(model)
    assert fast == 2 * sum(groups) == layers - (6 if name == "Mixtral" else 0)
    found = {
        id(group): group for module in model.modules() if (group := getattr(module, "fintune_group", None))
    }
    assert [len(group.layers) for group in found.values()] == 2 * groups
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    for ours, expected in zip(step(model), plain, strict=True):
        assert (ours - expected).norm() <= 1e-4 * expected.norm() + 1e-7


def test_a_look_leaves_the_layers_as_they_were_and_is_not_repeated(monkeypatch):
    model, _ = family("Llama")
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.Linear)]
    siblings.look(model, layers)
    assert not any("forward" in vars(layer) for layer in layers)
    q, k = (getattr(model.base_model.model.model.layers[0].self_attn, f"{name}_proj") for name in "qk")
    assert siblings.place(q).source == siblings.place(k).source
    monkeypatch.setattr(siblings, "one_token", None)
    siblings.look(model, layers)


def test_a_failing_look_leaves_the_layers_as_they_were(monkeypatch):
    model, _ = family("Llama")
    lora.enable(model)
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.Linear)]
    before = [layer.forward for layer in layers]
    for layer in layers:
        del layer.base_layer.__dict__[siblings.MARK]
    with pytest.raises(ValueError, match="exactly one"):
        monkeypatch.setattr(siblings, "one_token", lambda model: model())
        siblings.look(model, layers)
    assert [layer.forward for layer in layers] == before


def test_layers_of_a_model_that_is_only_laid_out_are_alone():
    with torch.device("meta"):
        model = small_llama()
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"]))
    assert lora.enable(model) == (4, 4)
    assert all(len(m.fintune_group.layers) == 1 for m in model.modules() if hasattr(m, "fintune_group"))
