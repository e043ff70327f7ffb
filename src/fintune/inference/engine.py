"""Records in, predictions out: labels and numbers scored by likelihood, texts generated in batches.

The engine knows tasks and asks a backend with token ids; nothing of files of data, metrics or web servers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fintune.config import EvaluationConfig, Recipe
from fintune.errors import DataError, ModelError
from fintune.inference.backends import Backend
from fintune.inference.backends.builtin import Builtin
from fintune.tasks import Prediction, Record, Task, TaskSet
from fintune.tasks.base import softmax

CONTENT_FREE = ("N/A", "[MASK]", "")
"""The inputs of contextual calibration, as Zhao et al. (2021) chose them."""


@dataclass(frozen=True)
class Usage:
    """The tokens of one answer."""

    prompt: int
    shared: int
    """Of the prompt: those that every prompt of the task begins with."""
    completion: int


class Engine:
    """A base model, perhaps with an adapter, and the tasks it answers."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
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
            keep_prefixes: of earlier calls, which needs weights that do not change.
        """
        import torch

        from fintune.prompts import PromptTemplate

        own = isinstance(model, torch.nn.Module)
        self.backend: Backend = Builtin(model, tokenizer.pad_token_id, keep_prefixes) if own else model
        self.tokenizer = tokenizer
        self.tasks = tasks
        self.base_name = base_name
        self.adapter = adapter
        self.batch_size = batch_size
        self.template = PromptTemplate(tokenizer, min(max_length, self.backend.context or max_length))
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, model_path: str | Path | None = None, recipe: Recipe | None = None, backend: str = "builtin"
    ) -> Engine:
        """An adapter folder with its base model, an exported folder, or else the recipe's untuned base.

        What was trained keeps its own recipe; only `evaluation` is taken from the one given.

        Args:
            backend: one of `backends.NAMES`; `llama.cpp` takes a folder that has a GGUF file.

        Raises:
            ModelError: the folder is missing, damaged or not what the backend takes, or the base cannot be
                loaded.
            MissingExtraError: the backend is not installed.
        """
        from fintune.models import adapters, base, manifest
        from fintune.recipes import default_recipe_path, load_recipe
        from fintune.tasks import task_set

        if model_path is None:
            recipe = recipe or load_recipe(default_recipe_path())
            tasks = task_set(recipe)
            folder = None
        else:
            asked, exported = recipe, manifest.read_exported(model_path)
            folder = None if exported else adapters.check_adapter(model_path)
            recipe, tasks = exported or manifest.read(model_path, recipe)
            if asked is not None:
                recipe = recipe.model_copy(update={"evaluation": asked.evaluation})
        precision = base.choose_precision(recipe.training)
        model: Any
        if backend == "llama.cpp":
            from fintune.inference.backends.llamacpp import LlamaCpp

            model = LlamaCpp.load(model_path, recipe.training.max_length)
        elif backend == "vllm":
            from fintune.inference.backends.vllm import Vllm

            name, revision = recipe.base_model.name, recipe.base_model.revision
            rank = adapters.rank(folder) if folder else 0
            dtype = str(precision.dtype).removeprefix("torch.")
            length = recipe.training.max_length
            model = Vllm(base.resolve(name), folder, rank, length, revision, dtype=dtype)
        else:
            if folder is None and model_path and any(Path(model_path).glob("*.gguf")):
                raise ModelError(f"{model_path} holds a GGUF file: ask it with --backend llama.cpp.")
            model = base.load_base_model(recipe.base_model, precision.dtype)
            if folder:
                model = adapters.load_adapter(model, folder)
                adapters.merge(model)
            model.eval()
        tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
        return cls.of(model, tokenizer, tasks, recipe, folder)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, tasks: TaskSet, recipe: Recipe, adapter: Path | None) -> Engine:
        """The engine that answers as the recipe says, with a model that will not change."""
        configure(tasks, recipe.evaluation)
        return cls(
            model,
            tokenizer,
            tasks,
            recipe.training.max_length,
            recipe.base_model.name,
            adapter,
            recipe.evaluation.batch_size,
            keep_prefixes=True,
        )

    @property
    def builtin(self) -> Builtin:
        """The backend, where it is the built-in one: what training, and adapters by name, work on."""
        assert isinstance(self.backend, Builtin)
        return self.backend

    @property
    def model(self) -> Any:
        """The model of Transformers that the built-in backend asks."""
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
        usage: dict[int, Usage] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of `records`.

        Args:
            use_adapter: False answers with the untuned base model.
            truncate: cut texts that do not fit the context; False raises instead.
            on_done: called with the number of records done since the last call.
            usage: is given each record's, by its place in `records`.

        Raises:
            DataError: an unknown task, a prompt that does not fit, or a number task without levels.
        """
        chosen = self.tasks[task]
        run = self._score if chosen.decoding == "candidates" else self._generate
        results: dict[int, Prediction] = {}
        with self._lock, self.backend.session(use_adapter):
            self._free: dict[Task, list[float]] = {}
            self._tuned = use_adapter
            prompts = self._prompts(chosen, records, truncate)
            shared = self._shared(chosen, prompts)
            for batch in self._batches(prompts, batch_size or self.batch_size, chosen, shared):
                own = [records[i] for i in batch]
                answers = run(chosen, own, [prompts[i] for i in batch], shared)
                for i, (answer, written) in zip(batch, answers, strict=True):
                    results[i] = answer
                    if usage is not None:
                        usage[i] = Usage(len(prompts[i]), shared, written)
                if on_done:
                    on_done(len(batch))
        return [results[i] for i in range(len(records))]

    def problem(self, task: str, record: Record, truncate: bool = True) -> str | None:
        """Why `predict` refuses this record; None where it does not. The model is not asked."""
        try:
            self._prompts(self.tasks[task], [record], truncate)
        except DataError as error:
            return str(error)
        return None

    def _prompts(self, task: Task, records: Sequence[Record], truncate: bool) -> list[list[int]]:
        for record in records:
            if problem := task.input_problem(record):
                name = f" (record {record.id})" if record.id else ""
                raise DataError(f"This {task.name} example cannot be answered: {problem}{name}.")
        room = self.template.max_length - self._completion_budget(task)
        return [self.template.prompt_ids(task, record, room, truncate)[0] for record in records]

    def _shared(self, task: Task, prompts: list[list[int]]) -> int:
        """How many tokens every prompt of the task begins with, where the backend computes them once."""
        other = self.template.prompt_ids(task, Record(text="?", question="?"), self.template.max_length)[0]
        return self.backend.shared([*prompts, other])

    def _completion_budget(self, task: Task) -> int:
        if task.decoding == "text":
            return min(task.max_new_tokens, self.template.max_length // 2)
        return max(len(self.template.completion_ids(c)) for c in task.candidates())

    def _batches(self, prompts: list[list[int]], size: int, task: Task, shared: int) -> list[list[int]]:
        """Indices grouped by similar length, at most `size` a batch and as many tokens as may be computed
        together (the `shared` ones of the prefix are not)."""
        scoring = task.decoding == "candidates"
        size, limit = self.backend.batch_limits(size, scoring)
        answers = 0
        if scoring:
            answers = sum(len(self.template.completion_ids(c)) - 1 for c in task.candidates())
        batches: list[list[int]] = []
        tokens = 0
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            own = len(prompts[i]) - shared + answers
            if not batches or len(batches[-1]) == size or tokens + own > limit:
                batches.append([])
                tokens = 0
            batches[-1].append(i)
            tokens += own
        return batches

    def _score(
        self, task: Task, records: Sequence[Record], prompts: list[list[int]], shared: int
    ) -> list[tuple[Prediction, int]]:
        """Decide by log p(candidate | prompt), calibrated where the task says so; no token is written."""
        free = self._content_free(task)
        scores = self._log_likelihoods(task, prompts, shared)
        heat = task.temperature if self._tuned else 1.0  # it was fitted to the adapter's answers
        answers = [task.decide([(s - c) / heat for s, c in zip(each, free, strict=True)]) for each in scores]
        if self._tuned:
            answers = [task.calibrated(answer) for answer in answers]
        return [(answer, 0) for answer in answers]

    def _log_likelihoods(self, task: Task, prompts: list[list[int]], shared: int = 0) -> list[list[float]]:
        """For each prompt that of each candidate; its mean over tokens where the task is normalized."""
        answers = [self.template.completion_ids(candidate) for candidate in task.candidates()]
        scores = self.backend.log_likelihoods(prompts, answers, shared)
        if task.normalization == "none":
            return scores
        return [[s / len(a) for s, a in zip(each, answers, strict=True)] for each in scores]

    def _content_free(self, task: Task) -> list[float]:
        """For each candidate the log of its mean probability over inputs without content; 0s without
        calibration. Subtracting it is Zhao et al.'s W = diag(p)⁻¹ (2021), up to the sum of probabilities."""
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
        self, task: Task, records: Sequence[Record], prompts: list[list[int]], shared: int
    ) -> list[tuple[Prediction, int]]:
        """Greedy decoding until end of text or `task.max_new_tokens`, in its format; and how many tokens."""
        from fintune.inference.formats import allowed_tokens, without_cut_number

        budget, end = self._completion_budget(task), self.tokenizer.eos_token_id
        allowed = allowed_tokens(task.text_format, self.tokenizer, records)
        found = self.backend.generate(prompts, budget, end, allowed, shared)
        texts = self.tokenizer.batch_decode([each.ids for each in found], skip_special_tokens=True)
        if task.text_format and task.text_format.source_numbers:
            for i, each in enumerate(found):
                texts[i] = without_cut_number(texts[i]) if len(each.ids) == budget else texts[i]
        return [
            (replace(task.parse(text), token_probability=each.probability), len(each.ids))
            for text, each in zip(texts, found, strict=True)
        ]


def configure(tasks: TaskSet, config: EvaluationConfig) -> None:
    """Make tasks answer as the recipe's `evaluation` says.

    Raises:
        ConfigError: `formats` names a task that writes no text.
    """
    for task in tasks:
        task.configure(config)


def newest_adapter(root: str | Path = "output") -> Path:
    """The adapter folder written last under `root`, checkpoints left out.

    Raises:
        ModelError: there is none.
    """
    folders = [
        path.parent
        for path in Path(root).rglob("adapter_model.safetensors")
        if not any(part.startswith((".", "checkpoint-")) for part in path.relative_to(root).parts)
    ]
    if not folders:
        raise ModelError(f"There is no trained adapter under {root}/: train one with  python train.py")
    return max(folders, key=lambda folder: (folder / "adapter_model.safetensors").stat().st_mtime)
