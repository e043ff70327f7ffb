"""Defines training objectives: an example's completions in a row, the loss on them, the figures logged.

An objective is one object. It turns a row's log-likelihoods into one loss per example; the trainer only
weights and sums these. Shapes: N target tokens of a row, S spans (completions, numbered within the row),
E examples, K levels of a number.

Direct Preference Optimization (Rafailov et al., 2023, equation 7) would be written like this, for records
that hold an answer (`target`) and a worse one (`rejected`):

    class Preference(Objective):
        shown = ("loss", "preferred")
        asks_for_branches = "training.preference_beta is set"
        beta = 0.1

        def examples(self, task, records, template):
            chosen = super().examples(task, records, template)
            return [replace(e, extra=template.completion_ids(r.rejected)) for e, r in zip(chosen, records)]

        def branches(self, example):
            return [example.completion_ids, example.extra]

        def _margins(self, scores):  # (E,): how much more than the untuned base the model prefers the answer
            moved = scores.log_likelihoods - scores.reference().log_likelihoods  # (S,) = (2 E,)
            return self.beta * (moved[0::2] - moved[1::2])

        def loss(self, scores, row):
            return -logsigmoid(self._margins(scores))

        def figures(self, scores, row):
            margins = self._margins(scores)
            return {"loss": -logsigmoid(margins), "preferred": (margins > 0).float()}
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fintune.config import Recipe
from fintune.kernels.likelihood import span_log_likelihoods, span_mean_nll
from fintune.kernels.packing import PackedRow
from fintune.prompts import PromptTemplate, TokenizedExample
from fintune.tasks import Record, Task


@dataclass
class Row:
    """The examples of one forward pass. One copy per step moves all its tensors to the model's device.

    Attributes:
        packed: their tokens.
        examples: E of them; their completions are the spans of `packed`, in this order.
        tasks: (E,) int64, the number of each example's task.
        answers: (E,) int64, the span of each example's answer.
        weights: (E,) float32, each example's part of the step's loss: w_i / Σ w over the whole step.
        extra: what `Objective.prepare` made of them.
        counted: False for a stand-in row, which only makes every process run equally many forward passes:
            its weights are 0, and its figures are not logged.
    """

    packed: PackedRow
    examples: list[TokenizedExample]
    tasks: Tensor
    answers: Tensor
    weights: Tensor
    extra: Any = None
    counted: bool = True


@dataclass
class Scores:
    """The model's likelihoods of a row's completions.

    Logits of other tokens are not kept (`kernels/likelihood.py`), so a loss that needs them, such as label
    smoothing, must change `head_nll` too.

    Attributes:
        token_nll: (N,) −log p of each target token, in nats, with its gradient.
        owner: (N,) int64, the span of each target token.
        spans: S.
        reference: computes the same without adapter and gradients, for objectives that compare with the
            untuned base.
    """

    token_nll: Tensor
    owner: Tensor
    spans: int
    reference: Callable[[], Scores]

    @cached_property
    def log_likelihoods(self) -> Tensor:
        """(S,) log p(completion | prompt), in nats."""
        return span_log_likelihoods(self.token_nll, self.owner, self.spans)

    @cached_property
    def mean_nll(self) -> Tensor:
        """(S,) each completion's mean NLL per token, so that long answers weigh no more than short ones."""
        return span_mean_nll(self.token_nll, self.owner, self.spans)


class Objective(ABC):
    """What training minimizes. `objective_of` returns the one a recipe asks for."""

    shown: ClassVar[tuple[str, ...]] = ("loss",)
    """The keys of `figures`, including `loss`, whose mean over tasks is `eval_loss`. Training logs
    `<task>_<key>`, validation `eval_<task>_<key>`."""
    asks_for_branches: str = ""
    """If a row holds several completions of a prompt: the setting that causes it, as `key is value`."""

    def examples(
        self, task: Task, records: Sequence[Record], template: PromptTemplate
    ) -> list[TokenizedExample]:
        """All training examples of one task, in the order of its records."""
        return [template.example(task, record) for record in records]

    def held_out(
        self, task: Task, records: Sequence[Record], template: PromptTemplate
    ) -> list[TokenizedExample]:
        """The examples on which validation computes `figures`."""
        return self.examples(task, records, template)

    def branches(self, example: TokenizedExample) -> list[list[int]]:
        """The completions of the example's prompt that stand in its row, as token ids."""
        return [example.completion_ids]

    def answer(self, example: TokenizedExample) -> int:
        """The index of the example's answer in its `branches`."""
        return 0

    def prepare(self, examples: Sequence[TokenizedExample], answers: Tensor) -> Any:
        """What the loss needs besides the tokens of a row's examples: a dataclass of tensors, or None.

        It is made on the CPU, where rows are packed. A tensor made in `loss` would need its own copy to the
        GPU in each pass.

        Args:
            answers: (E,), `Row.answers`.
        """
        return None

    @abstractmethod
    def loss(self, scores: Scores, row: Row) -> Tensor:
        """(E,) the loss of each example, before its weight."""

    @abstractmethod
    def figures(self, scores: Scores, row: Row) -> dict[str, Tensor]:
        """For each key in `shown` an (E,) tensor, whose mean over a task's examples is logged."""


