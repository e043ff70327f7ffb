"""The `Task` contract: instruction, prompt, completion, how an answer is decided, and its metrics.

Each task is an object of a type, and each type is one class in `types/`. All that depends on the type is a
method or attribute here, so no other module asks for a task's type. Knows no tokenizers, models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fintune.errors import ConfigError, DataError
from fintune.metrics.measure import Measure, each
from fintune.tasks.classical import most_frequent
from fintune.tasks.example import INTERVAL, Expectation, Prediction, Record, TextFormat
from fintune.text.encoding import HALF
from fintune.text.salience import Salience

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig

__all__ = [
    "INTERVAL",
    "Analysed",
    "Answers",
    "Expectation",
    "Prediction",
    "Record",
    "Task",
    "TaskSet",
    "TextFormat",
]

Decoding = Literal["candidates", "text"]
Normalization = Literal["none", "tokens"]
NONE_OF_ITS_TYPE = "there is none for a task of type"
"""Start of the reason why a reference system does not apply to a task type."""


MISSING = Measure(
    "missing_rate",
    "missing",
    each(lambda task, _, prediction: float(task.missing(prediction))),
    better="lower",
    columns=("missing",),
    share=True,
    further=True,
)
"""The share of predictions that are not an answer; every type in this package has it."""

Answers = tuple[str, list[Prediction]]
"""A system's name in tables, and its answers."""


