"""`fintune init`: from a user's own files to a recipe that trains a task on them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.commands.common import Command, Pairs, former
from fintune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fintune.data.raw.first_look import Look

DEFAULT_BASE = "smollm2-135m-instruct"
FIELDS = ("text", "target", "question", "time")
TYPES = ("classification", "multilabel", "regression", "qa", "summarization", "instruction")
NO_LABEL = frozenset(
    {"n/a", "na", "nan", "null", "none", "-", "?", "tbd", "unknown", "unlabeled", "unlabelled"}
)
"""What people write where there is no label; rows that have one of these as their only label are left out."""
_INSTRUCTIONS = {
    "classification": "Classify the {subject}. Answer with one of: {labels}.",
    "multilabel": "Name every label that the {subject} has, separated by commas, or none. Labels: {labels}.",
    "regression": "Rate the {subject}. Answer with a number.",
    "qa": "Answer the question, using only the context. Be brief and exact.",
    "summarization": "Summarize the {subject} in a few short bullet points. Start each point with a dash.",
    "instruction": "Answer the question on finance.",
}


def _init_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="training file; files with test or validation in their names are held out",
    )
    command.add_argument("--name", metavar="TASK", help="name of the task (default: from the file's name)")
    command.add_argument(
        "--type", choices=TYPES, metavar="TYPE", help=f"{', '.join(TYPES)} (default: from the data)"
    )
    for field in FIELDS:
        command.add_argument(
            f"--{field}", metavar="COLUMN", help=f"column that holds the {field} (default: from the data)"
        )
    command.add_argument(
        "--time_format", metavar="FORM", help="day_first, month_first, epoch, or a format such as %%d.%%m.%%Y"
    )
    command.add_argument("--instruction", metavar="TEXT", help="instruction that the model is given")
    command.add_argument(
        "--labels",
        nargs="+",
        action=Pairs,
        metavar="VALUE=LABEL",
        help="names for labels of the file, such as 0=dovish 1=hawkish",
    )
    command.add_argument(
        "--base_model",
        default=DEFAULT_BASE,
        metavar="NAME",
        help=f"base model: a name on the hub, or a folder (default: {DEFAULT_BASE})",
    )
    former(command, "--base_model", "--base")
    command.add_argument("--output_file", metavar="YAML", help="recipe to write (default: TASK.yaml)")
    command.add_argument("--yes", action="store_true", help="ask nothing, and take what the files suggest")


def _init(args: argparse.Namespace) -> int:
    from fintune.data.raw.first_look import look
    from fintune.files import atomic_write
    from fintune.recipes import load_recipe

    ask = _asker(args.yes or not sys.stdin.isatty())
    given = {field: getattr(args, field) for field in FIELDS if getattr(args, field)}
    name = args.name or ask("The task's name", _name(args.files[0]))
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"--name is {name!r}: use letters, digits, - and _.")
    output = Path(args.output_file or f"{name}.yaml")
    if output.exists():
        raise ConfigError(f"{output} exists: name another recipe by  --output_file FILE, or remove it.")
    seen = look(args.files, given, args.type, args.time_format)
    for line in described(seen):
        print(line)
    labels = _labels(seen, args.labels or {}, ask)
    instruction = args.instruction or ask(
        "What the model is told",
        _INSTRUCTIONS[seen.type].format(
            subject=_subject(seen), labels=", ".join(filter(None, dict.fromkeys(labels.values())))
        ),
    )
    content = recipe_text(seen, name, instruction, labels, args.base_model, args.time_format)
    atomic_write(output, content)
    load_recipe(output)  # what was written can be read, or says why not
    print(f"\nRecipe    {output}: read it, and change what is not right.")
    print(f"Next      fintune data prepare --config {output}")
    print(f"          fintune train --config {output} --output_dir output/{name}")
    print(f"          fintune evaluate --model_path output/{name} --output_file output/{name}/results.json")
    return 0


def _asker(silent: bool) -> Callable[[str, str], str]:
    def ask(question: str, default: str) -> str:
        if silent:
            print(f"{question + ':':24}{default}")
            return default
        return input(f"{question} [{default}]: ").strip() or default

    return ask


def _name(path: str) -> str:
    stem = Path(path).name.split(".")[0]
    words = [
        word
        for word in re.findall(r"[a-z0-9]+", stem.casefold())
        if word not in ("train", "training", "data")
    ]
    return "_".join(words)[:40].strip("_") or "own"


def _subject(seen: Look) -> str:
    """What the text is called: its column's name, if that is a word."""
    column = seen.fields.get("text", "text").casefold()
    return column if column.isalpha() else "text"


def _labels(seen: Look, named: dict[str, str], ask: Callable[[str, str], str]) -> dict[str, str | None]:
    """The file's label → the task's: as given, or as in the file; None is no label. Names of numbers are
    asked for."""
    found = seen.labels
    if unknown := [value for value in named if value not in found]:
        raise DataError(
            f"--labels names {', '.join(unknown)}, which the column {seen.fields.get('target')} does not "
            f"hold; its values are: {', '.join(found)}."
        )
    labels: dict[str, str | None] = {}
    for value in found:
        if seen.type == "classification" and value.casefold() in NO_LABEL and value not in named:
            print(f"{'':12}{found[value]:,} rows have {value} for a label: they are left out (labels: null)")
            labels[value] = None
            continue
        bare = re.fullmatch(r"[-+]?\d+", value)
        labels[value] = named.get(value) or (ask(f"The name of label {value}", value) if bare else value)
    return labels


