"""Convert an adapter to what vLLM's server takes: plain LoRA, one rank and one scale for all layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fintune.errors import ModelError
from fintune.files import like_neighbours, write_json
from fintune.models import adapter_files
from fintune.models.adapter_files import CONFIG, WEIGHTS

RANKS = (8, 16, 32, 64, 128, 256, 512)
"""vLLM's values of `--max_lora_rank`."""
_MERGE = "merge it instead:  fintune export --format merged"


def room(rank: int) -> int:
    """The smallest `--max_lora_rank` that is at least this rank."""
    return min((each for each in RANKS if each >= rank), default=RANKS[-1])


def check(folder: Path) -> None:
    """Raise a ModelError for an adapter that vLLM refuses or would compute differently."""
    config = adapter_files.read(folder).config
    rank = config.largest_rank
    for wrong, what in (
        (config.use_dora, "use_dora is true, but vLLM has no DoRA"),
        (config.bias != "none", f"bias is {config.bias}, but vLLM changes no biases"),
        (rank > RANKS[-1], f"its rank is {rank}, but vLLM takes at most {RANKS[-1]}"),
    ):
        if wrong:
            raise ModelError(f"vLLM cannot load the adapter at {folder}: {what}; {_MERGE}.")


def write(source: Path, folder: Path) -> int:
    """Write the adapter's two files; return its rank.

    Layers of lower rank are padded with zeros; a layer's own alpha, or rsLoRA's scale, is folded into its B.
    """
    import torch
    from safetensors.torch import load_file, save_file

    check(source)
    files = adapter_files.read(source)
    config, state = files.config, load_file(source / WEIGHTS)
    if any("lora_embedding" in name for name in state):
        raise ModelError(f"The adapter at {source} adapts embeddings, but vLLM does not: {_MERGE}.")
    rank = config.largest_rank
    plain = config.lora_alpha / rank
    for module in files.modules():
        begin = f"{adapter_files.PREFIX}{module}.lora_"
        r = config.rank_of(module)
        scale = config.alpha_of(module) / (r**0.5 if config.use_rslora else r)
        a, b = state[f"{begin}A.weight"].float(), state[f"{begin}B.weight"].float()
        state[f"{begin}A.weight"] = torch.cat([a, a.new_zeros(rank - r, a.shape[1])]).contiguous()
        state[f"{begin}B.weight"] = torch.cat(
            [b * (scale / plain), b.new_zeros(len(b), rank - r)], 1
        ).contiguous()
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rpartition(".")[2] for module in files.modules()}),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / CONFIG, fields)
    like_neighbours(folder)
    return rank
