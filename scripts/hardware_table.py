"""The table of docs/hardware.md: the memory that `fintune plan` estimates for LoRA on bases of several sizes.

Only the shapes of the bases are needed, which stand below; nothing is downloaded. Run it anew when the
memory model changes:  python scripts/hardware_table.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 32}
QWEN = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "vocab_size": 151_936}


def shape(hidden: int, intermediate: int, layers: int, keys: int, tied: bool, **more: Any) -> dict[str, Any]:
    """What a base's config.json says of its size."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_key_value_heads": keys,
        "tie_word_embeddings": tied,
        **more,
    }


BASES = {
    "Qwen3-0.6B": shape(1024, 3072, 28, 8, True, num_attention_heads=16, **QWEN),
    "Llama-3.2-1B": shape(2048, 8192, 16, 8, True, vocab_size=128_256, **LLAMA),
    "Qwen3-4B": shape(2560, 9728, 36, 8, True, num_attention_heads=32, **QWEN),
    "Llama-2-7B": shape(4096, 11_008, 32, 32, False, vocab_size=32_000, **LLAMA),
    "Llama-3.1-8B": shape(4096, 14_336, 32, 8, False, vocab_size=128_256, **LLAMA),
    "Qwen3-14B": shape(5120, 17_408, 40, 8, False, num_attention_heads=40, **QWEN),
}
CHECKPOINTING = {"gradient_checkpointing": True}
COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "16 bit": ({}, {}),
    "16 bit, checkpointing": ({}, CHECKPOINTING),
    "8 bit, checkpointing": ({"load_in_8bit": True}, CHECKPOINTING),
    "4 bit, checkpointing": ({"load_in_4bit": True}, CHECKPOINTING),
}


def rows(folder: Path) -> Iterator[list[str]]:
    """A base, its parameters, the adapter's size, and the peak memory of each column."""
    from transformers import AutoConfig

    from fintune.config import Recipe
    from fintune.planning import estimate

    for name, fields in BASES.items():
        fields = dict(fields)
        AutoConfig.for_model(fields.pop("model_type"), **fields).save_pretrained(folder / name)
        needs = []
        for base, training in COLUMNS.values():
            raw = {
                "base_model": {"name": str(folder / name), **base},
                "training": {"bf16": True, "row_tokens": 4096, **training},
                "data": {"prepared_dir": str(folder / "none")},
            }
            needs.append(estimate(Recipe.model_validate(raw), device="cuda"))
        own = needs[0].trainable_parameters
        sizes = [f"{(needs[0].all_parameters - own) / 1e9:.1f} B", f"{needs[0].adapter_bytes / 1e6:.0f} MB"]
        yield [name, *sizes, *(f"{need.peak_bytes / 1e9:.1f} GB" for need in needs)]


def table() -> str:
    """The table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [["base", "parameters", "adapter", *COLUMNS], ["---", *["---:"] * (2 + len(COLUMNS))]]
        lines += rows(Path(folder))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(table(), end="")
