"""Preparing data: rows a second and peak memory from 10 thousand to 10 million rows, beside plain `datasets`.

    python benchmarks/preparation.py [--quick] [--json PATH] [--rows N …] [--workers N]

Rows are generated: a JSON line of 5 to 40 words and a label, 2 % of them exact repeats. `fintune` reads,
checks, de-duplicates, splits and orders them into Parquet. `datasets` is what one would write with it alone:
load_dataset, map (the same check and key), a filter by the keys seen so far, train_test_split twice,
to_parquet; it drops no text that stands in two splits and stratifies nothing. Every measurement is a process
of its own; memory is the largest sum over its processes, shared pages counted once (PSS).
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import answer, child, parser, save

LABELS = ("positive", "negative", "neutral")


def generate(path: Path, count: int) -> None:
    """Write `count` JSON lines, seeded."""
    words = [f"{a}{b}" for a in ("net", "gross", "pre", "under", "over", "re") for b in _STEMS]
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for i in range(count):
            if i % 50 != 1:
                text = f"{' '.join(rng.choices(words, k=rng.randint(5, 40)))} {i}"
            stream.write(json.dumps({"text": text, "target": LABELS[len(text) % 3]}) + "\n")


_STEMS = (
    "sale margin profit share bond yield debt cash flow order plant price rate cost view stock fund".split()
)


class PeakMemory:
    """The largest memory of this process and those it starts, in GiB, looked at ten times a second."""

    def __init__(self) -> None:
        self.gib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        own = psutil.Process()
        while not self._over.wait(0.1):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.gib = max(self.gib, total / 2**30)


def with_fintune(file: Path, folder: Path, workers: int) -> None:
    from fintune.config import Recipe
    from fintune.data.prepare.dataset import prepare

    task = {"name": "kind", "type": "classification", "instruction": "Which?", "labels": list(LABELS)}
    recipe = Recipe.model_validate(
        {
            "multi_task": {"task_weights": {"kind": 1}},
            "custom_task": task,
            "data": {
                "prepared_dir": str(folder / "prepared"),
                "tasks": {"kind": {"file": str(file)}},
                "near_duplicates": None,  # as `datasets` does not look for them
            },
        }
    )
    prepare(recipe, say=lambda line: None, workers=workers)


def with_datasets(file: Path, folder: Path, workers: int) -> None:
    import datasets

    from fintune.data.records import digest, text_key

    datasets.disable_progress_bars()
    rows: Any = datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(folder / "cache")
    )

    def check(row: dict[str, Any]) -> dict[str, Any]:
        whole = bool(row["text"].strip()) and row["target"] in LABELS
        return {"whole": whole, "key": str(digest(f"{text_key(row['text'])}\0{row['target']}"))}

    rows = rows.map(check, num_proc=workers)
    seen: set[str] = set()

    def first(row: dict[str, Any]) -> bool:
        new = row["whole"] and row["key"] not in seen
        seen.add(row["key"])
        return bool(new)

    rows = rows.filter(first).train_test_split(0.1, seed=42)
    parts = {"test": rows["test"], **rows["train"].train_test_split(0.1, seed=42)}
    for name, part in parts.items():
        part.to_parquet(str(folder / f"{name}-{len(parts)}.parquet"))


SYSTEMS: dict[str, Callable[[Path, Path, int], None]] = {"fintune": with_fintune, "datasets": with_datasets}


def measure(system: str, file: str, workers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        begin = time.perf_counter()
        SYSTEMS[system](Path(file), Path(folder), workers)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_gib": memory.gib}


def main() -> None:
    flags = parser(__doc__, "10 and 200 thousand rows", measure=3, data=False)
    flags.add_argument("--rows", nargs="+", type=int, default=None)
    flags.add_argument("--workers", type=int, default=os.cpu_count())
    args = flags.parse_args()
    if args.measure:
        system, file, workers = args.measure
        answer(lambda: measure(system, file, int(workers)))
        return
    sizes = args.rows or ([10_000, 200_000] if args.quick else [10_000, 100_000, 1_000_000, 10_000_000])
    flat: dict[str, float] = {}
    print(f"{'rows':>12}{'system':>12}{'rows/s':>12}{'peak GiB':>10}{'fintune is':>12}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            generate(file, size)
            found = {name: child(__file__, name, file, args.workers, mimalloc=False) for name in SYSTEMS}
        for name, run in found.items():
            ratio = run["seconds"] / found["fintune"]["seconds"]
            speed = size / run["seconds"]
            print(f"{size:12,}{name:>12}{speed:12,.0f}{run['peak_gib']:10.2f}{ratio:11.2f}x", flush=True)
            flat[f"{name}_{size}_rows_per_second"] = speed
            flat[f"{name}_{size}_peak_gib"] = run["peak_gib"]
        flat[f"speed_vs_datasets_{size}"] = found["datasets"]["seconds"] / found["fintune"]["seconds"]
    flat["memory_growth"] = flat[f"fintune_{sizes[-1]}_peak_gib"] / flat[f"fintune_{sizes[0]}_peak_gib"]
    save(args.json, flat)


if __name__ == "__main__":
    main()
