"""Write a model as a GGUF file for llama.cpp: Llama, Mistral, Qwen2 and Qwen3.

Matrices are floats, or 4-, 5- or 8-bit blocks from the quantizers of the package gguf, or llama.cpp's own
K-quants if its tool is installed.

The vocabulary comes from the GGUF that the base came from, or is a byte-level BPE that llama.cpp knows by
name. Otherwise there is none: fintune does not need one (it passes token ids), but other programs do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.errors import ModelError
from fintune.models.endings import begins_with_bos, end_tokens
from fintune.models.placement import Process, base_device

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Transformers' `model_type` → llama.cpp's name."""
DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
"""Our name of a dtype → PyTorch's."""
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_SAME_GRID = {
    "Q8_0": ("q8_0",),
    "Q5_1": ("q5_1",),
    "Q5_0": ("q5_0",),
    "Q4_1": ("q4_1", "q5_1"),
    "Q4_0": ("q4_0", "q5_0"),
}
"""A type of blocks that a base was rounded to → the types whose values are the same, or include them."""
"""Blocks of 32 numbers with a scale, and with a minimum if the name ends in 1."""
K_QUANTS = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k")
"""The types that `llama-quantize` makes."""
QUANTIZE = "llama-quantize"
ELSEWHERE = (
    "export it with --format merged and convert that folder with llama.cpp's own convert_hf_to_gguf.py."
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""How a tokenizer splits text before its byte-level BPE → llama.cpp's name of it."""


def check(model_type: str, dtype: str) -> None:
    """Raise a ModelError for a model or type that cannot be written, before weights are loaded."""
    if dtype in K_QUANTS and shutil.which(QUANTIZE) is None:
        raise ModelError(
            f"--dtype {dtype} needs llama.cpp's {QUANTIZE}, which is not on the PATH: install "
            f"llama.cpp, or use {', '.join(BLOCKS)}, which need no tool."
        )
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"The base model is of the type {model_type}, and GGUF files are written of "
            f"{', '.join(ARCHITECTURES)} only: {ELSEWHERE}"
        )


def grid_warning(source: Path | None, dtype: str) -> str:
    """One line if `dtype` would round an adapter's changes away; "" if not.

    The weights of a base from a GGUF lie on the few values that its blocks have. A change of less than half
    the distance between two of them is lost if the sum is rounded to the same values.

    Args:
        source: the GGUF that the base came from, if it did.
    """
    if source is None or dtype not in BLOCKS:
        return ""
    import gguf

    kinds = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(source).tensors)
    own = next((kind for kind, _ in kinds.most_common() if kind in _SAME_GRID), "")
    if dtype not in _SAME_GRID.get(own, ()):
        return ""
    return (
        f"The base's weights were rounded to {own.lower()}. --dtype {dtype} rounds them with the adapter to "
        "the same values again, and loses or distorts what the adapter changed: take "
        + ("f16." if own == "Q8_0" else "q8_0, or f16.")
    )


def write(path: Path, model: Any, folder: Path, dtype: str, vocabulary: Path | None, name: str) -> bool:
    """Write the weights and llama.cpp's metadata; return whether the vocabulary is included.

    Args:
        model: a causal LM of Transformers without an adapter.
        folder: the folder with its tokenizer.
        dtype: one of `DTYPES`, `BLOCKS` or `K_QUANTS`, for the matrices; vectors are always float32.
        vocabulary: the GGUF to copy the vocabulary from, if the base came from one.

    Raises:
        ModelError: llama.cpp computes this model differently from Transformers, or its tool failed.
    """
    if dtype in K_QUANTS:
        whole = path.with_name("whole.gguf")
        known = write(whole, model, folder, "f32", vocabulary, name)
        _llama_quantize(whole, path, dtype)
        return known
    import gguf
    import numpy as np

    config = model.config.get_text_config()
    check(config.model_type, dtype)
    architecture = ARCHITECTURES[config.model_type]
    file = gguf.GGUFWriter(path, architecture)
    factors = _described(file, model, config, dtype, name)
    vocabulary_written = _vocabulary(file, folder, config.vocab_size, vocabulary)
    if vocabulary_written:
        _endings(file, folder, model.generation_config)

    tensors = dict(_tensors(model, config, architecture, factors))
    kinds = {own: _kind(own, tensor, dtype) for own, tensor in tensors.items()}
    for own, tensor in tensors.items():
        block, width = gguf.GGML_QUANT_SIZES[kinds[own]]
        size = tensor.numel() // block * width
        file.add_tensor_info(own, tensor.shape, np.dtype(np.float32), size, kinds[own])
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for own, tensor in tensors.items():  # one at a time, so that the model is not in memory twice
        part = own.split(".")[-2]
        if architecture == "llama" and part in heads:
            tensor = _interleaved(tensor, heads[part])
        values = tensor.float().cpu().numpy()
        # Beyond that is no 16-bit float, such as a block's scale.
        over = kinds[own].name not in ("F32", "BF16") and abs(values).max() > 65504
        if over or not np.isfinite(values).all():
            raise ModelError(f"The tensor {own} does not fit into {dtype}: use --dtype bf16 or f32.")
        file.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(values), kinds[own]))
    file.close()
    return vocabulary_written


def load(folder: Path) -> Any:
    """Load the one GGUF file of an exported folder as a Transformers model, dequantized to 32 bit.

    Raises:
        ModelError: there is not exactly one file, or it cannot be read.
    """
    import torch
    import transformers

    file, device = only_file(folder), base_device(Process.alone(), quantized=False)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file.name, dtype=torch.float32
        )
    except Exception as error:  # the parser raises many kinds of errors for a damaged file
        raise ModelError(f"{file} cannot be read as a GGUF model: {error}") from error
    return model.requires_grad_(False).to(device).eval()


