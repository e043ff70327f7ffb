"""Whether the passage with the answer is among those that are read, within a model's room.

    python benchmarks/retrieval.py --data_dir DIR [--model_path ADAPTER]

- financial-qa-10k: for each of some companies one document of the length of an annual report: all contexts of
  the company among those of others. A question's passage is the one with the beginning of its context.
- the filings: the questions of `filing_questions.py`.
- «not in this document»: the share of answerable questions that are answered, and of questions of other
  companies (or off the filing's subjects) that are refused, by threshold.
- with an adapter: token F1 of its answers on financial-qa-10k, by how the passages are chosen and ordered.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from filing_questions import ANSWERED, UNANSWERED

from fintune.data.documents.passages import Block, Document, passages
from fintune.data.documents.reading import page_blocks
from fintune.inference.documents import FOUND
from fintune.models.base import load_tokenizer
from fintune.text.ranking import Ranking

SIZES = (40, 60, 100, 200)
ROOMS = (400, 850, 1800)
TOP = (1, 3, 5, 10)
COMPANIES, QUESTIONS, OTHERS = 20, 20, 8
"""Companies of financial-qa-10k, questions of each, and companies whose contexts stand beside."""


class Asked(NamedTuple):
    question: str
    has: Callable[[str], bool]
    """Whether a passage has the answer."""
    target: str = ""


class Set(NamedTuple):
    name: str
    blocks: Sequence[Block]
    asked: Sequence[Asked]
    unanswered: Sequence[str]


def company_sets(folder: Path, most: int) -> Iterator[Set]:
    with (folder / "financial_qa_10k" / "Financial-QA-10k.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["context"] and row["question"] and row["answer"]]
    by_company: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_company[row["ticker"]].append(row)
    rng = random.Random(0)
    names = sorted(by_company)
    rng.shuffle(names)
    for name in names[:COMPANIES]:
        beside = [other for other in rng.sample(names, OTHERS) if other != name]
        texts = list(dict.fromkeys(row["context"] for each in (name, *beside) for row in by_company[each]))
        rng.shuffle(texts)
        asked = [
            Asked(row["question"], lambda text, begin=row["context"][:60]: begin in text, row["answer"])
            for row in by_company[name][:most]
        ]
        strangers = [other for other in rng.sample(names, 5) if other not in (name, *beside)]
        yield Set(
            name,
            [Block(text) for text in texts],
            asked,
            [row["question"] for other in strangers for row in by_company[other][:4]],
        )


def filing_sets(folder: Path) -> Iterator[Set]:
    for name, questions in ANSWERED.items():
        blocks = page_blocks((folder / "filings" / name).read_bytes(), name)
        asked = [
            Asked(question, lambda text, sought=re.compile(pattern): bool(sought.search(text)))
            for question, pattern in questions
        ]
        yield Set(name, blocks, asked, UNANSWERED[name])


def recall(sets: Sequence[Set], size: int, tokens: Callable[[str], int]) -> dict[str, float]:
    """Recall among the first k passages, and among those that fit the room, taken by rank."""
    found: Counter[str] = Counter()
    total = 0
    for each in sets:
        cut = passages(each.blocks, each.name, False, size)
        texts = [f"{passage.section}\n{passage.text}" for passage in cut]
        ranking = Ranking(texts)
        costs = [tokens(passage.text) + 1 for passage in cut]
        for asked in each.asked:
            total += 1
            scores = ranking.scores(asked.question)
            order = sorted(range(len(cut)), key=lambda i: -scores[i])
            right = [asked.has(cut[i].text) for i in order]
            for k in TOP:
                found[f"@{k}"] += any(right[:k])
            for room in ROOMS:
                left = room
                for i, good in zip(order[:60], right, strict=False):
                    if costs[i] <= left:
                        left -= costs[i]
                        if good:
                            found[f"{room} tokens"] += 1
                            break
    return {name: found[name] / total for name in (*(f"@{k}" for k in TOP), *(f"{r} tokens" for r in ROOMS))}


def refusals(sets: Sequence[Set]) -> None:
    """What a threshold on the best passage's share of the question's words keeps and refuses."""
    right, wrong = [], []
    for each in sets:
        ranking = Ranking([f"{p.section}\n{p.text}" for p in passages(each.blocks, each.name, False)])
        right += [max(ranking.coverage(asked.question)) for asked in each.asked]
        wrong += [max(ranking.coverage(question)) for question in each.unanswered]
    print(f"| threshold | answered of {len(right)} with an answer | refused of {len(wrong)} without |")
    print("|---|---:|---:|")
    for threshold in (0.2, 0.3, FOUND, 0.4, 0.5):
        kept = sum(share >= threshold for share in right) / len(right)
        refused = sum(share < threshold for share in wrong) / len(wrong)
        print(f"| {threshold} | {kept:.3f} | {refused:.3f} |")


def answers(sets: Sequence[Set], model_path: str) -> None:
    """Token F1 of an adapter's answers, with the passages by rank or in order, few or as many as fit."""
    from fintune.inference import documents as reader
    from fintune.inference.engine import Engine
    from fintune.text.answers import answer_scores

    engine = Engine.load(model_path)
    task = engine.tasks["qa"]
    found = []
    for each in sets:
        document = Document(each.name, passages(each.blocks, each.name, False))
        found += [(asked, reader.ask(task, [document], asked.question)) for asked in each.asked]
    for most, ordered in (
        (1, True),
        (3, True),
        (3, False),
        (reader.SEARCHED, True),
        (reader.SEARCHED, False),
    ):
        readings = []
        for _, question in found:
            places = reader.fitting(engine, task, question, (question.ranked or (0,))[:most])
            readings.append(reader.joined(question, sorted(places) if ordered else places))
        given = engine.predict("qa", [reading.record for reading in readings])
        scores = [
            answer_scores(asked.target, str(prediction.value))[1]
            for (asked, _), prediction in zip(found, given, strict=True)
        ]
        name = f"{'all that fit' if most > 3 else most}, {'in order' if ordered else 'by rank'}"
        print(f"| {name} | {sum(scores) / len(scores):.3f} | {len(scores)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--model_path")
    parser.add_argument("--companies", type=int, default=COMPANIES)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    args = parser.parse_args()
    tokenizer = load_tokenizer("smollm2-135m-instruct")

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    groups = {
        "financial-qa-10k": list(company_sets(args.data_dir, args.questions))[: args.companies],
        "filings": list(filing_sets(args.data_dir)),
    }
    if args.model_path:
        answers(groups["financial-qa-10k"], args.model_path)
        return
    for name, sets in groups.items():
        begun = time.perf_counter()
        print(f"\n{name}: {sum(len(each.asked) for each in sets)} questions, {len(sets)} documents\n")
        for size in SIZES:
            found = recall(sets, size, tokens)
            if size == SIZES[0]:
                print("| words of a passage | " + " | ".join(found) + " |")
                print("|---|" + "---:|" * len(found))
            print(f"| {size} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |", flush=True)
        print()
        refusals(sets)
        print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
