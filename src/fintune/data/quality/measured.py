"""Measure prepared data, and find texts that leak between its splits; returns plain values.

`build` measures; `leaks` lists what `--strict` refuses. Knows no Markdown or HTML, which
`reports.data_quality` makes from the same values.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from fintune import __version__
from fintune.config import Recipe
from fintune.data.prepare.dataset import SPLITS, PreparedDataset
from fintune.data.quality.held_out import FRAME_TEXTS, Found, HeldOut, passages, public_and_prepared
from fintune.data.raw.registry import DATASETS
from fintune.data.records import Split, text_key
from fintune.errors import CheckFailed
from fintune.prompts import PromptTemplate
from fintune.tasks.base import Record, Task
from fintune.text import encoding
from fintune.text.near_duplicates import THRESHOLD, frame, pairs, shingles, similarity

SCHEMA = 1
"""Increased when a key of `quality.json` changes its meaning or is removed."""
NAMED = 10
"""How many examples of each finding are shown; all are counted."""
SHOWN = 160
"""How many characters of a text are shown."""
NEAR_ROWS = 200_000
"""The first rows of a split, in memory, that are searched for near duplicates."""
BINS = 24

Splits = dict[Split, list[Record]]


def build(prepared: PreparedDataset, tokenizer: Any | None, recipe: Recipe) -> dict[str, Any]:
    """Measure prepared data.

    Args:
        tokenizer: the base model's; None skips token lengths.
        recipe: gives the public datasets' folder, and `training.max_length`.

    Returns:
        `schema`, `fintune`, `data`, `key`, `threshold`, `max_length`; `tasks`: the findings by task;
        `across`: each task's training texts that occur in any test set.
    """
    template = PromptTemplate(tokenizer, recipe.training.max_length) if tokenizer is not None else None
    return {
        "schema": SCHEMA,
        "fintune": __version__,
        "data": prepared.describes,
        "key": prepared.manifest["key"],
        "threshold": THRESHOLD,
        "max_length": recipe.training.max_length,
        **_found(prepared, recipe, functools.partial(_split, template=template)),
    }


def _found(
    prepared: PreparedDataset,
    recipe: Recipe,
    measure: Callable[[Task, Sequence[Record]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """`tasks` and `across` of the report: the leaks, and the result of `measure` for each task and split."""
    held_out = public_and_prepared(recipe.data, prepared)
    tasks: dict[str, Any] = {}
    across: list[dict[str, Any]] = []
    for task in prepared.task_set():
        entry = prepared.manifest["tasks"][task.name]
        splits: Splits = {split: prepared.records(task.name, split) for split in SPLITS}
        compared: Splits = {split: passages(task, splits[split]) for split in SPLITS}
        tasks[task.name] = {
            "type": task.type,
            **{key: entry[key] for key in ("dataset", "source", "licence", "dropped", "dropped_examples")},
            **({"splits": {split: measure(task, splits[split]) for split in SPLITS}} if measure else {}),
            "leaks": _between_splits(compared),
        }
        across.append(
            {"task": task.name, "dataset": entry["dataset"], "found": _across(compared["train"], held_out)}
        )
    return {"tasks": tasks, "across": {"test_sets": dict(held_out.records), "train": across}}


def leaks(report: dict[str, Any]) -> list[str]:
    """One sentence for each leak that is still in the data, which `--strict` refuses.

    A leak is a training or validation text that occurs in a test set of this run, of its own task or another.
    Rows that preparation removed are not leaks, nor is what `overlaps` lists.

    Args:
        report: the result of `build`; `tasks` and `across` are enough.
    """
    sentences = [
        f"{name}: {_counts(leak)} of {leak['to']} texts in {leak['from']}"
        for name, task in report["tasks"].items()
        for leak in task["leaks"]
        if leak["exact"] or leak["near"]
    ]
    return sentences + _across_tasks(report, of_this_run=True)


def overlaps(report: dict[str, Any]) -> list[str]:
    """One sentence for each test set outside this run's evaluation that some training text occurs in."""
    return _across_tasks(report, of_this_run=False)


def _across_tasks(report: dict[str, Any], of_this_run: bool) -> list[str]:
    """Each task's training texts that occur in other tasks' test sets, of this run or elsewhere."""
    rows = report["across"]["train"]
    sentences = []
    for row in rows:
        for test_set, found in row["found"].items():
            owners = [
                other["task"]
                for other in rows
                if test_set.startswith(f"{other['task']}: ") or _one_source(other["dataset"], test_set)
            ]
            if row["task"] not in owners and bool(owners) == of_this_run:
                sentences.append(f"{row['task']}: {_counts(found)} of {test_set}'s test texts in train")
    return sentences


