"""The schedule's optimizer steps as packed rows, each example with its share of the step's loss.

The loss of a step is Σ w_i · meanNLL_i / Σ w_i over its examples i, w_i the weight of the example's task
(times that of its label, where `multi_task.class_weights` has one).
Rows are only how it is computed: every row carries w_i / Σ w, so the sum over rows is the step's loss
however the step is cut.

With `training.regression_loss_weight` λ a regression example's loss is meanNLL_i + λ · (E_i − y_i)² / Var y,
E_i = Σ p(level) · mean(level) under the model's distribution over the levels (RAIL, Lukasik et al., 2025).
All levels are then branches of the example: for 15 levels of 5 tokens about 60 tokens more an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fintune.kernels.packing import PackedRow, common_prefix_length, join, pack, rows_of
from fintune.prompts import Levels, PromptTemplate, TokenizedExample
from fintune.tasks.base import Record, TaskSet
from fintune.tasks.types import RegressionTask


@dataclass
class Expectations:
    """The regression examples of a row: each has a run of spans, one a level.

    spans: (R, K) the spans of each, padded with its last; present: (R, K) bool; means: (R, K); targets,
    variances and weights (w_i / Σ w): (R,).
    """

    spans: Any
    present: Any
    means: Any
    targets: Any
    variances: Any
    weights: Any

    def loss(self, log_likelihoods: Any) -> Any:
        """Σ w_i / Σ w · (E_i − y_i)² / Var y; log_likelihoods: (spans,) of the row, in nats."""
        own = {name: getattr(self, name).to(log_likelihoods.device) for name in self.__dataclass_fields__}
        scores = log_likelihoods[own["spans"]].masked_fill(~own["present"], float("-inf"))
        expected = (scores.softmax(dim=1) * own["means"]).sum(dim=1)
        return (own["weights"] * (expected - own["targets"]) ** 2 / own["variances"]).sum()


@dataclass
class Step:
    """One optimizer step.

    Attributes:
        rows: the forward passes.
        weights: for each row (spans,) float32, w_i / Σ w of its examples; 0 of levels beside the target.
        tasks: for each row the task of each of its spans (none of a padding row, "" of such a level).
        expectations: for each row its regression examples, where their expectation is trained; else None.
        examples: the number of examples.
        tokens: tokens computed.
        plain_tokens: tokens that training without shared prefixes would compute (no padding counted).
        targets: tokens the loss is over.
        slots: places of attention's blocks, padding included.
    """

    rows: list[PackedRow] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    tasks: list[list[str]] = field(default_factory=list)
    expectations: list[Expectations | None] = field(default_factory=list)
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
            expectations=[*self.expectations, *(None for _ in missing)],
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
        total = sum(map(self.weight, step))
        if self.world == 1:
            return self.build(step, total)
        own = parts_of([len(e) + _branches(e) for e in step], self.world)[self.rank]
        if own:
            return self.build([step[i] for i in own], total)
        # Fewer examples than processes: every process must take part in the step, this one with weight 0.
        return self.build(step[:1], float("inf"))

    def build(self, examples: Sequence[TokenizedExample], total: float = 1.0) -> Step:
        """The step of these examples; `total` is Σ w of the whole step."""
        import torch

        total = total or 1.0
        step = Step(examples=len(examples), plain_tokens=sum(len(e) - 1 for e in examples))
        lengths = [len(e) + _branches(e) for e in examples]
        parts: list[tuple[PackedRow, list[TokenizedExample]]] = []
        for members in rows_of(lengths, [e.task for e in examples], self.row_size, self.row_tokens):
            chosen = [examples[i] for i in members]
            prompts = [e.prompt_ids for e in chosen]
            answers = [e.levels.completions if e.levels else [e.completion_ids] for e in chosen]
            parts.append((pack(prompts, answers, self.share), chosen))
        for group in self._together(parts):
            row = join([part for part, _ in group])
            members_of_row = [e for _, chosen in group for e in chosen]
            shares = [self.weight(e) / total for e in members_of_row]
            spans = [
                (task, share if task else 0.0)
                for e, share in zip(members_of_row, shares, strict=True)
                for task in _span_tasks(e)
            ]
            step.rows.append(row)
            step.weights.append(torch.tensor([share for _, share in spans]))
            step.tasks.append([task for task, _ in spans])
            step.expectations.append(_expectations(members_of_row, shares))
            step.tokens += row.input_ids.shape[1]
            step.targets += row.targets.shape[0]
            step.slots += sum(block.slots for block in row.layout)
        return step

    def weight(self, example: TokenizedExample) -> float:
        """w_i of the example."""
        return self.task_weights[example.task] * example.weight

    def _together(
        self, parts: list[tuple[PackedRow, list[TokenizedExample]]]
    ) -> list[list[tuple[PackedRow, list[TokenizedExample]]]]:
        """Group rows into forward passes of at most `row_tokens` tokens and `row_size` examples."""
        groups: list[list[tuple[PackedRow, list[TokenizedExample]]]] = []
        tokens = count = 0
        for part in parts:
            more, spans = part[0].input_ids.shape[1], len(part[1])  # examples, however many levels they have
            if not groups or tokens + more > self.row_tokens or count + spans > self.row_size:
                groups.append([])
                tokens = count = 0
            groups[-1].append(part)
            tokens, count = tokens + more, count + spans
        return groups


def add_levels(
    examples: Sequence[TokenizedExample],
    records: Sequence[Record],
    tasks: TaskSet,
    template: PromptTemplate,
) -> list[TokenizedExample]:
    """The examples, those of regression tasks with all their levels, so that expectations can be trained."""
    import statistics

    targets: dict[str, list[float]] = {}
    for example, record in zip(examples, records, strict=True):
        if isinstance(tasks[example.task], RegressionTask):
            targets.setdefault(example.task, []).append(float(record.target))  # type: ignore[arg-type]
    variances = {name: statistics.pvariance(values) or 1.0 for name, values in targets.items()}
    completions = {
        name: tuple(template.completion_ids(text) for text in tasks[name].candidates()) for name in targets
    }
    found = []
    for example, record in zip(examples, records, strict=True):
        task = tasks[example.task]
        if isinstance(task, RegressionTask):
            own = task.candidates().index(task.completion(record))
            target, name = float(record.target), task.name  # type: ignore[arg-type]
            levels = Levels(completions[name], own, tuple(task.level_means), target, variances[name])
            example = replace(example, levels=levels)
        found.append(example)
    return found


def _branches(example: TokenizedExample) -> int:
    """Tokens that an example's other levels add to a row."""
    if example.levels is None:
        return 0
    return sum(len(ids) - 1 for ids in example.levels.completions) - len(example.completion_ids) + 1


