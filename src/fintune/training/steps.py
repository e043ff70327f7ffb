"""Builds the schedule's optimizer steps as packed rows; each example has its share of the step's loss.

The loss of a step is Σ w_i · loss_i / Σ w_i over its examples i. The objective computes loss_i
(`objectives.py`); w_i is the weight of the example's task, times that of its label if
`multi_task.class_weights` has one. Every row carries w_i / Σ w, so the sum over rows is the step's loss
however the step is cut into rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fintune.kernels.packing import PackedRow, common_prefix_length, join, moved, pack, rows_of
from fintune.prompts import TokenizedExample
from fintune.training.objectives import Likelihood, Objective, Row

_Part = tuple[PackedRow, list[TokenizedExample]]


@dataclass
class Step:
    """One optimizer step.

    Attributes:
        rows: the forward passes.
        examples: the number of examples.
        tokens: tokens computed.
        plain_tokens: tokens that training without shared prefixes would compute (padding not counted).
        targets: tokens in the loss.
        slots: positions in attention's blocks, padding included.
    """

    rows: list[Row] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0
    plain_tokens: int = 0
    targets: int = 0
    slots: int = 0

    def padded(self, rows: int) -> Step:
        """The same step in at least `rows` forward passes: the last row stands in for the missing ones."""
        missing = rows - len(self.rows)
        return replace(self, rows=[*self.rows, *[_stand_in(self.rows[-1])] * missing])

    def to(self, device: torch.device | str, gather: bool = False) -> Step:
        """The same step on another device, by one copy; arguments as in `packing.moved`."""
        names = ("packed", "tasks", "answers", "weights", "extra")
        parts = moved([[getattr(row, name) for name in names] for row in self.rows], device, gather)
        rows = [
            replace(row, **dict(zip(names, part, strict=True)))
            for row, part in zip(self.rows, parts, strict=True)
        ]
        return replace(self, rows=rows)


def _stand_in(row: Row) -> Row:
    """A stand-in for the row that keeps processes in step: zero weights, no figures logged."""
    return replace(row, weights=torch.zeros_like(row.weights), counted=False)


@dataclass(eq=False)
class StepBuilder:
    """Cuts a list of examples into the rows of a step. Also a map-style dataset of the schedule's steps.

    With `world` processes each builds the rows of its own part of a step. The loss's denominator is that
    of the whole step, so the processes' losses sum to the step's loss.

    Attributes:
        schedule: the optimizer steps, each a list of indices into `examples`.
        task_weights: each task's weight in the loss; a row knows a task by its number here.
        row_size, row_tokens: the most examples and tokens per row (a single example may be longer).
        share: compute the common beginning of a task's prompts once per row.
        objective: decides which completions stand in a row.
    """

    examples: Sequence[TokenizedExample]
    schedule: Sequence[Sequence[int]]
    task_weights: Mapping[str, float]
    row_size: int
    row_tokens: int
    share: bool = True
    rank: int = 0
    world: int = 1
    objective: Objective = field(default_factory=Likelihood)

    def __post_init__(self) -> None:
        self.tasks = {name: number for number, name in enumerate(self.task_weights)}

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> Step:
        step = [self.examples[i] for i in self.schedule[index]]
        total = sum(map(self.weight, step))
        if self.world == 1:
            return self.build(step, total)
        own = parts_of([self._length(example) for example in step], self.world)[self.rank]
        if own:
            return self.build([step[i] for i in own], total)
        # Fewer examples than processes: this process takes part in the step without effect.
        return Step([_stand_in(row) for row in self.build(step[:1]).rows])

    def build(self, examples: Sequence[TokenizedExample], total: float = 1.0) -> Step:
        """The step of these examples; `total` is Σ w of the whole step."""
        step = Step(examples=len(examples), plain_tokens=sum(len(e) - 1 for e in examples))
        lengths = [self._length(example) for example in examples]
        parts: list[_Part] = []
        for members in rows_of(lengths, [e.task for e in examples], self.row_size, self.row_tokens):
            chosen = [examples[i] for i in members]
            completions = [self.objective.branches(example) for example in chosen]
            parts.append((pack([e.prompt_ids for e in chosen], completions, self.share), chosen))
        for group in self._together(parts):
            row = self._row(group, total or 1.0)
            step.rows.append(row)
            step.tokens += row.packed.input_ids.shape[1]
            step.targets += row.packed.targets.shape[0]
            step.slots += sum(block.slots for block in row.packed.layout)
        return step

    def weight(self, example: TokenizedExample) -> float:
        """The example's weight w_i."""
        return self.task_weights[example.task] * example.weight

    def _length(self, example: TokenizedExample) -> int:
        """Tokens of the example in a row: a completion's last token is only a target, never an input."""
        return len(example.prompt_ids) + 1 + sum(len(ids) - 1 for ids in self.objective.branches(example))

    def _row(self, group: list[_Part], total: float) -> Row:
        examples = [example for _, chosen in group for example in chosen]
        spans = torch.tensor([len(self.objective.branches(example)) for example in examples])
        places = torch.tensor([self.objective.answer(example) for example in examples])
        answers = spans.cumsum(0) - spans + places  # after the spans of all examples before
        return Row(
            packed=join([packed for packed, _ in group]),
            examples=examples,
            tasks=torch.tensor([self.tasks[example.task] for example in examples]),
            answers=answers,
            weights=torch.tensor([self.weight(example) / total for example in examples]),
            extra=self.objective.prepare(examples, answers),
        )

    def _together(self, parts: list[_Part]) -> list[list[_Part]]:
        """Group rows into forward passes of at most `row_tokens` tokens and `row_size` examples."""
        groups: list[list[_Part]] = []
        tokens = count = 0
        for part in parts:
            more, spans = part[0].input_ids.shape[1], len(part[1])  # counts examples, not their levels
            if not groups or tokens + more > self.row_tokens or count + spans > self.row_size:
                groups.append([])
                tokens = count = 0
            groups[-1].append(part)
            tokens, count = tokens + more, count + spans
        return groups


def parts_of(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Distribute a step's examples over `world` processes: longest first, to the one with fewest tokens."""
    parts: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        parts[least].append(i)
        loads[least] += lengths[i]
    return [sorted(part) for part in parts]


def shared_prefixes(examples: Sequence[TokenizedExample]) -> dict[str, int]:
    """The number of tokens that all prompts of a task begin with, by task."""
    prompts: dict[str, list[list[int]]] = {}
    for example in examples:
        prompts.setdefault(example.task, []).append(example.prompt_ids)
    return {task: common_prefix_length(ids) if len(ids) > 1 else 0 for task, ids in prompts.items()}
