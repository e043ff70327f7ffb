"""What of the references is still in a transcript when its salient sentences alone are kept: ROUGE recall.

    python benchmarks/salience.py [--quick] [--json PATH] [--data_dir DIR]

ECTSum's validation split, SmolLM2's tokens, the project's ROUGE (with stemming). `learnt` was fitted on
training transcripts. `oracle` knows the reference, and takes the sentences that add most of its words.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import parser, save

BUDGETS = (256, 512, 1024, 2048)
METHODS = ("lead", "score", "bm25", "learnt")
ROUGE = ("rouge1", "rouge2", "rougeL")
SHOWN = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L"}


class Stemmer:
    """Porter's, as rouge-score's own, with a memory: transcripts repeat their words."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(None)(PorterStemmer().stem)


def scorer() -> tuple[Any, Callable[[str], list[str]]]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    stemmer = Stemmer()

    class Tokenizer:
        def tokenize(self, text: str) -> list[str]:
            return tokenize(text, stemmer)

    return RougeScorer(list(ROUGE), tokenizer=Tokenizer()), Tokenizer().tokenize


def oracle(
    text: str, reference: str, budget: int, count: Callable[[str], int], words: Callable[[str], list[str]]
) -> str:
    """Greedy: at each step the sentence that adds most of the reference's words and pairs, while one fits."""
    from fintune.text.sentences import sentences

    def grams(text: str) -> Counter[Any]:
        found = words(text)
        return Counter([*found, *pairwise(found)])

    left = grams(reference)
    pool = [(i, s, count(s + "\n"), grams(s) & left) for i, s in enumerate(sentences(text))]
    chosen: list[tuple[int, str]] = []
    while pool := [item for item in pool if item[2] <= budget]:
        best = max(pool, key=lambda item: ((item[3] & left).total(), -item[0]))
        pool.remove(best)
        chosen.append(best[:2])
        budget -= best[2]
        left -= best[3]
    return "\n".join(sentence for _, sentence in sorted(chosen))


def main() -> None:
    flags = parser(__doc__, "40 transcripts instead of 100", measure=1)
    args = flags.parse_args()
    if not args.data_dir:
        flags.error("--data_dir or FINTUNE_DATA_DIR must name the folder of the public datasets")
    from fintune.data.raw.registry import DATASETS
    from fintune.models.base import load_tokenizer
    from fintune.text.salience import Salience

    tokenizer = load_tokenizer("smollm2-135m-instruct")

    @lru_cache(None)
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    records = list(DATASETS["ectsum"].read(Path(args.data_dir)))
    held_out = random.Random(0).sample(
        [r for r in records if r.split == "validation"], 40 if args.quick else 100
    )
    start = time.perf_counter()
    train = [(r.text, str(r.target)) for r in records if r.split == "train"]
    random.Random(0).shuffle(train)
    ways = {name: Salience(name).fit(train) for name in METHODS}
    flat: dict[str, float] = {"learnt_fit_seconds": time.perf_counter() - start}
    rouge, words = scorer()
    print(f"{len(held_out)} transcripts; learnt fitted in {flat['learnt_fit_seconds']:.1f} s")
    for record in held_out:  # so that a method's time is its own
        count(record.text)
    print(
        f"{'method':8}" + "".join(f"{f'{SHOWN[r]} {b}':>10}" for b in BUDGETS for r in ROUGE) + f"{'ms':>8}"
    )
    for name in (*METHODS, "oracle"):
        sums = dict.fromkeys([(b, r) for b in BUDGETS for r in ROUGE], 0.0)
        seconds = 0.0
        for record in held_out:
            for budget in BUDGETS:
                begun = time.perf_counter()
                if name == "oracle":
                    text = oracle(record.text, str(record.target), budget, count, words)
                else:
                    text = ways[name].select(record.text, budget, count)
                seconds += time.perf_counter() - begun
                for key, score in rouge.score(str(record.target), text).items():
                    sums[budget, key] += score.recall
        means = {
            f"{name}_{key}_recall_{budget}": total / len(held_out) for (budget, key), total in sums.items()
        }
        flat |= means | {f"{name}_ms": 1000 * seconds / len(held_out) / len(BUDGETS)}
        print(
            f"{name:8}" + "".join(f"{value:10.3f}" for value in means.values()) + f"{flat[f'{name}_ms']:8.1f}"
        )
    save(args.json, flat)


if __name__ == "__main__":
    main()
