"""PiSSA (Meng et al., 2024) kept as a plain LoRA adapter.

PiSSA starts A and B from the largest singular values of W and trains them over the rest, W − s·B₀A₀. What it
has learnt is therefore s·(BA − B₀A₀), which is a LoRA of rank 2r on the untouched base: [B, −B₀]·[A; A₀].
Adapters are saved in that form, so any PEFT loads them; and as both halves are in the file, training goes on
from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fintune.files import like_neighbours, read_json, write_json
from fintune.models.adapters import CONFIG, WEIGHTS

State = dict[str, Any]


def initial_state(model: Any) -> State:
    """A₀ and B₀ of a model just given its adapter, by the names that PEFT saves them under."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().cpu().clone() for name, value in state.items() if "lora_" in name}


def export(folder: Path, initial: State) -> None:
    """Turn the adapter saved in `folder`, which is over the changed base, into one over the plain base."""
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(folder / WEIGHTS)
    for name, start in initial.items():
        if ".lora_A." in name:
            state[name] = torch.cat([state[name], start], dim=0)
        elif ".lora_B." in name:
            state[name] = torch.cat([state[name], -start], dim=1)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = read_json(folder / CONFIG)
    # rsLoRA divides by √r, so that twice the rank would change the scale by more than twice alpha mends.
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
    config["r"] *= 2
    config["init_lora_weights"] = True
    write_json(folder / CONFIG, config)
    like_neighbours(folder)


def resume(model: Any, folder: Path) -> State:
    """Give a model with a fresh plain adapter of rank r a checkpoint's A and B, and take s·B₀A₀ off its base.

    Returns A₀ and B₀.
    """
    from peft import set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    state = load_file(folder / WEIGHTS)
    r = model.peft_config["default"].r
    initial: State = {}
    for name, value in state.items():
        if ".lora_A." in name:
            state[name], initial[name] = value[:r].contiguous(), value[r:].contiguous()
        elif ".lora_B." in name:
            state[name], initial[name] = value[:, :r].contiguous(), -value[:, r:]
    set_peft_model_state_dict(model, initial)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
            # The order and precision of PEFT's own `pissa_init`, so that the bits are those of the first run.
            rest = weight.data.float() - layer.scaling["default"] * b.to(weight.device) @ a.to(weight.device)
            weight.data = rest.to(weight.dtype)
    set_peft_model_state_dict(model, state)
    return initial
