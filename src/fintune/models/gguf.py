"""A model as a GGUF file, for llama.cpp: Llama, Mistral, Qwen2 and Qwen3, unquantized.

The vocabulary is that of the GGUF the base came from, or a byte-level BPE that llama.cpp knows by name; else
there is none, which fintune does not need (it hands llama.cpp token ids), but other programs do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.errors import ModelError

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Transformers' `model_type` → what llama.cpp calls it."""
DTYPES = {
    "f16": ("float16", "F16", "MOSTLY_F16"),
    "bf16": ("bfloat16", "BF16", "MOSTLY_BF16"),
    "f32": ("float32", "F32", "ALL_F32"),
}
"""What a dtype is called → by PyTorch, by GGUF of a tensor, and of a file."""
ELSEWHERE = (
    "export it with --format merged and convert that folder with llama.cpp's own convert_hf_to_gguf.py."
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""How a tokenizer splits text before its byte-level BPE → what llama.cpp calls it."""


def check(model_type: str) -> None:
    """Raise a ModelError for a base that cannot be written, before its weights are loaded."""
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"The base model is of the type {model_type}, and GGUF files are written of "
            f"{', '.join(ARCHITECTURES)} alone: {ELSEWHERE}"
        )


def write(path: Path, model: Any, folder: Path, dtype: str, vocabulary: Path | None, name: str) -> bool:
    """Write the weights and what llama.cpp must know of them; return whether the vocabulary is in it.

    Args:
        model: a causal LM of Transformers, with no adapter on it.
        folder: where its tokenizer is saved.
        dtype: one of `DTYPES`, of the matrices; vectors are float32 always.
        vocabulary: the GGUF whose vocabulary is taken over, where the base came from one.

    Raises:
        ModelError: llama.cpp computes this model in another way than Transformers.
    """
    import gguf
    import numpy as np
    import torch

    config = model.config.get_text_config()
    check(config.model_type)
    architecture = ARCHITECTURES[config.model_type]
    if getattr(config, "hidden_act", "silu") != "silu":
        raise ModelError(
            f"The base model's activation is {config.hidden_act}, and silu is known: {ELSEWHERE}"
        )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    factors, theta = _rope(model, config, head)
    if factors is not None and architecture != "llama":
        raise ModelError(f"The base model scales its positions, and so does no {architecture}: {ELSEWHERE}")

    _, kind, whole_file = DTYPES[dtype]
    file = gguf.GGUFWriter(path, architecture)
    file.add_type(gguf.GGUFType.MODEL)
    file.add_name(name)
    file.add_file_type(gguf.LlamaFileType[whole_file])
    file.add_vocab_size(config.vocab_size)
    # llama.cpp attends to everything before a token: within the window the two are the same.
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    file.add_context_length(min(window, config.max_position_embeddings))
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_head_count(heads)
    file.add_head_count_kv(groups)
    file.add_key_length(head)
    file.add_value_length(head)
    file.add_rope_dimension_count(head)
    file.add_rope_freq_base(theta)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary_written = _vocabulary(file, folder, config.vocab_size, vocabulary)

    tensors = dict(_tensors(model, config, architecture, factors))
    for own, tensor in tensors.items():
        vector = tensor.dim() == 1  # vectors are float32 always
        size = tensor.numel() * (4 if vector or dtype == "f32" else 2)
        stored = gguf.GGMLQuantizationType["F32" if vector else kind]
        file.add_tensor_info(own, tensor.shape, np.dtype(np.float32), size, stored)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    for own, tensor in tensors.items():  # one at a time, so that the model is not in memory twice
        if architecture == "llama" and own.endswith(("attn_q.weight", "attn_q.bias")):
            tensor = _interleaved(tensor, heads)
        elif architecture == "llama" and own.endswith(("attn_k.weight", "attn_k.bias")):
            tensor = _interleaved(tensor, groups)
        tensor = tensor.to(torch.float32 if tensor.dim() == 1 else getattr(torch, DTYPES[dtype][0]))
        if not torch.isfinite(tensor).all():
            raise ModelError(f"The tensor {own} does not fit into {dtype}: take --dtype bf16 or f32.")
        # numpy has no bfloat16: its bytes are written as they are.
        file.write_tensor_data(tensor.cpu().contiguous().view(torch.uint8).numpy())
    file.close()
    return vocabulary_written


def _tensors(model: Any, config: Any, architecture: str, factors: Any) -> Iterator[tuple[str, Any]]:
    """llama.cpp's name and the tensor, of everything the model has."""
    import gguf

    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise ModelError(f"The base model has a tensor {name}, which no {architecture} has: {ELSEWHERE}")
        yield own, tensor
    if factors is not None:
        yield "rope_freqs.weight", factors


def _interleaved(tensor: Any, heads: int) -> Any:
    """Rows of queries or keys as llama.cpp rotates them: pairs side by side, not half a head apart."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _rope(model: Any, config: Any, head: int) -> tuple[Any | None, float]:
    """What the rotation frequencies are divided by, (head / 2,), or None where by nothing; and their base."""
    import torch

    rotary = model.get_decoder().rotary_emb
    theta = float(config.rope_parameters["rope_theta"])
    own = rotary.inv_freq.detach().float().cpu()
    plain = theta ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    if own.shape != plain.shape or getattr(rotary, "attention_scaling", 1.0) != 1.0:
        raise ModelError(
            f"The base model's positions are of the kind {config.rope_parameters.get('rope_type')}, which is "
            f"not known: {ELSEWHERE}"
        )
    factors = plain / own
    return (None if torch.allclose(factors, torch.ones(()), rtol=1e-4) else factors), theta


def _vocabulary(file: Any, folder: Path, size: int, source: Path | None) -> bool:
    import gguf

    if source is not None:
        for key, field in gguf.GGUFReader(source).fields.items():
            if key.startswith("tokenizer."):
                value = field.contents()
                kind = field.types[0]
                inner = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
                file.add_key_value(key, value, kind, sub_type=inner)
        return True
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    name = pre_tokenizer_name(described)
    if name is None:
        file.add_tokenizer_model("none")
        return False
    tokens = {number: token for token, number in described["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(name)
    file.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(size)])
    file.add_token_types([kinds.get(i, gguf.TokenType.UNUSED) for i in range(size)])
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(file, quiet=True)
    return True


def pre_tokenizer_name(described: dict[str, Any]) -> str | None:
    """llama.cpp's name of how a `tokenizer.json` splits text before its byte-level BPE; None if unknown."""
    pre = described.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if described["model"]["type"] != "BPE" or not steps or steps[-1].get("type") != "ByteLevel":
        return None
    match steps[:-1]:
        case []:
            return "gpt-2" if steps[-1].get("use_regex", True) else None
        case [{"type": "Digits", "individual_digits": True}]:
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": pattern}}]:
            return _PATTERNS.get(pattern)
    return None