class Task:
    """The contract. A type subclasses it and overrides what differs; a plug-in may subclass any type.

    A new type sets `type` and `measures` and overrides what its answers need: `decide` or `parse`, perhaps
    `read_target`, `baseline`, `mistake`. The rest follows from these: data checks, training, evaluation with
    intervals, error analysis, comparison, `predict`, the demo's tab and the API's route.
    """

    type: ClassVar[str] = ""
    measures: ClassVar[tuple[Measure, ...]] = ()
    ranked_by: ClassVar[str] = ""
    """The measure that decides which of two answers is better and ranks errors; "" is the first measure."""
    headline_metrics: tuple[str, ...] = ()
    """The metrics in summary tables, best known first."""
    decoding: Decoding = "text"
    """candidates: decide by the likelihood of each candidate; text: generate the answer."""
    numeric: ClassVar[bool] = False
    """Whether targets and answers are numbers."""
    inputs: ClassVar[tuple[str, ...]] = ("text",)
    """The record fields that the prompt needs."""
    takes_turns: ClassVar[bool] = False
    """Whether a conversation is read as a record, with its last user turn as `question`."""
    every_answer: bool = False
    """Whether each answer in a conversation becomes a record, instead of only the last one."""
    grounded: ClassVar[Literal["", "passage", "bullets"]] = ""
    """How to locate an answer in its text: as a passage, or bullet by bullet."""
    error_means: ClassVar[str] = "another answer than the expected one"
    """What error analysis counts as an error, as a noun phrase."""
    needs_neighbours: ClassVar[bool] = False
    """Whether `analysis` needs the nearest training records of every example, not only of the worst."""
    semantic: ClassVar[bool] = False
    """Whether BERTScore applies to its answers."""
    verb: ClassVar[str] = "Run"
    """The label of the demo's button."""
    input_lines: ClassVar[int] = 3
    """The height of the demo's text box."""
    default_salience: ClassVar[str | None] = None
    """The default of the recipe's `salience`."""
    labels: tuple[str, ...] = ()
    """The labels that answers consist of; () if answers are not labels."""
    max_new_tokens: int = 64
    learnt: tuple[str, ...] = ()
    """The fields that `fit` or `calibrate` sets and `to_dict` keeps."""
    salience: Salience | None = None
    """Chooses the sentences to keep of a text that does not fit; None cuts off its end."""
    normalization: Normalization = "none"
    """Compare candidates by the log-probability of all their tokens, or by its mean per token."""
    temperature: float = 1.0
    """Divides the adapter's log-likelihoods (Guo et al., 2017); it changes no answer."""
    calibration: Literal["none", "contextual"] = "none"
    """contextual: divide labels by their probability after content-free inputs before comparing them."""
    text_format: TextFormat | None = None
    """Constraints on generated text; None sets none."""

    def __init__(self, name: str, instruction: str) -> None:
        self.name = name
        self.instruction = instruction

    @classmethod
    def stand_in(cls, name: str, labels: Sequence[str] = ()) -> Task:
        """A task of this type that can score answers read back from a results file."""
        task = cls.__new__(cls)
        Task.__init__(task, name, "")
        task.labels = tuple(labels)
        return task

    # Prompt and completion ----------------------------------------------------------------------------

    @property
    def one_of(self) -> tuple[str, ...]:
        """The labels of which an answer is exactly one; () if answers are something else."""
        return ()

    def system(self, record: Record) -> str:
        """The system message: the instruction, or the example's own."""
        return record.system or self.instruction

    def body(self, record: Record) -> str:
        """The user's message: the part that differs between examples."""
        return record.text

    def with_text(self, record: Record, text: str) -> Record:
        """The record with a shorter text, when a prompt must be truncated."""
        return replace(record, text=text)

    def passage(self, record: Record) -> str:
        """The text that must not occur in two splits: the record's text, and a conversation's last turn.

        Questions on the same text have one passage, so they stay in one split."""
        asked = record.question if self.takes_turns else None
        return f"{record.text}\n{asked}" if asked else record.text

    def completion(self, record: Record) -> str:
        """The text the model is trained to answer with."""
        return str(record.target)

    def expectation(self, record: Record) -> Expectation | None:
        """What training on the expectation's error needs (`regression_loss_weight`); None if not a number."""
        return None

    # Data ---------------------------------------------------------------------------------------------

    def read_target(self, value: Any) -> str | float:
        """Convert a cell of a data file to a target.

        Raises:
            ValueError: the cell is not a target; the message says why.
        """
        if isinstance(value, list | tuple | Mapping):
            what = "an object" if isinstance(value, Mapping) else f"a list of {len(value)}"
            raise ValueError(f"the target is {what}, which a {self.type or self.name} task cannot read")
        return value if isinstance(value, str) else str(value)

    def relabel(self, target: str | float | None, labels: Mapping[str, str | None]) -> str | float | None:
        """The target in the task's own labels; None if rows with the data's label are to be left out.

        Args:
            labels: the data's label → the task's label.
        """
        return labels.get(target, target) if isinstance(target, str) else target

    def unknown_labels(self, record: Record) -> list[str]:
        """The labels in a record's target that the task does not have."""
        return []

    def input_problem(self, record: Record) -> str | None:
        """Why this record cannot be answered, or None if it can. Its target does not matter."""
        for name in self.inputs:
            if not str(getattr(record, name) or "").strip():
                return f"the {name} is empty"
        for name in ("text", "question", "system"):
            if HALF.search(getattr(record, name) or ""):
                return f"the {name} holds half a character (a surrogate without its other half)"
        return None

    def problem(self, record: Record) -> str | None:
        """Why this record cannot be used for training or evaluation, or None if it can."""
        if problem := self.input_problem(record):
            return problem
        if not isinstance(record.target, str) or not record.target.strip():
            return "the target is empty"
        if unknown := self.unknown_labels(record):
            return f"the label {unknown[0]!r} is unknown; task {self.name} has {', '.join(self.labels)}"
        return None

    def fit(self, records: Sequence[Record]) -> None:
        """Learn what the task needs from its training records: a regression's levels, or which sentences of
        a text to keep for a summary."""

    # Answers ------------------------------------------------------------------------------------------

    def candidates(self) -> list[str]:
        """The completions to score when `decoding` is "candidates"."""
        return []

    def obstacle(self) -> str:
        """Why the task cannot answer, such as levels not learnt yet; "" if it can."""
        try:
            self.candidates()
        except DataError as error:
            return str(error)
        return ""

    def decide(self, log_likelihoods: Sequence[float]) -> Prediction:
        """Turn each candidate's log p(candidate | prompt) into an answer."""
        raise NotImplementedError

    def calibrated(self, prediction: Prediction) -> Prediction:
        """The adapter's prediction, calibrated on validation (never the untuned base's)."""
        return prediction

    def parse(self, text: str) -> Prediction:
        """Turn generated text into an answer."""
        return Prediction(text.strip())

    def configure(self, config: EvaluationConfig) -> None:
        """Apply the recipe's `evaluation` settings to how the task answers.

        Raises:
            ConfigError: `formats` names this task, which generates no text.
        """
        wish = config.formats.get(self.name)
        if wish is None:
            return
        if self.decoding != "text":
            raise ConfigError(
                f"evaluation.formats names {self.name}, a {self.type} task, which chooses among candidates "
                "and generates no text: remove it there"
            )
        if wish.max_new_tokens:
            self.max_new_tokens = wish.max_new_tokens
        parts = wish.model_dump(exclude={"max_new_tokens"})
        if any(parts.values()):
            self.text_format = TextFormat(**parts)

    def calibrate(
        self,
        ask: Callable[[Sequence[Record]], list[Prediction]],
        records: Sequence[Record],
        config: EvaluationConfig,
        tokens: Callable[[str], int],
    ) -> dict[str, str | float]:
        """Set the fields that validation decides for this task, and return them.

        Args:
            ask: returns the adapter's predictions with the task's current settings.
            records: validation records.
            tokens: returns the number of tokens of a completion.
        """
        return {}

    def answer_columns(self) -> dict[str, Literal["text", "number"]]:
        """The columns of an answer in a table of predictions."""
        columns: dict[str, Literal["text", "number"]] = {"prediction": "number" if self.numeric else "text"}
        return columns | ({"probabilities": "text"} if self.decoding == "candidates" else {})

    def answer_cells(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """The cells of `answer_columns`.

        Args:
            line: an answer as `predict` writes it: `prediction`, perhaps `probabilities`.
        """
        import json

        cells = {"prediction": line.get("prediction")}
        if self.decoding == "candidates":
            shares = line.get("probabilities")
            cells["probabilities"] = json.dumps(shares, ensure_ascii=False) if shares else None
        return cells

    # Figures and errors -------------------------------------------------------------------------------

    def measure(self, name: str) -> Measure:
        """One of `measures`, by name."""
        return next(each for each in self.measures if each.name == name)

    @property
    def ranking(self) -> Measure | None:
        """The measure that decides which of two answers is better; None for a type without measures."""
        if not self.measures:
            return None
        return self.measure(self.ranked_by) if self.ranked_by else self.measures[0]

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics for validation during training; {} for a type without measures.

        Raises:
            DataError: there are no examples.
        """
        if len(records) != len(predictions):
            raise ValueError(f"{len(records)} records but {len(predictions)} predictions")
        if not records:
            raise DataError("There is nothing to score: the set of examples is empty.")
        chosen = (measure for measure in self.measures if not measure.further)
        return {m.name: m.of(m.table(self, records, predictions)) for m in chosen}

    def own_metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics from a plug-in's `evaluate_custom_task`."""
        rows = [
            {"text": r.text, "question": r.question, "target": r.target, "prediction": p.value}
            for r, p in zip(records, predictions, strict=True)
        ]
        return self.evaluate_custom_task(rows)

    def score(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        """What validation reports: `metrics` and a plug-in's own metrics."""
        return {**self.metrics(records, predictions), **self.own_metrics(records, predictions)}

    def missing(self, prediction: Prediction) -> bool:
        """Whether a prediction is not an answer at all."""
        return not str(prediction.value).strip()

    def baseline(self, train: Sequence[Record], test: Sequence[Record]) -> Answers:
        """The simplest system, which every model must beat, learnt only from the training records.

        Raises:
            DataError: it needs training records, and there are none.
        """
        return most_frequent(self.name, train, test)

    def references(self) -> dict[str, Callable[..., Answers | str]]:
        """Key of `evaluation.baselines` → a function (train, validation, test) that returns a classical
        system's answers, or the reason why it has none."""
        return {}

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        """The kind of mistake and its details; "" if the answer does not differ from the expected one.

        Wider than `is_error`: an answer can have a mistake and still not be an error.
        """
        return ("" if prediction.value == record.target else "another answer"), {}

    def is_error(
        self, records: Sequence[Record], predictions: Sequence[Prediction], train: Sequence[Record]
    ) -> list[bool]:
        """Whether each answer counts in the error rates; `error_means` says the same in words."""
        return [bool(self.mistake(r, p)[0]) for r, p in zip(records, predictions, strict=True)]

    def severity(self, predictions: Sequence[Prediction], values: Sequence[float]) -> list[float]:
        """How bad each answer is, for sorting errors; larger is worse.

        Args:
            values: each example's value of `ranking`.
        """
        worse = 1 if self.ranking is not None and self.ranking.better == "lower" else -1
        return [worse * value for value in values]

    def error_measure(self, values: Sequence[float]) -> tuple[str, list[float]]:
        """The name and values that error slices average: `ranking`, unless a type overrides it."""
        return (self.ranking.name if self.ranking else ""), list(values)

    def traits(self, records: Sequence[Record], train: Sequence[Record]) -> list[dict[str, str]]:
        """Each record's traits (name → value) for error slices, beside those that every type has."""
        return [{} for _ in records]

    def analysis(self, answers: Analysed) -> dict[str, Any]:
        """Parts of the error analysis that only this type has."""
        return {}

    def details(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Parts of a system's results that are not single numbers, such as a reliability curve."""
        return {}

    # Hooks of the guide, and storage ------------------------------------------------------------------

    def load_custom_dataset(self) -> list[dict[str, Any]]:
        """A plug-in's own data: dicts with `text` and `target`, optionally `question`, `group`, `split`."""
        raise NotImplementedError(f"task {self.name} has no load_custom_dataset")

    def evaluate_custom_task(self, test_data: list[dict[str, Any]]) -> dict[str, float]:
        """A plug-in's own metrics over dicts of text, question, target and prediction; {} adds none."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """What an adapter folder stores to restore the task without its data."""
        fields = {"name": self.name, "type": self.type, "instruction": self.instruction}
        return fields | ({"salience": self.salience.to_dict()} if self.salience else {})


@dataclass(frozen=True)
class Analysed:
    """What error analysis passes to a type's `analysis`."""

    records: Sequence[Record]
    predictions: Sequence[Prediction]
    order: Sequence[int]
    """Indices of the wrong or inexact answers, worst first."""
    mistakes: Sequence[tuple[str, dict[str, Any]]]
    example: Callable[[int], dict[str, Any]]
    """The example at an index, as results show it."""
    nearest: Mapping[int, Sequence[tuple[Record, float]]]
    """Index → the most similar training records with their cosines; all indices if `needs_neighbours`."""
    neighbour: Callable[[Record, float], dict[str, Any]]
    """A training record and its cosine, as results show them."""


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(score) of each, divided by their sum."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


@dataclass
class TaskSet:
    """The tasks of one run in a fixed order; a task's index is its id in a batch."""

    tasks: dict[str, Task] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Task:
        if name not in self.tasks:
            raise DataError(f"There is no task {name!r}: the tasks are {', '.join(self.tasks)}.")
        return self.tasks[name]

    def __iter__(self):
        return iter(self.tasks.values())

    def __len__(self) -> int:
        return len(self.tasks)

    def names(self) -> list[str]:
        return list(self.tasks)