def _span_tasks(example: TokenizedExample) -> list[str]:
    if example.levels is None:
        return [example.task]
    return [example.task if i == example.levels.own else "" for i in range(len(example.levels.completions))]


def _expectations(examples: Sequence[TokenizedExample], weights: Sequence[float]) -> Expectations | None:
    """Those of a row's examples, `weights` their shares of the step's loss; None where none has levels."""
    import torch

    begin, spans, found = 0, [], []
    for example, weight in zip(examples, weights, strict=True):
        count = len(_span_tasks(example))
        if example.levels is not None:
            spans.append(list(range(begin, begin + count)))
            found.append((example.levels, weight))
        begin += count
    if not found:
        return None
    widest = max(map(len, spans))
    padding = [widest - len(own) for own in spans]
    return Expectations(
        spans=torch.tensor([[*own, *[own[-1]] * more] for own, more in zip(spans, padding, strict=True)]),
        present=torch.tensor([[True] * len(own) + [False] * (widest - len(own)) for own in spans]),
        means=torch.tensor(
            [[*each.means, *[0.0] * more] for (each, _), more in zip(found, padding, strict=True)]
        ),
        targets=torch.tensor([each.target for each, _ in found]),
        variances=torch.tensor([each.variance for each, _ in found]),
        weights=torch.tensor([weight for _, weight in found]),
    )


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