class Likelihood(Objective):
    """Supervised fine-tuning: the mean negative log-likelihood of the answer's tokens and end of text."""

    def loss(self, scores: Scores, row: Row) -> Tensor:
        return scores.mean_nll[row.answers]

    def figures(self, scores: Scores, row: Row) -> dict[str, Tensor]:
        # Not self.loss: subclasses log the plain loss too.
        return {"loss": Likelihood.loss(self, scores, row)}


@dataclass(frozen=True)
class Number:
    """What `RegressionAware` needs of one example.

    Attributes:
        completions: the token ids of its K levels.
        own: the index of the example's own level.
        means: (K,) the number each level stands for.
        target: the exact number, which may differ from its level.
        variance: variance of the task's training targets, the unit of the squared error.
    """

    completions: tuple[list[int], ...]
    own: int
    means: tuple[float, ...]
    target: float
    variance: float


@dataclass(frozen=True)
class Levels:
    """What `RegressionAware` needs of a row's R numbers; K is their largest number of levels.

    Attributes:
        examples: (R,) int64, the examples' indices in the row.
        spans: (R, K) int64, the spans of their levels.
        missing: (R, K) bool, True after the last level of a number with fewer.
        means: (R, K) float32, as in `Number`, 0 where missing.
        targets, variances: (R,) float32, as in `Number`.
    """

    examples: Tensor
    spans: Tensor
    missing: Tensor
    means: Tensor
    targets: Tensor
    variances: Tensor


class RegressionAware(Likelihood):
    """Regression-aware fine-tuning (RAIL, Lukasik et al., 2025): also trains the expected number.

    If a task answers with an expectation over levels, the loss of its examples is
    meanNLL + λ · (E − y)² / Var y, with E = Σ p(level) · mean(level) under the model's distribution over the
    levels, and λ `training.regression_loss_weight`. All levels stand in the row: 15 levels of 5 tokens add
    about 60 tokens per example. Other examples, and validation, use the plain loss.
    """

    def __init__(self, weight: float) -> None:
        """`weight` is λ."""
        self.weight = weight
        self.asks_for_branches = f"training.regression_loss_weight is {weight}"

    def examples(
        self, task: Task, records: Sequence[Record], template: PromptTemplate
    ) -> list[TokenizedExample]:
        plain = super().examples(task, records, template)
        levels = [task.expectation(record) for record in records]
        variance = statistics.pvariance([own.target for own in levels if own] or [0.0]) or 1.0
        ids: dict[str, list[int]] = {}
        found = []
        for example, record, own in zip(plain, records, levels, strict=True):
            if own is not None:
                ids |= {text: template.completion_ids(text) for text in own.levels if text not in ids}
                number = Number(
                    completions=tuple(ids[text] for text in own.levels),
                    own=own.levels.index(task.completion(record)),
                    means=tuple(own.means),
                    target=own.target,
                    variance=variance,
                )
                example = replace(example, extra=number)
            found.append(example)
        return found

    def held_out(
        self, task: Task, records: Sequence[Record], template: PromptTemplate
    ) -> list[TokenizedExample]:
        return super().examples(task, records, template)

    def branches(self, example: TokenizedExample) -> list[list[int]]:
        return list(example.extra.completions) if example.extra else [example.completion_ids]

    def answer(self, example: TokenizedExample) -> int:
        return example.extra.own if example.extra else 0

    def prepare(self, examples: Sequence[TokenizedExample], answers: Tensor) -> Levels | None:
        places = [i for i, example in enumerate(examples) if example.extra]
        if not places:
            return None
        numbers: list[Number] = [examples[i].extra for i in places]
        counts = torch.tensor([len(number.means) for number in numbers])[:, None]  # (R, 1)
        level = torch.arange(int(counts.max()))[None]  # (1, K)
        first = answers[places][:, None] - torch.tensor([[number.own] for number in numbers])
        means = torch.zeros(len(numbers), level.shape[1])
        for i, number in enumerate(numbers):
            means[i, : len(number.means)] = torch.tensor(number.means)
        return Levels(
            examples=torch.tensor(places),
            spans=first + torch.minimum(level, counts - 1),  # a number with fewer levels repeats its last one
            missing=level >= counts,
            means=means,
            targets=torch.tensor([number.target for number in numbers]),
            variances=torch.tensor([number.variance for number in numbers]),
        )

    def loss(self, scores: Scores, row: Row) -> Tensor:
        losses = super().loss(scores, row)
        if row.extra is None:
            return losses
        own: Levels = row.extra
        likelihoods = scores.log_likelihoods[own.spans].masked_fill(own.missing, float("-inf"))
        expected = (likelihoods.softmax(dim=1) * own.means).sum(dim=1)
        errors = (expected - own.targets) ** 2 / own.variances
        return losses.index_add(0, own.examples, errors, alpha=self.weight)


def objective_of(recipe: Recipe) -> Objective:
    """The objective that a recipe asks for."""
    weight = recipe.training.regression_loss_weight
    return RegressionAware(weight) if weight else Likelihood()
