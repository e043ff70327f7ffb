"""Every family of bases: several texts in one pass are what each is alone, in value and gradient."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fintune.kernels import attention
from fintune.kernels.likelihood import frozen_head, target_nll
from fintune.kernels.packing import join, pack

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    **EXPERTS,
}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
PACKED = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "ministral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5},
    "gemma3_text": {"sliding_window": 4},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": 4},
    "gpt_neox": {},
    "gpt2": {},
    "gpt_oss": {"sliding_window": 4, **EXPERTS},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 4},
    "mixtral": {"sliding_window": 4, **EXPERTS},
    "qwen3_moe": EXPERTS,
    "olmo2": {},
    "olmo3": {"sliding_window": 4},
    "smollm3": {},
    "glm4": {},
    "exaone4": {"sliding_window": 4},
    "starcoder2": {"sliding_window": 4},
    "deepseek_v3": LATENT,
}
PADDED = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": MAMBA,
    "stablelm": {},
    "nemotron": {},
    "llama4_text": {"attention_chunk_size": 4, **EXPERTS},
    "qwen3_next": LINEAR | EXPERTS,
    "bloom": {},
}


def tiny(kind):
    config = AutoConfig.for_model(kind, **(SHAPE | (PACKED | PADDED)[kind]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


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
