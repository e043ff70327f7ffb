"""Turns records into predictions: labels and numbers are scored by likelihood, texts generated in batches.

The engine knows tasks and gives a backend token ids; it knows no data files, metrics or web servers.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fintune.config import EvaluationConfig, Recipe
from fintune.errors import DataError, ModelError
from fintune.inference import backends
from fintune.inference.backends import Backend
from fintune.inference.backends.builtin import Builtin
from fintune.kernels.packing import parts
from fintune.models.endings import end_tokens
from fintune.models.source import Source
from fintune.tasks import Prediction, Record, Task, TaskSet
from fintune.tasks.base import softmax

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fintune.inference.decoding import Allowed

CONTENT_FREE = ("N/A", "[MASK]", "")
"""The content-free inputs of contextual calibration, as in Zhao et al. (2021)."""


@dataclass(frozen=True)
class Reply:
    """The result for one record: a prediction, or the sentence that says why there is none."""

    answer: Prediction | str
    prompt_tokens: int | None = None
    """None if there is no prediction."""
    shared_tokens: int = 0
    """The number of prompt tokens that every prompt of the task begins with."""
    completion_tokens: int = 0


class _Refusals(dict[int, str]):
    """Indices of the refused records, and why; with `strict` the first refusal is raised."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    @contextlib.contextmanager
    def of(self, place: int) -> Iterator[None]:
        """Record a DataError raised inside as the refusal of the record at `place`."""
        try:
            yield
        except DataError as error:
            if self.strict:
                raise
            self[place] = error.plain  # readers of an answers file or of the API see it too


