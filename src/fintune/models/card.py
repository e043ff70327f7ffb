"""Write the model card of an adapter folder: what it is, its training data, its scores, how to use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fintune.config import Recipe
from fintune.data.raw.licences import commercial_use
from fintune.errors import ModelError
from fintune.files import atomic_write
from fintune.models.base import EMBEDDED, public_name
from fintune.tasks.base import Record
from fintune.text.markdown import cell


def write(folder: str | Path, facts: dict[str, Any], recipe: Recipe, prepared: Any) -> None:
    """Write `README.md`, the hub's model card, from the run's facts and the prepared data's manifest."""
    data = prepared.manifest["tasks"]
    header = {
        "base_model": public_name(facts["base_model"]),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["finance", "lora", "fintune"],
    }
    if any(commercial_use(entry["dataset"]) != "yes" for entry in data.values()):
        header |= {"license": "other", "license_name": "see-the-licences-of-its-data"}
    rows = "\n".join(
        f"| {name} | {cell(d['dataset'])} | {cell(d.get('licence') or 'not stated')} "
        f"| {commercial_use(d['dataset'])} | {d['counts']['train']} |"
        for name, d in data.items()
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
    before = (
        f"\n\nIt goes on from the adapter `{Path(lora.init_adapter).name}`; that adapter's card names its "
        "training data."
        if lora.init_adapter
        else ""
    )
    atomic_write(
        Path(folder) / "README.md",
        f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# A fintune adapter on {cell(facts["base_model"])}

LoRA, r = {lora.r}, alpha = {lora.lora_alpha:g}, on {", ".join(lora.target_modules)}:
{facts["trainable_parameters"]:,} parameters ({facts["trainable_parameters"] / facts["all_parameters"]:.2%}
of the model). Tasks: {", ".join(data)}.{_base_note(facts["base_model"])}

## Data

| task | dataset | licence | commercial use | training examples |
| --- | --- | --- | --- | --- |
{rows}{before}
{licence_note(data)}
## Training

{_how(facts)}
{_warnings(facts)}{table}
## Use

    fintune predict --model_path FOLDER --task sentiment "Operating profit rose to EUR 13.1 mn."

`fintune.json` in this folder holds the recipe, the data's checksums, the versions and the tasks.
{_asked(prepared)}{LIMITS}""",
    )


def _asked(prepared: Any) -> str:
    """The card's section on prompts: the exact messages that other programs must send."""
    tasks = [task for task in prepared.task_set() if not task.takes_turns]
    if not tasks:
        return ""
    rows = []
    for task in tasks:
        body = task.body(Record("TEXT", question="QUESTION")).replace("\n", "⏎")
        answers = ", ".join(task.one_of) or "free text"
        rows.append(f"| {task.name} | {cell(task.instruction)} | {cell(body)} | {cell(answers)} |")
    table = "\n".join(rows)
    return f"""
## What it is asked

Each task is two messages in the base's chat template, then the answer and the end of text; ⏎ is a line break.

| task | system message | user message | answer |
| --- | --- | --- | --- |
{table}

In plain Transformers and PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, folder = "BASE", "FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
messages = [
    {{"role": "system", "content": {json.dumps(tasks[0].instruction)}}},
    {{"role": "user", "content": {json.dumps(tasks[0].body(Record("TEXT", question="QUESTION")))}}},
]
asked = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**asked, max_new_tokens=64, do_sample=False)[0, asked["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

vLLM's and llama.cpp's servers take the same two messages at `/v1/chat/completions`, with `temperature: 0`.
fintune scores each of a task's possible answers instead of generating one, so it can give no other answer.
"""


LIMITS = """
## Intended use and limits

For the tasks above, on texts like those of its training data, with a person who checks what matters. It knows
nothing that happened after its data was made, may be wrong with high probability, and was not tested for
other languages, kinds of text or decisions about people. It inherits the limits of its base model and of its
training data. Not investment advice.
"""


def licence_note(data: Mapping[str, Any]) -> str:
    """The card's section on what the data's licences ask of users of the model.

    Args:
        data: the tasks of a prepared dataset's manifest.
    """
    named: dict[str, list[str]] = {}
    for entry in data.values():
        text = f"{cell(entry['dataset'])} ({cell(entry.get('licence') or 'not stated')})"
        named.setdefault(commercial_use(entry["dataset"]), []).append(text)
    sentences = {
        "no": "**Not for commercial use**, as the licence of its data says: {}.",
        "not stated": "No licence is stated for: {}.",
        "yours to know": "Whoever trained it knows the licence of: {}.",
    }
    lines = [s.format("; ".join(dict.fromkeys(named[key]))) for key, s in sentences.items() if key in named]
    lines = lines or ["The licences of its data allow commercial use."]
    return (
        "\n## Licence note\n\n"
        + " ".join(lines)
        + " The base model's licence applies too. This section repeats the stated licences; it is not legal "
        "advice.\n"
    )


def _base_note(name: str) -> str:
    if name != EMBEDDED:
        return ""
    return (
        "\n\nIt was trained on fintune's embedded base, a 4-bit quantization (GGUF, Q4_1) of "
        f"`{public_name(name)}`. Its answers differ on the hub's weights; how much was not measured here. "
        "`fintune export --base --output_dir base` writes the embedded base as a folder of safetensors, and "
        f"`fintune export --base_model {public_name(name)}` measures the difference."
    )


def put_export(folder: Path, source: Path | None, format: str, dtype: str, base: str) -> None:
    """Write an export's card: the adapter's card, if it has one, plus how it was exported."""
    path = source / "README.md" if source else None
    made = {"merged": "merged into its base", "gguf": "merged into its base, as a GGUF file for llama.cpp"}
    how = f"\n## Export\n\nThe adapter, {made.get(format, 'as vLLM takes it')}; weights in {dtype}.\n"
    if path is None or not path.is_file():
        header = {"base_model": public_name(base), "pipeline_tag": "text-generation", "tags": ["fintune"]}
        title = f"# An export of {cell(public_name(base))}"
        text = f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---\n\n{title}\n{how}{LIMITS}"
    else:
        text = path.read_text(encoding="utf-8")
        library = {"merged": "transformers", "gguf": "gguf"}.get(format, "peft")
        text = text.replace("library_name: peft", f"library_name: {library}", 1)
        text = text.rstrip() + "\n" + how
    atomic_write(folder / "README.md", text)


def for_hub(folder: Path, raw: Mapping[str, Any]) -> str:
    """The card to push: the folder's, with any sections that an earlier version did not write.

    Args:
        raw: the folder's manifest.

    Raises:
        ModelError: there is no card.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise ModelError(f"{folder} has no README.md, the model card: write one that describes the model.")
    text = path.read_text(encoding="utf-8")
    data = (raw.get("data") or {}).get("tasks") or {}
    if data and "\n## Licence note\n" not in text:
        text = text.rstrip() + "\n" + licence_note(data)
    return text if "\n## Intended use and limits\n" in text else text.rstrip() + "\n" + LIMITS


def _warnings(facts: dict[str, Any]) -> str:
    if not facts.get("warnings"):
        return ""
    return "\n## Warnings\n\n" + "\n".join(f"- {cell(warning)}" for warning in facts["warnings"]) + "\n"


def _how(facts: dict[str, Any]) -> str:
    """How the adapter was made, in a sentence or two."""
    steps = f"{facts['optimizer_steps']} optimizer steps"
    if members := facts.get("average_of"):
        listed = ", ".join(f"`{member['name']}` (seed {member['seed']})" for member in members)
        return f"The mean of {len(members)} adapters (Wortsman et al., 2022) of {steps} each: {listed}."
    if "step_size" in facts:
        steps += f" of {facts['step_size']} examples"
    training, machine = facts.get("training"), facts["machine"]
    if not training:
        return f"A checkpoint of a run of {steps}, seed {facts['seed']}."
    since = f" (since {facts['resumed_from']})" if facts["resumed_from"] else ""
    return (
        f"{steps}, {training['examples']} examples{since}, {training['seconds'] / 60:.1f} minutes on "
        f"{machine['gpu'] or machine['processor']}, peak memory {training['peak_memory_gib']} GiB, "
        f"seed {facts['seed']}.{_kept(facts.get('kept') or {})}"
    )


def _kept(kept: dict[str, Any]) -> str:
    """Which step's weights these are, if validation chose it."""
    if "metric" not in kept:
        return ""
    early = f" Training was stopped early, after step {kept['last_step']}." if kept["stopped_early"] else ""
    return (
        f" The weights are those of step {kept['step']}, the best by validation ({kept['metric']} "
        f"{kept['value']:.4g}).{early}"
    )


_BEGIN, _END = "<!-- fintune evaluate: begin -->", "<!-- fintune evaluate: end -->"


def put_evaluation(folder: str | Path, section: str, say: Callable[[str], None] = print) -> None:
    """Put an evaluation's section into the adapter's card between two markers, replacing an earlier one.

    The rest of the card is unchanged; an adapter without a card, or with a read-only one, is left alone.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        return
    card = path.read_text(encoding="utf-8")
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        before, heading, rest = card.partition("\n## Use\n")
        before, after = before.rstrip() + "\n\n", "\n" + heading + rest
    try:
        atomic_write(path, f"{before}{_BEGIN}\n{section}\n{_END}{after}")
    except OSError as error:
        say(f"The model card {path} was not changed: {error}.")
