"""The model card of an adapter folder: what it is, what went in, how it did, how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fintune.config import Recipe
from fintune.data.licences import commercial_use
from fintune.files import atomic_write
from fintune.models.base import public_name


def write(folder: str | Path, facts: dict[str, Any], recipe: Recipe, prepared: Any) -> None:
    """Write `README.md`, the hub's model card, from the run's facts and the prepared data's manifest."""
    header = {
        "base_model": public_name(facts["base_model"]),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["finance", "lora", "fintune"],
    }
    data = prepared.manifest["tasks"]
    rows = "\n".join(
        f"| {name} | {d['dataset']} | {d.get('licence') or 'not stated'} | {commercial_use(d['dataset'])} "
        f"| {d['counts']['train']} |"
        for name, d in data.items()
    )
    training, machine = facts.get("training"), facts["machine"]
    since = f" (since {facts['resumed_from']})" if facts["resumed_from"] else ""
    how = (
        f"{facts['optimizer_steps']} optimizer steps, {training['examples']} examples{since}, "
        f"{training['seconds'] / 60:.1f} minutes on {machine['gpu'] or machine['processor']}, "
        f"peak memory {training['peak_memory_gib']} GiB, seed {facts['seed']}."
        if training
        else f"A checkpoint of a run of {facts['optimizer_steps']} optimizer steps, seed {facts['seed']}."
    )
    validation = {
        key.removeprefix("eval_"): value
        for key, value in facts.get("validation", {}).items()
        if key.startswith("eval_")
    }
    figures = "\n".join(f"| {key} | {value:.4g} |" for key, value in validation.items())
    title = "\n## On validation examples\n\n| figure | value |\n| --- | --- |\n"
    table = f"{title}{figures}\n" if figures else ""
    lora = recipe.lora_config
    atomic_write(
        Path(folder) / "README.md",
        f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# A fintune adapter on {facts["base_model"]}

LoRA, r = {lora.r}, alpha = {lora.lora_alpha:g}, on {", ".join(lora.target_modules)}:
{facts["trainable_parameters"]:,} parameters ({facts["trainable_parameters"] / facts["all_parameters"]:.2%}
of the model). Tasks: {", ".join(data)}.

## Data

| task | dataset | licence | commercial use | training examples |
| --- | --- | --- | --- | --- |
{rows}

## Training

{how}
{table}
## Use

    fintune predict --model_path FOLDER --task sentiment "Operating profit rose to EUR 13.1 mn."

or in plain PEFT: `PeftModel.from_pretrained(base_model, FOLDER)`. `fintune.json` in this folder holds the
recipe, the data's checksums, the versions and the tasks' exact instructions.

Not investment advice. The adapter inherits the limits of its base model and of its training data.
""",
    )