def described(seen: Look) -> list[str]:
    """What was seen, a line each."""
    lines = [
        f"{key.removesuffix('file').rstrip('_') or 'training':12}{path}: {seen.rows[key]:,} rows"
        for key, path in seen.files.items()
    ]
    if seen.malformed:
        lines.append(f"{'':12}{seen.malformed:,} rows cannot be read: fintune data prepare names each")
    if seen.repeated:
        lines.append(
            f"{'':12}{seen.repeated:,} texts stand in an earlier row: fintune data prepare keeps one of each"
        )
    lines.append(f"{'type':12}{seen.type}")
    for field, name in seen.fields.items():
        column = seen.columns[name]
        empty = f", {column.empty:,} empty" if column.empty else ""
        lines.append(f"{field:12}column {name}{empty}")
    if seen.lengths:
        lines.append(
            f"{'lengths':12}half of the texts have at most {seen.quantile(0.5):,} characters, 99 of 100 "
            f"at most {seen.quantile(0.99):,}"
        )
    if seen.labels:
        shown = ", ".join(f"{value} ({count:,})" for value, count in list(seen.labels.items())[:12])
        lines.append(f"{'labels':12}{shown}{', …' if len(seen.labels) > 12 else ''}")
    return [*lines, *seen.notes]


def recipe_text(
    seen: Look,
    name: str,
    instruction: str,
    labels: dict[str, str | None],
    base: str,
    time_format: str | None = None,
) -> str:
    """The recipe, with a comment where something may be changed."""
    quoted = json.dumps  # a JSON string is a YAML string
    names = list(filter(None, dict.fromkeys(labels.values())))
    mapping = {value: label for value, label in labels.items() if value != label}
    counts = [count for value, count in seen.labels.items() if labels[value]]
    small = base == DEFAULT_BASE
    tokens = seen.quantile(0.99) // 3 + 200  # about, with the instruction and an answer
    lines = [
        f"# Made by fintune init from {', '.join(seen.files.values())}: {seen.rows['file']:,} training rows.",
        "# Keys that are not here fit the data; docs/training.md and docs/data.md say what else there is.",
        "base_model:",
        f"  name: {quoted(base)}   # any causal LM of the hub, or a folder",
        "",
        "training:",
        *(
            ["  learning_rate: 1e-3   # of so small a base; 1e-4 to 3e-4 for 1 to 8 billion parameters"]
            * small
        ),
        f"  max_length: {1024 if tokens <= 1024 else 2048}   # tokens of prompt and answer",
        "",
        "multi_task:",
        "  task_weights:",
        f"    {name}: 1.0   # name built-in tasks too, to train them beside it",
        *(
            ["  class_weights:", f"    {name}: balanced   # rare labels count as much as frequent ones"]
            if seen.type == "classification" and max(counts) > 5 * min(counts)
            else []
        ),
        "",
        "custom_task:",
        f"  name: {quoted(name)}",
        f"  type: {quoted(seen.type)}",
        f"  instruction: {quoted(instruction, ensure_ascii=False)}",
        *(
            [f"  labels: [{', '.join(quoted(label, ensure_ascii=False) for label in names)}]"]
            if names
            else []
        ),
        "",
        "data:",
        f"  prepared_dir: {quoted(f'data/processed-{name}')}",
        *_splits(seen),
        "  tasks:",
        f"    {name}:",
        *(f"      {key}: {quoted(path, ensure_ascii=False)}" for key, path in seen.files.items()),
    ]
    if time_format:
        lines.append(f"      time_format: {quoted(time_format)}")
    columns = {field: column for field, column in seen.fields.items() if field != column}
    if seen.split_column and seen.split_column != "split":
        columns["split"] = seen.split_column
    for key, pairs in (("columns", columns), ("labels", mapping)):
        if pairs:
            comment = "field: the file's column" if key == "columns" else "the file's label: the task's"
            lines.append(f"      {key}:   # {comment}")
            lines += [
                f"        {quoted(a, ensure_ascii=False)}: {quoted(b, ensure_ascii=False)}"
                for a, b in pairs.items()
            ]
    return "\n".join(lines) + "\n"


def _splits(seen: Look) -> list[str]:
    """The lines on how the rows are split."""
    if seen.split_column:
        return [f"  # the column {seen.split_column} says which row is for what"]
    way = "by time, the newest rows are for testing" if "time" in seen.fields else "at random, by data.seed"
    return [
        f"  {part}_fraction: 0.1   # split off {way}"
        for part in ("validation", "test")
        if f"{part}_file" not in seen.files
    ]


COMMANDS = (Command("init", "look at your own files and write a recipe for them", _init, _init_flags),)