class Engine:
    """A base model, perhaps with an adapter, and the tasks it answers."""

    backend_name = backends.DEFAULT
    no_untuned_base = ""
    """Why `use_adapter=False` is refused; "" if it is allowed."""
    recipe: Recipe | None = None
    """The recipe that the model was trained with."""

    def __init__(
        self,
        model: PreTrainedModel | Backend,
        tokenizer: PreTrainedTokenizerBase,
        tasks: TaskSet,
        max_length: int,
        base_name: str,
        adapter: Path | None = None,
        batch_size: int = 16,
        keep_prefixes: bool = False,
    ) -> None:
        """
        Args:
            model: a causal LM of Transformers, or a `Backend`.
            adapter: the folder of the trained adapter, or of one merged into its base.
            keep_prefixes: keep prefixes between calls, which is right only if the weights do not change.
        """
        import torch

        from fintune.prompts import PromptTemplate

        own = isinstance(model, torch.nn.Module)
        if own:
            _refuse_unknown_tokens(model, tokenizer, base_name)
        self.backend: Backend = Builtin(model, tokenizer.pad_token_id, keep_prefixes) if own else model
        self.tokenizer = tokenizer
        self.tasks = tasks
        self.base_name = base_name
        self.adapter = adapter
        self.batch_size = batch_size
        self.template = PromptTemplate(tokenizer, min(max_length, self.backend.context or max_length))
        self.ends = frozenset(end_tokens(tokenizer, getattr(model, "generation_config", None)))
        """Ids of the tokens that end an answer."""
        self._lock = threading.Lock()
        self._frames: dict[Task, list[int]] = {}

    @classmethod
    def load(
        cls,
        model_path: str | Path | None = None,
        recipe: Recipe | None = None,
        backend: str = backends.DEFAULT,
    ) -> Engine:
        """Load an adapter folder with its base, an exported folder, or else the recipe's untuned base.

        A trained model keeps its own recipe; only `evaluation` is taken from the one given.

        Args:
            backend: one of `backends.names()`.

        Raises:
            ModelError: the folder is missing, damaged or unfit for the backend, or the base cannot be
                loaded.
            ConfigError: there is no such backend.
            MissingExtraError: the backend is not installed.
        """
        source = Source.read(model_path, recipe)
        spec = backends.check(backend, source)
        adapter = source.path if source.tuned else None
        engine = cls.of(spec.load(source), source.tokenizer, source.tasks, source.recipe, adapter)
        engine.backend_name, engine.base_name = spec.name, source.base_name
        engine.no_untuned_base = backends.untuned_base_problem(spec, source)
        return engine

    @classmethod
    def of(
        cls,
        model: PreTrainedModel | Backend,
        tokenizer: PreTrainedTokenizerBase,
        tasks: TaskSet,
        recipe: Recipe,
        adapter: Path | None,
    ) -> Engine:
        """The engine that answers as the recipe says, for a model whose weights will not change."""
        configure(tasks, recipe.evaluation)
        engine = cls(
            model,
            tokenizer,
            tasks,
            recipe.training.max_length,
            recipe.base_model.name,
            adapter,
            recipe.evaluation.batch_size,
            keep_prefixes=True,
        )
        engine.recipe = recipe
        return engine

    def columns(self, task: str) -> dict[str, str]:
        """Field → column of the file that a task was trained on; {} if unknown."""
        return self.recipe.columns(task) if self.recipe else {}

    @property
    def builtin(self) -> Builtin:
        """The built-in backend, if that is in use: training, and adapters by name, need it."""
        assert isinstance(self.backend, Builtin)
        return self.backend

    @property
    def model(self) -> PreTrainedModel:
        """The Transformers model of the built-in backend."""
        return self.builtin.model

    def answer(self, task: str, text: str, question: str | None = None, truncate: bool = True) -> Prediction:
        """The prediction for one text."""
        return self.predict(task, [Record(text=text, question=question)], truncate=truncate)[0]

    def predict(
        self,
        task: str,
        records: Sequence[Record],
        *,
        use_adapter: bool = True,
        batch_size: int | None = None,
        truncate: bool = True,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of `records`; arguments as in `replies`.

        Raises:
            DataError: an unknown task, a number task without levels, or a refused record. Records that are
                refused for their prompt are found before the model computes anything.
            ModelError: there is no untuned base.
        """
        replies = self.replies(
            task,
            records,
            use_adapter=use_adapter,
            batch_size=batch_size,
            truncate=truncate,
            on_done=on_done,
            strict=True,
        )
        return [cast(Prediction, reply.answer) for reply in replies]

    def replies(
        self,
        task: str,
        records: Sequence[Record],
        *,
        use_adapter: bool = True,
        batch_size: int | None = None,
        truncate: bool = True,
        on_done: Callable[[int], None] | None = None,
        strict: bool = False,
        prompts: Sequence[list[int] | str] | None = None,
        allowed: Sequence[Allowed] | None = None,
    ) -> list[Reply]:
        """The result for each record, in the order of `records`. A refused record costs only its own answer
        and no call of the backend. A DataError refuses one record; any other error ends the call.

        Args:
            use_adapter: False answers with the untuned base model.
            batch_size: None is the recipe's `evaluation.batch_size`.
            truncate: cut texts that do not fit the context; False refuses them.
            on_done: called with the number of records finished since the last call.
            strict: raise the first refusal.
            prompts: the records' result of `prompts`, if the caller has it already.
            allowed: the same for `formats.allowed_tokens`.

        Raises:
            DataError: an unknown task; with `strict` a refusal.
            ModelError: there is no untuned base.
        """
        if not use_adapter and self.no_untuned_base:
            raise ModelError(f"The untuned base cannot answer: {self.no_untuned_base}.")
        chosen, refusals = self.tasks[task], _Refusals(strict)
        scores = chosen.decoding == "candidates"
        found: dict[int, Reply] = {}
        with self._lock, self.backend.session(use_adapter):
            made = self.prompts(task, records, truncate, strict) if prompts is None else prompts
            refusals.update((i, each) for i, each in enumerate(made) if isinstance(each, str))
            given = {i: each for i, each in enumerate(made) if not isinstance(each, str)}
            self._free: dict[Task, list[float]] = {}
            self._tuned = use_adapter
            shared = self.backend.shared([*given.values(), self._frame(chosen)]) if given else 0
            size = batch_size or self.batch_size
            for batch in self._batches(given, size, chosen, shared) if given else ():
                ids = [given[i] for i in batch]
                if scores:
                    answers = self._score(chosen, ids, shared)
                else:
                    own = [allowed[i] for i in batch] if allowed else None
                    answers = self._generate(chosen, [records[i] for i in batch], ids, shared, own)
                for i, (decide, written) in zip(batch, answers, strict=True):
                    with refusals.of(i):
                        found[i] = Reply(decide(), len(given[i]), shared, written)
                if on_done:
                    on_done(len(batch))
        return [found.get(i) or Reply(refusals[i]) for i in range(len(records))]

    def prompts(
        self, task: str, records: Sequence[Record], truncate: bool = True, strict: bool = False
    ) -> list[list[int] | str]:
        """The token ids of each record's prompt, or why it is refused. No backend is used, so another thread
        may prepare prompts while the model computes. Arguments and errors as in `replies`."""
        chosen, refusals = self.tasks[task], _Refusals(strict)
        found: dict[int, list[int]] = {}
        budget: int | None = None
        for i, record in enumerate(records):
            with refusals.of(i):
                budget = budget or self.completion_budget(chosen)
                found[i] = self.prompt(chosen, record, truncate, budget)
        return [found[i] if i in found else refusals[i] for i in range(len(records))]

    def cost(self, task: str, prompt: Sequence[int] | str) -> int:
        """About how many tokens a prompt costs: its own, and those that may be generated after it."""
        if isinstance(prompt, str):
            return 1
        chosen = self.tasks[task]
        written = self.completion_budget(chosen) if chosen.decoding == "text" else 0
        return max(1, len(prompt) - len(self._frame(chosen))) + written

    def _frame(self, task: Task) -> list[int]:
        """A nearly empty prompt: about the tokens that all prompts of a task share."""
        if task not in self._frames:
            empty = Record(text="?", question="?")
            self._frames[task] = self.template.prompt_ids(task, empty, self.template.max_length)[0]
        return self._frames[task]

    def rows_at_once(self, task: str) -> int:
        """How many records per call of `predict` suit the backend best."""
        return self.backend.batch_limits(self.batch_size, self.tasks[task].decoding == "candidates")[0]

    def prompt(
        self, task: Task, record: Record, truncate: bool = True, budget: int | None = None
    ) -> list[int]:
        """The token ids of a record's prompt.

        Args:
            budget: tokens reserved for the answer; None is `completion_budget(task)`.

        Raises:
            DataError: the task refuses the record, or the prompt does not fit.
        """
        if problem := task.input_problem(record):
            name = f" (record {record.id})" if record.id else ""
            raise DataError(f"This {task.name} example cannot be answered: {problem}{name}.")
        room = self.template.max_length - (budget or self.completion_budget(task))
        return self.template.prompt_ids(task, record, room, truncate)[0]

    def completion_budget(self, task: Task) -> int:
        """The most tokens of an answer; at most half of the length that the model was trained with.

        Raises:
            DataError: a number task has no levels.
        """
        if task.decoding == "text":
            return min(task.max_new_tokens, self.template.max_length // 2)
        return max(len(self.template.completion_ids(c)) for c in task.candidates())

    def _batches(
        self, prompts: Mapping[int, list[int]], size: int, task: Task, shared: int
    ) -> list[list[int]]:
        """Group indices by similar length, with at most `size` prompts and the backend's limit of tokens per
        batch (the `shared` prefix does not count)."""
        scoring = task.decoding == "candidates"
        size, limit = self.backend.batch_limits(size, scoring)
        candidates = task.candidates() if scoring else ()
        more = sum(len(self.template.completion_ids(each)) - 1 for each in candidates) - shared
        order = sorted(prompts, key=lambda i: len(prompts[i]))
        batches = parts([len(prompts[i]) + more for i in order], limit, size)
        return [[order[place] for place in batch] for batch in batches]

    def _score(self, task: Task, prompts: list[list[int]], shared: int) -> list[_Decision]:
        """Decide by log p(candidate | prompt), calibrated if the task says so; generates no token."""
        free = self._content_free(task)
        heat = task.temperature if self._tuned else 1.0  # it was fitted to the adapter's answers

        def decide(scores: list[float]) -> Prediction:
            answer = task.decide([(s - c) / heat for s, c in zip(scores, free, strict=True)])
            return task.calibrated(answer) if self._tuned else answer

        return [(partial(decide, each), 0) for each in self._log_likelihoods(task, prompts, shared)]

    def _log_likelihoods(self, task: Task, prompts: list[list[int]], shared: int = 0) -> list[list[float]]:
        """For each prompt the log-likelihood of each candidate; per token if the task is normalized."""
        answers = [self.template.completion_ids(candidate) for candidate in task.candidates()]
        scores = self.backend.log_likelihoods(prompts, answers, shared)
        if task.normalization == "none":
            return scores
        return [[s / len(a) for s, a in zip(each, answers, strict=True)] for each in scores]

    def _content_free(self, task: Task) -> list[float]:
        """The log of each candidate's mean probability over content-free inputs; 0s without calibration.
        Subtracting it is W = diag(p)⁻¹ of Zhao et al. (2021), up to the sum of probabilities."""
        count = len(task.candidates())
        if task.calibration == "none":
            return [0.0] * count
        if task not in self._free:
            records = [Record(text=text) for text in CONTENT_FREE]
            prompts = [self.template.prompt_ids(task, r, self.template.max_length)[0] for r in records]
            shares = [softmax(each) for each in self._log_likelihoods(task, prompts)]
            means = [sum(share[i] for share in shares) / len(shares) for i in range(count)]
            self._free[task] = [math.log(max(mean, 1e-12)) for mean in means]
        return self._free[task]

    def _generate(
        self,
        task: Task,
        records: Sequence[Record],
        prompts: list[list[int]],
        shared: int,
        allowed: Sequence[Allowed] | None,
    ) -> list[_Decision]:
        """Greedy decoding until end of text or the task's budget, constrained to the task's format."""
        from fintune.inference.formats import allowed_tokens, without_cut_number

        budget = self.completion_budget(task)
        if allowed is None:
            choose = allowed_tokens(task.text_format, self.tokenizer, records)
        else:
            choose = lambda row, sofar: allowed[row](0, sofar)  # noqa: E731
        found = self.backend.generate(prompts, budget, self.ends, choose, shared)
        texts = self.tokenizer.batch_decode([each.ids for each in found], skip_special_tokens=True)
        if task.text_format and task.text_format.source_numbers:
            for i, each in enumerate(found):
                texts[i] = without_cut_number(texts[i]) if len(each.ids) == budget else texts[i]

        def decide(text: str, probability: float) -> Prediction:
            return replace(task.parse(text), token_probability=probability)

        return [
            (partial(decide, text, each.probability), len(each.ids))
            for text, each in zip(texts, found, strict=True)
        ]


def _refuse_unknown_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    known, size = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if size > known:
        raise ModelError(
            f"The tokenizer of {name} has {size:,} tokens, but the model embeds only {known:,}: a text with "
            "another token would fail. Use the tokenizer that the model was trained with."
        )


_Decision = tuple[Callable[[], Prediction], int]
"""Makes a prediction from the backend's output; and the tokens generated for it."""


def configure(tasks: TaskSet, config: EvaluationConfig) -> None:
    """Apply the recipe's `evaluation` section to the tasks.

    Raises:
        ConfigError: `formats` names a task that generates no text.
    """
    for task in tasks:
        task.configure(config)
