"""How many texts a second the near-duplicate index takes and answers: `python benchmarks/near_duplicates.py`.

Generated texts of 8 to 30 words; CPU seconds of one core.
"""

from __future__ import annotations

import random
import time

from fintune.text.near_duplicates import Index

HELD_OUT, QUERIES = 3_000, 20_000


def texts(rng: random.Random, count: int) -> list[str]:
    vocabulary = [f"word{i}" for i in range(5_000)]
    return [" ".join(rng.choices(vocabulary, k=rng.randint(8, 30))) for _ in range(count)]


def main() -> None:
    rng = random.Random(0)
    held_out, queries = texts(rng, HELD_OUT), texts(rng, QUERIES)
    index = Index()
    index.add("warm", "up")
    start = time.process_time()
    for number, text in enumerate(held_out):
        index.add(number, text)
    middle = time.process_time()
    found = sum(match is not None for match in map(index.query, queries))
    end = time.process_time()
    print(f"indexed {HELD_OUT / (middle - start):,.0f} texts/s")
    print(f"answered {QUERIES / (end - middle):,.0f} texts/s")
    print(f"{found} of {QUERIES:,} unrelated texts were found to repeat one")


if __name__ == "__main__":
    main()