def _one_source(dataset: str, other: str) -> bool:
    """Whether two names mean one dataset, or views of the same files."""
    known = DATASETS.get(dataset), DATASETS.get(other)
    return dataset == other or (None not in known and known[0].paths == known[1].paths)  # type: ignore[union-attr]


def refuse_leaks(prepared: PreparedDataset, recipe: Recipe, say: Callable[[str], None] = print) -> None:
    """Check that no training text occurs in a test set of this run, and say what was removed for that.

    Raises:
        CheckFailed: there are leaks; the message lists them, as `leaks` does.
    """
    found = _found(prepared, recipe)
    for sentence in overlaps(found):
        say(f"Not in a test set of this run: {sentence}.")
    if sentences := leaks(found):
        raise CheckFailed(
            "--strict allows no leak, but the data has these (fintune data report names the texts):\n  "
            + "\n  ".join(sentences)
            + "\nLeave data.near_duplicates at its default, and clean your own files with  fintune data "
            "decontaminate."
        )
    counts = (task["dropped"].items() for task in found["tasks"].values())
    left_out = sum(count for reason, count in chain.from_iterable(counts) if " also in " in reason)
    say(
        "No training text occurs in a test set of this run; "
        f"{left_out:,} texts that repeat a held-out one were left out."
    )


def _counts(found: dict[str, Any]) -> str:
    counts = [f"{found[how]:,} {how}" for how in ("exact", "near") if found[how]]
    return f"{' and '.join(counts)} repetitions"


# One split ------------------------------------------------------------------------------------------


def _split(task: Task, records: Sequence[Record], template: PromptTemplate | None) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": len(records)}
    if task.one_of:
        result["labels"] = dict(sorted(Counter(str(record.target) for record in records).items()))
    elif task.numeric:
        result["targets"] = _distribution([float(record.target) for record in records])  # type: ignore[arg-type]
    result["characters"] = _distribution([len(record.text) for record in records])
    result["words"] = _distribution([len(record.text.split()) for record in records])
    if template:
        result.update(_tokens(task, records, template))
    return {
        **result,
        "duplicates": _duplicates(task, records),
        "conflicts": _conflicts(records),
        "encoding": _encoding(records),
    }


def _distribution(values: Sequence[float]) -> dict[str, Any]:
    """Quantiles and a histogram; its last bin, from the 99th percentile on, has no upper bound."""
    import numpy as np

    if not len(values):
        return {}
    data = np.asarray(values)
    quantiles = np.quantile(data, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)).tolist()
    names = ("min", "p5", "p25", "median", "p75", "p95", "p99", "max")
    bins: Any = BINS
    if (data == np.floor(data)).all():  # bins with equally many whole numbers; else some would have one more
        low, top = quantiles[0], np.ceil(quantiles[-2])
        width = max(1, np.ceil((top - low + 1) / BINS))
        bins = np.arange(low, top + width + 1, width)
    counts, edges = np.histogram(np.minimum(data, quantiles[-2]), bins=bins)
    histogram = {"edges": [round(edge, 4) for edge in edges.tolist()], "counts": counts.tolist()}
    rounded = {name: round(value, 4) for name, value in zip(names, quantiles, strict=True)}
    return {**rounded, "mean": round(float(data.mean()), 4), "histogram": histogram}


def _tokens(task: Task, records: Sequence[Record], template: PromptTemplate) -> dict[str, Any]:
    """Tokens of prompt and answer together before cutting, and what `max_length` cuts."""
    lengths: list[int] = []
    for begin in range(0, len(records), 256):
        batch = records[begin : begin + 256]
        prompts = [template.prompt_text(task, record) for record in batch]
        ids = template.tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        for record, prompt in zip(batch, ids, strict=True):
            lengths.append(len(prompt) + len(template.completion_ids(task.completion(record))))
    excess = [length - template.max_length for length in lengths if length > template.max_length]
    total = sum(lengths)
    return {
        "tokens": _distribution(lengths),
        "truncated": {
            "examples": len(excess),
            "share": round(len(excess) / max(1, len(lengths)), 4),
            "tokens_cut": sum(excess),
            "share_of_tokens": round(sum(excess) / max(1, total), 4),
        },
    }