def only_file(folder: Path) -> Path:
    """The one GGUF file of a folder; raises a ModelError if there is none or several."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = f"several GGUF files ({', '.join(path.name for path in files)})" if files else "no GGUF file"
        raise ModelError(f"--model_path is {folder}, which has {found}: keep exactly one there.")
    return files[0]


def _kind(own: str, tensor: Any, dtype: str) -> Any:
    """A tensor's storage type. Embeddings and head keep 8 bit where others have fewer, as in llama.cpp."""
    import gguf

    name = dtype.upper()
    if tensor.dim() == 1:
        name = "F32"
    elif dtype in BLOCKS and tensor.shape[-1] % 32:
        name = "F16"
    elif dtype in BLOCKS and own in ("token_embd.weight", "output.weight"):
        name = "Q8_0"
    return gguf.GGMLQuantizationType[name]


def _llama_quantize(whole: Path, path: Path, dtype: str) -> None:
    """Let llama.cpp's tool make a K-quant file from an unquantized one, which is then removed."""
    done = subprocess.run(
        [str(shutil.which(QUANTIZE)), str(whole), str(path), dtype.upper()], capture_output=True, text=True
    )
    whole.unlink()
    if done.returncode or not path.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ModelError(f"{QUANTIZE} failed at --dtype {dtype}: {last}")


def _described(file: Any, model: Any, config: Any, dtype: str, name: str) -> Any:
    """Write the architecture's fields; return the divisors of the rotation frequencies, or None."""
    import gguf

    if getattr(config, "hidden_act", "silu") != "silu":
        raise ModelError(
            f"The base model's activation is {config.hidden_act}, but only silu is supported: {ELSEWHERE}"
        )
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    factors, theta = _rope(model, config, head)
    architecture = ARCHITECTURES[config.model_type]
    if factors is not None and architecture != "llama":
        raise ModelError(f"The base model scales its positions, but {architecture} does not: {ELSEWHERE}")
    file.add_type(gguf.GGUFType.MODEL)
    file.add_name(name)
    file.add_file_type(gguf.LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])
    if dtype in BLOCKS:
        file.add_quantization_version(gguf.GGML_QUANT_VERSION)
    file.add_vocab_size(config.vocab_size)
    # llama.cpp attends to all earlier tokens, which is the same within the sliding window.
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    file.add_context_length(min(window, config.max_position_embeddings))
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_head_count(heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_key_length(head)
    file.add_value_length(head)
    file.add_rope_dimension_count(head)
    file.add_rope_freq_base(theta)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    return factors


def _tensors(model: Any, config: Any, architecture: str, factors: Any) -> Iterator[tuple[str, Any]]:
    """llama.cpp's name and the tensor, for each of the model's tensors."""
    import gguf

    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise ModelError(f"The base model has a tensor {name}, unknown to {architecture}: {ELSEWHERE}")
        yield own, tensor
    if factors is not None:
        yield "rope_freqs.weight", factors


def _interleaved(tensor: Any, heads: int) -> Any:
    """Rows of queries or keys in llama.cpp's rotation order: pairs adjacent, not half a head apart."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _rope(model: Any, config: Any, head: int) -> tuple[Any | None, float]:
    """The rotation frequencies' divisors, (head / 2,), or None if they are unchanged; and their base."""
    import torch

    rotary = model.get_decoder().rotary_emb
    theta = float(config.rope_parameters["rope_theta"])
    own = rotary.inv_freq.detach().float().cpu()
    plain = theta ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    if own.shape != plain.shape or getattr(rotary, "attention_scaling", 1.0) != 1.0:
        raise ModelError(
            f"The base model's positions are of the kind {config.rope_parameters.get('rope_type')}, which is "
            f"not supported: {ELSEWHERE}"
        )
    factors = plain / own
    return (None if torch.allclose(factors, torch.ones(()), rtol=1e-4) else factors), theta


def _vocabulary(file: Any, folder: Path, size: int, source: Path | None) -> bool:
    import gguf

    if source is not None:
        for key, field in gguf.GGUFReader(source).fields.items():
            if key.startswith("tokenizer.") and key != "tokenizer.chat_template":
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
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.chat_template = None  # `_endings` writes it
    special.add_to_gguf(file, quiet=True)
    return True


def _endings(file: Any, folder: Path, generation: Any) -> None:
    """Write the chat template, the end-of-turn tokens, and whether texts begin with a special token."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    known = {key: field.value for part in file.kv_data for key, field in part.items()}
    if getattr(tokenizer, "chat_template", None):
        file.add_chat_template(tokenizer.chat_template)
    if "tokenizer.ggml.add_bos_token" not in known:
        file.add_add_bos_token(begins_with_bos(tokenizer))
    ends = end_tokens(tokenizer, generation)
    if "tokenizer.ggml.eos_token_id" not in known and ends:
        file.add_eos_token_id(ends[0])
    eos = known.get("tokenizer.ggml.eos_token_id", ends[0] if ends else None)
    others = [each for each in ends if each != eos]
    for each, add in zip(others, (file.add_eot_token_id, file.add_eom_token_id), strict=False):
        add(each)


def pre_tokenizer_name(described: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a `tokenizer.json` splits text before its byte-level BPE; None if unknown."""
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
