"""Mix tasks: exact shares per epoch, and the order of examples.

Everything is fixed before training starts, by the seed alone: the schedule is a list of optimizer steps, each
a list of example indices. Resuming means reading the same list from a later step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def shares(
    sizes: Mapping[str, int],
    strategy: str,
    weights: Mapping[str, float] | None = None,
    temperature: float = 2.0,
) -> dict[str, float]:
    """Each task's share of an epoch; they sum to 1, and a task without examples gets none.

    `balanced` is 1/k for each of k tasks; `proportional` n_i/Σn; `weighted` w_i/Σw; `temperature`
    n_i^(1/T)/Σn^(1/T) (Raffel et al., 2020, section 3.5.2).
    """
    present = [name for name, size in sizes.items() if size]
    raw = {
        "balanced": lambda name: 1.0,
        "proportional": lambda name: float(sizes[name]),
        "weighted": lambda name: float((weights or {})[name]),
        "temperature": lambda name: sizes[name] ** (1.0 / temperature),
    }[strategy]
    values = {name: raw(name) if name in present else 0.0 for name in sizes}
    total = sum(values.values())
    if total <= 0:
        raise ValueError("no task has both examples and a sampling weight above 0")
    return {name: value / total for name, value in values.items()}


def quotas(share: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`, nearest the shares (largest remainder; ties: first task)."""
    exact = {name: value * total for name, value in share.items()}
    counts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    rest = sorted(share, key=lambda name: counts[name] - exact[name])
    for name in rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def schedule(
    task_of: Sequence[str],
    per_epoch: Mapping[str, int],
    epochs: float,
    step_size: int,
    seed: int,
) -> list[list[int]]:
    """Optimizer steps, each a list of `step_size` indices into `task_of` (the last may be shorter).

    Every epoch has exactly `per_epoch[task]` examples of each task, shuffled together. A task's examples are
    dealt from a reshuffled deck, so none is seen twice before all were seen once, even across epochs. A final
    fraction of an epoch keeps the tasks' shares.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    members = {
        name: np.array([i for i, task in enumerate(task_of) if task == name], dtype=np.int64)
        for name in per_epoch
    }
    decks: dict[str, list[int]] = {name: [] for name in per_epoch}
    order: list[int] = []
    while epochs > 1e-9:
        part = min(1.0, epochs)
        epochs -= part
        size = round(part * sum(per_epoch.values()))
        total = sum(per_epoch.values())
        counts = per_epoch if part == 1 else quotas({n: c / total for n, c in per_epoch.items()}, size)
        drawn: list[int] = []
        for name, count in counts.items():
            while count and len(decks[name]) < count:
                decks[name].extend(rng.permutation(members[name]).tolist())
            drawn += decks[name][:count]
            del decks[name][:count]
        rng.shuffle(drawn)
        order += drawn
    return [order[i : i + step_size] for i in range(0, len(order), step_size)]