def _duplicates(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """Records whose text, with its question, duplicates an earlier one in this split."""
    keys = {record.id: _key(record) for record in records}
    repeated = len(records) - len(set(keys.values()))

    def same_question(id: str, earlier: str) -> bool:
        a, b = keys[id][1], keys[earlier][1]
        return a == b or similarity(shingles(a), shingles(b)) >= THRESHOLD

    texts = [(record.id, task.passage(record)) for record in records[:NEAR_ROWS]]
    found = pairs(texts, same_question, frame(text for _, text in texts[:FRAME_TEXTS]))
    near = [
        {
            "ids": [pair.earlier, pair.id],
            "similarity": round(pair.similarity, 4),
            "text": _shown(" ".join(keys[pair.id])),
        }
        for pair in sorted(found, key=lambda pair: -pair.similarity)
        if keys[pair.id] != keys[pair.earlier]
    ]
    return {
        "exact": repeated,
        "near": len(near),
        "near_looked_for_in": min(len(records), NEAR_ROWS),
        "examples": near[:NAMED],
    }


def _conflicts(records: Sequence[Record]) -> dict[str, Any]:
    """Texts (with their question) that have more than one target in this split."""
    by_key: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_key[_key(record)].append(record)
    found = [group for group in by_key.values() if len({record.target for record in group}) > 1]
    examples = [
        {
            "ids": [record.id for record in group],
            "targets": [_shown(record.target) for record in group],
            "text": _shown(group[0].text),
        }
        for group in found[:NAMED]
    ]
    return {"texts": len(found), "examples": examples}


def _encoding(records: Iterable[Record]) -> dict[str, Any]:
    """Records that `data.repair_encoding` would repair, and those with a lost character."""
    counts = {"repairable": 0, "lost": 0}
    examples: list[dict[str, str]] = []
    for record in records:
        parts = (record.text, record.question, record.target)
        problems = [(part, encoding.problem(part)) for part in parts if isinstance(part, str)]
        for part, problem in problems:
            if problem is None:
                continue
            counts[problem] += 1
            if len(examples) < NAMED:
                examples.append({"id": record.id, "problem": problem, "text": _around(part, problem)})
            break  # count each record once
    return {**counts, "examples": examples}


def _around(text: str, problem: encoding.Problem) -> str:
    """The damaged part of a text."""
    if problem == "lost":
        place = text.index("\ufffd")
    else:
        repaired = encoding.repair(text)
        place = next((i for i, (a, b) in enumerate(zip(text, repaired, strict=False)) if a != b), 0)
    begin = max(0, place - 30)
    return ("…" if begin else "") + _shown(text[begin : place + 50])


def _key(record: Record) -> tuple[str, str]:
    return text_key(record.text), text_key(record.question or "")


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


# Between splits and datasets ------------------------------------------------------------------------


def _between_splits(splits: Splits) -> list[dict[str, Any]]:
    """The texts of one split that duplicate another split's: whole texts, not statements."""
    common = frame(record.text for records in splits.values() for record in records[:FRAME_TEXTS])
    held_out = HeldOut(whole=True, frame=common)
    for split in ("validation", "test"):
        for record in splits[split]:
            held_out.add(split, record)
    none = {"exact": 0, "near": 0, "examples": []}
    found = {split: _across(splits[split], held_out) for split in ("train", "validation")}
    pairs = (("train", "test"), ("train", "validation"), ("validation", "test"))
    return [{"from": split, "to": other, **found[split].get(other, none)} for split, other in pairs]


def _across(records: Iterable[Record], held_out: HeldOut) -> dict[str, Any]:
    """By test set, if any: how many records duplicate one of its texts, exactly or nearly."""
    found: dict[str, list[tuple[Record, Found]]] = defaultdict(list)
    for record in records:
        for name, match in held_out.find_record(record).items():
            found[name].append((record, match))
    return {name: _counted(found[name]) for name in held_out.records if name in found}


def _counted(matches: list[tuple[Record, Found]]) -> dict[str, Any]:
    exact = sum(match.exact for _, match in matches)
    ranked = sorted(matches, key=lambda item: item[1].rank, reverse=True)
    return {
        "exact": exact,
        "near": len(matches) - exact,
        "examples": [
            {
                "id": record.id,
                "test_id": match.id,
                "exact": match.exact,
                "similarity": round(match.similarity, 4),
                "text": _shown(record.text),
            }
            for record, match in ranked[:NAMED]
        ],
    }
