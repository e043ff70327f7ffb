"""The schedule's optimizer steps as packed rows, each example with its share of the step's loss.

The loss of a step is Σ w_i · meanNLL_i / Σ w_i over its examples i, w_i the weight of the example's task.
Rows are only how it is computed: every row carries w_i / Σ w, so the sum over rows is the step's loss
however the step is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fintune.data.batching import PackedRow, common_prefix_length, join, pack, rows_of
from fintune.data.templates import TokenizedExample


@dataclass
class Step:
    """One optimizer step.

    Attributes:
        rows: the forward passes.
        weights: for each row (spans,) float32, w_i / Σ w of its examples.
        tasks: for each row the task of each of its spans (none of a padding row).
        examples: the number of examples.
        tokens: tokens computed.
        plain_tokens: tokens that training without shared prefixes would compute (no padding counted).
        targets: tokens the loss is over.
        slots: places of attention's blocks, padding included.
    """

    rows: list[PackedRow] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    tasks: list[list[str]] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0
    plain_tokens: int = 0
    targets: int = 0
    slots: int = 0

    def padded(self, rows: int) -> Step:
        """The same step in `rows` forward passes at least: the last row again, with weights of 0."""
        import torch

        missing = range(rows - len(self.rows))
        return replace(
            self,
            rows=[*self.rows, *(self.rows[-1] for _ in missing)],
            weights=[*self.weights, *(torch.zeros_like(self.weights[-1]) for _ in missing)],
            tasks=[*self.tasks, *([] for _ in missing)],
        )


class StepBuilder:
    """Cuts a list of examples into the rows of a step. Also a map-style dataset of the schedule's steps.

    Among `world` processes each builds the rows of its own part of a step, and the loss's denominator is
    that of the whole step, so the sum of the processes' losses is the step's.
    """

    def __init__(
        self,
        examples: Sequence[TokenizedExample],
        schedule: Sequence[Sequence[int]],
        task_weights: Mapping[str, float],
        row_size: int,
        row_tokens: int,
        share: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.examples = examples
        self.schedule = schedule
        self.task_weights = task_weights
        self.row_size = row_size
        self.row_tokens = row_tokens
        self.share = share
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> Step:
        step = [self.examples[i] for i in self.schedule[index]]
        total = sum(self.task_weights[e.task] for e in step)
        if self.world == 1:
            return self.build(step, total)
        own = parts_of([len(e) for e in step], self.world)[self.rank]
        if own:
            return self.build([step[i] for i in own], total)
        # Fewer examples than processes: every process must take part in the step, this one with weight 0.
        return self.build(step[:1], float("inf"))

    def build(self, examples: Sequence[TokenizedExample], total: float = 1.0) -> Step:
        """The step of these examples; `total` is Σ w of the whole step."""
        import torch

        total = total or 1.0
        step = Step(examples=len(examples), plain_tokens=sum(len(e) - 1 for e in examples))
        lengths = [len(e) for e in examples]
        parts: list[tuple[PackedRow, list[str]]] = []
        for members in rows_of(lengths, [e.task for e in examples], self.row_size, self.row_tokens):
            chosen = [examples[i] for i in members]
            prompts = [e.prompt_ids for e in chosen]
            row = pack(prompts, [[e.completion_ids] for e in chosen], self.share)
            parts.append((row, [e.task for e in chosen]))
        for group in self._together(parts):
            row = join([part for part, _ in group])
            tasks = [task for _, names in group for task in names]
            step.rows.append(row)
            step.weights.append(torch.tensor([self.task_weights[task] / total for task in tasks]))
            step.tasks.append(tasks)
            step.tokens += row.input_ids.shape[1]
            step.targets += row.targets.shape[0]
            step.slots += sum(block.slots for block in row.layout)
        return step

    def _together(self, parts: list[tuple[PackedRow, list[str]]]) -> list[list[tuple[PackedRow, list[str]]]]:
        """Group rows into forward passes of at most `row_tokens` tokens and `row_size` examples."""
        groups: list[list[tuple[PackedRow, list[str]]]] = []
        tokens = count = 0
        for part in parts:
            more, spans = part[0].input_ids.shape[1], len(part[1])
            if not groups or tokens + more > self.row_tokens or count + spans > self.row_size:
                groups.append([])
                tokens = count = 0
            groups[-1].append(part)
            tokens, count = tokens + more, count + spans
        return groups


def parts_of(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Deal a step's examples to `world` processes, the longest first, each to the one with fewest tokens."""
    parts: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        parts[least].append(i)
        loads[least] += lengths[i]
    return [sorted(part) for part in parts]


def shared_prefixes(examples: Sequence[TokenizedExample]) -> dict[str, int]:
    """For each task the number of tokens with which all its prompts begin."""
    prompts: dict[str, list[list[int]]] = {}
    for example in examples:
        prompts.setdefault(example.task, []).append(example.prompt_ids)
    return {task: common_prefix_length(ids) if len(ids) > 1 else 0 for task, ids in prompts.items()}
