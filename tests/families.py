"""Tiny random models of many families, by what several texts in one pass are for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SMALL = {
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def small_llama(**changes):
    """A random Llama of the shape `SMALL`, or with changes."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SMALL | changes)))


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
