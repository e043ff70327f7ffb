"""Records in, predictions out: labels and numbers scored by likelihood, texts generated in batches.

The engine knows models and tasks, and nothing of files of data, metrics or web servers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fintune.config import Recipe
from fintune.errors import DataError, ModelError
from fintune.tasks import Prediction, Record, Task, TaskSet

ROW_TOKENS = 8192
"""Prompt tokens computed in one forward pass at most (one prompt may be longer)."""


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
    ) -> None:
        from fintune.data.templates import PromptTemplate
        from fintune.models import attention, fast_lora, fast_norm, likelihood, lora_config

        self.model = model
        self.tokenizer = tokenizer
        self.tasks = tasks
        self.base_name = base_name
        self.adapter = adapter
        self.batch_size = batch_size
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

        Raises:
            ModelError: the folder is missing, damaged or no adapter, or the base cannot be loaded.
        """
        from fintune.config import default_recipe_path, load_recipe
        from fintune.models import base, lora_config, manifest
        from fintune.tasks import task_set

        if model_path is None:
            recipe = recipe or load_recipe(default_recipe_path())
            tasks = task_set(recipe)
            folder = None
        else:
            folder = lora_config.check_adapter(model_path)
            recipe, tasks = manifest.read(folder, recipe)
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
            try:
                reserve = self._completion_budget(chosen)
                prompts = [
                    self.template.prompt_ids(chosen, r, self.template.max_length - reserve, truncate)[0]
                    for r in records
                ]
                for batch in self._batches(prompts, batch_size or self.batch_size, chosen):
                    for i, prediction in zip(batch, run(chosen, [prompts[i] for i in batch]), strict=True):
                        results[i] = prediction
                    if on_done:
                        on_done(len(batch))
            finally:
                self.model.train(was_training)
        return [results[i] for i in range(len(records))]

    def _completion_budget(self, task: Task) -> int:
        if task.decoding == "text":
            return min(task.max_new_tokens, self.template.max_length // 2)
        return max(len(self.template.completion_ids(c)) for c in task.candidates())

    def _batches(self, prompts: list[list[int]], size: int, task: Task) -> list[list[int]]:
        """Indices grouped by similar length, at most `size` and about `ROW_TOKENS` tokens a batch."""
        if task.decoding == "candidates" and not self.by_blocks:
            size = 1
        batches: list[list[int]] = []
        tokens = 0
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            if not batches or len(batches[-1]) == size or tokens + len(prompts[i]) > ROW_TOKENS:
                batches.append([])
                tokens = 0
            batches[-1].append(i)
            tokens += len(prompts[i])
        return batches

    def _score(self, task: Task, prompts: list[list[int]]) -> list[Prediction]:
        """Decide by log p(candidate | prompt), all candidates of all prompts in one forward pass."""
        from fintune.data.batching import pack
        from fintune.models.likelihood import span_log_likelihoods, target_nll

        answers = [self.template.completion_ids(candidate) for candidate in task.candidates()]
        if self.by_blocks:
            rows = [pack(prompts, [answers] * len(prompts))]
        else:
            rows = [pack([prompts[0]], [[answer]]) for answer in answers]
        scores: list[float] = []
        for row in rows:
            row = row.to(self.model.device)
            nll = target_nll(self.model, row, self.by_blocks, self.head)
            scores += span_log_likelihoods(nll, row.owner, row.spans).tolist()
        k = len(answers)
        return [task.decide(scores[i * k : (i + 1) * k]) for i in range(len(prompts))]

    def _generate(self, task: Task, prompts: list[list[int]]) -> list[Prediction]:
        """Greedy decoding of a left-padded batch, until end of text or `task.max_new_tokens`."""
        import torch

        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=self._completion_budget(task),
            do_sample=False,
            use_cache=True,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        texts = self.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        return [task.parse(text) for text in texts]

    def _adapter_in_use(self, use_adapter: bool) -> Any:
        if use_adapter or not hasattr(self.model, "disable_adapter"):
            return contextlib.nullcontext()
        return self.model.disable_adapter()


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
