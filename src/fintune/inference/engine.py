"""Records in, predictions out: labels and numbers scored by likelihood, texts generated in batches.

The engine knows models and tasks, and nothing of files of data, metrics or web servers.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fintune.config import EvaluationConfig, Recipe
from fintune.errors import DataError, ModelError
from fintune.inference.prefix import Prefix, PrefixStore
from fintune.tasks import Prediction, Record, Task, TaskSet
from fintune.tasks.base import RegressionTask, TextFormat, softmax

ROW_TOKENS = 8192
"""Prompt tokens computed in one forward pass at most (one prompt may be longer)."""
CONTENT_FREE = ("N/A", "[MASK]", "")
"""The inputs of contextual calibration, as Zhao et al. (2021) chose them."""
DECODED_TOKENS = 4 * ROW_TOKENS
"""Prompt tokens of the texts that are written together at most: their keys and values stand in memory."""


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
        from fintune.data.templates import PromptTemplate
        from fintune.models import attention, fast_lora, fast_norm, likelihood, lora_config

        self.model = model
        self.tokenizer = tokenizer
        self.tasks = tasks
        self.base_name = base_name
        self.adapter = adapter
        self.batch_size = batch_size
        self.prefixes = PrefixStore(keep_prefixes)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_length
        self.template = PromptTemplate(tokenizer, min(max_length, context))
        self.by_blocks = attention.enable(model)
        self.fast_layers = fast_lora.enable(model)
        fast_norm.enable(model)
        with lora_config.mixed_precision(model, self.peft_forwards):
            self.head = likelihood.frozen_head(model)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model_path: str | Path | None = None, recipe: Recipe | None = None) -> Engine:
        """An adapter folder with its base model, or, without one, the recipe's untuned base.

        An adapter keeps its own recipe; only `evaluation` is taken from the one given.

        Raises:
            ModelError: the folder is missing, damaged or no adapter, or the base cannot be loaded.
        """
        from fintune.models import base, lora_config, manifest
        from fintune.recipes import default_recipe_path, load_recipe
        from fintune.tasks import task_set

        if model_path is None:
            recipe = recipe or load_recipe(default_recipe_path())
            tasks = task_set(recipe)
            folder = None
        else:
            folder = lora_config.check_adapter(model_path)
            asked = recipe
            recipe, tasks = manifest.read(folder, recipe)
            if asked is not None:
                recipe = recipe.model_copy(update={"evaluation": asked.evaluation})
        configure(tasks, recipe.evaluation)
        precision = base.choose_precision(recipe.training)
        tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
        model = base.load_base_model(recipe.base_model, precision.dtype)
        if folder is not None:
            model = lora_config.load_adapter(model, folder)
        return cls(
            model.eval(),
            tokenizer,
            tasks,
            recipe.training.max_length,
            recipe.base_model.name,
            folder,
            recipe.evaluation.batch_size,
            keep_prefixes=True,
        )

    @property
    def peft_forwards(self) -> bool:
        """Whether some LoRA layers are not on the fast path."""
        fast, layers = self.fast_layers
        return fast < layers

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
        """Predictions in the order of `records`.

        Args:
            use_adapter: False answers with the untuned base model.
            truncate: cut texts that do not fit the context; False raises instead.
            on_done: called with the number of records done since the last call.

        Raises:
            DataError: an unknown task, a prompt that does not fit, or a number task without levels.
        """
        import torch

        from fintune.models.lora_config import mixed_precision

        chosen = self.tasks[task]
        for record in records:
            if problem := chosen.input_problem(record):
                name = f" (record {record.id})" if record.id else ""
                raise DataError(f"This {task} example cannot be answered: {problem}{name}.")
        run = self._score if chosen.decoding == "candidates" else self._generate
        results: dict[int, Prediction] = {}
        precision = mixed_precision(self.model, self.peft_forwards)
        with self._lock, torch.no_grad(), self._adapter_in_use(use_adapter), precision:
            was_training = self.model.training
            self.model.eval()
            self._free: dict[Task, list[float]] = {}
            try:
                reserve = self._completion_budget(chosen)
                prompts = [
                    self.template.prompt_ids(chosen, r, self.template.max_length - reserve, truncate)[0]
                    for r in records
                ]
                prefix = self._prefix(chosen, prompts, use_adapter)
                for batch in self._batches(prompts, batch_size or self.batch_size, chosen, prefix.length):
                    own = [records[i] for i in batch]
                    answers = run(chosen, own, [prompts[i] for i in batch], prefix)
                    results.update(zip(batch, answers, strict=True))
                    if on_done:
                        on_done(len(batch))
            finally:
                self.model.train(was_training)
        return [results[i] for i in range(len(records))]

    def _prefix(self, task: Task, prompts: list[list[int]], use_adapter: bool) -> Prefix:
        """What every prompt of the task begins with, computed once."""
        if not self.by_blocks:
            return Prefix()
        other = self.template.prompt_ids(task, Record(text="?", question="?"), self.template.max_length)[0]
        return self.prefixes.find(self.model, [*prompts, other], use_adapter)

    def _completion_budget(self, task: Task) -> int:
        if task.decoding == "text":
            return min(task.max_new_tokens, self.template.max_length // 2)
        return max(len(self.template.completion_ids(c)) for c in task.candidates())

    def _batches(self, prompts: list[list[int]], size: int, task: Task, shared: int) -> list[list[int]]:
        """Indices grouped by similar length, at most `size` a batch and as many tokens as may be computed
        together (the `shared` ones of the prefix are not)."""
        limit, answers = DECODED_TOKENS, 0
        if task.decoding == "candidates":
            limit = ROW_TOKENS
            answers = sum(len(self.template.completion_ids(c)) - 1 for c in task.candidates())
            size = size if self.by_blocks else 1
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
        self, task: Task, records: Sequence[Record], prompts: list[list[int]], prefix: Prefix
    ) -> list[Prediction]:
        """Decide by log p(candidate | prompt), calibrated where the task says so."""
        free = self._content_free(task)
        scores = self._log_likelihoods(task, prompts, prefix)
        return [task.decide([s - c for s, c in zip(each, free, strict=True)]) for each in scores]

    def _log_likelihoods(self, task: Task, prompts: list[list[int]], prefix: Prefix) -> list[list[float]]:
        """For each prompt that of each candidate; its mean over tokens where the task is normalized."""
        from fintune.inference.scoring import log_likelihoods

        answers = [self.template.completion_ids(candidate) for candidate in task.candidates()]
        scores = log_likelihoods(self.model, prompts, answers, self.by_blocks, self.head, prefix)
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
            shares = [softmax(each) for each in self._log_likelihoods(task, prompts, Prefix())]
            means = [sum(share[i] for share in shares) / len(shares) for i in range(count)]
            self._free[task] = [math.log(max(mean, 1e-12)) for mean in means]
        return self._free[task]

    def _generate(
        self, task: Task, records: Sequence[Record], prompts: list[list[int]], prefix: Prefix
    ) -> list[Prediction]:
        """Greedy decoding until end of text or `task.max_new_tokens`, in the task's format."""
        from fintune.inference.formats import allowed_tokens
        from fintune.inference.generation import greedy, greedy_plain

        budget, end = self._completion_budget(task), self.tokenizer.eos_token_id
        allowed = allowed_tokens(task.text_format, self.tokenizer, [r.text for r in records])
        if self.by_blocks:
            found = greedy(self.model, prompts, prefix, budget, end, ROW_TOKENS, allowed)
        else:
            found = greedy_plain(self.model, prompts, budget, end, self.tokenizer.pad_token_id, allowed)
        texts = self.tokenizer.batch_decode([each.ids for each in found], skip_special_tokens=True)
        return [
            replace(task.parse(text), token_probability=each.probability)
            for text, each in zip(texts, found, strict=True)
        ]

    def _adapter_in_use(self, use_adapter: bool) -> Any:
        if use_adapter or not hasattr(self.model, "disable_adapter"):
            return contextlib.nullcontext()
        return self.model.disable_adapter()


def configure(tasks: TaskSet, config: EvaluationConfig) -> None:
    """Make tasks answer as the recipe's `evaluation` says."""
    for task in tasks:
        if task.type == "classification":
            task.calibration = config.calibration
            if config.label_normalization != "auto":
                task.normalization = config.label_normalization
        if isinstance(task, RegressionTask):
            task.answers_with = config.number_decoding
        if task.name in config.formats:
            task.text_format = TextFormat(**config.formats[task.name].model_dump())


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
