"""Save PiSSA (Meng et al., 2024) as a plain LoRA adapter.

PiSSA initializes A and B from the largest singular values of W and trains them over the rest, W − s·B₀A₀. So
it has learnt s·(BA − B₀A₀), which is a LoRA of rank 2r on the untouched base: [B, −B₀]·[A; A₀]. Adapters are
saved in that form, so any PEFT loads them; both halves are in the file, so training can resume from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fintune.files import like_neighbours, read_json, write_json
from fintune.models.adapters import CONFIG, WEIGHTS

State = dict[str, Any]


def initial_state(model: Any) -> State:
    """A₀ and B₀ of a model that was just given its adapter, keyed as PEFT saves them."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().cpu().clone() for name, value in state.items() if "lora_" in name}


def export(folder: Path, initial: State) -> None:
    """Convert the adapter saved in `folder` from the changed base to the plain base."""
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
    # rsLoRA divides by √r: doubling the rank divides the scale by √2, so alpha grows by √2 instead of 2.
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
    config["r"] *= 2
    config["init_lora_weights"] = True
    write_json(folder / CONFIG, config)
    like_neighbours(folder)


def resume(model: Any, folder: Path) -> State:
    """Load a checkpoint's A and B into a fresh plain adapter of rank r, and subtract s·B₀A₀ from the base.

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
            # In the order and precision of PEFT's `pissa_init`, so that the bits match the first run.
            rest = weight.data.float() - layer.scaling["default"] * b.to(weight.device) @ a.to(weight.device)
            weight.data = rest.to(weight.dtype)
    set_peft_model_state_dict(model, state)
    return initial
