"""Runs other classifiers from the Hugging Face hub, or a local folder, on our label tasks, such as FinBERT.

Their labels are matched to ours by name. Only safetensors weights are read, and no code from the hub runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fintune.errors import ConfigError
from fintune.metrics.bertscore import longest_input
from fintune.tasks.base import Prediction

if TYPE_CHECKING:
    from fintune.tasks import Record, Task

_TONES = (
    {"positive", "pos", "bullish", "up"},
    {"negative", "neg", "bearish", "down"},
    {"neutral", "neu", "hold", "none"},
)
"""Label names with the same meaning."""
_TOKENS_TOGETHER = 4096


def label_columns(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each of our labels, the index of the model's label; None if they do not match one to one.

    A label matches by its name (ignoring case), or by another name of the same tone: positive,
    bullish; negative, bearish; neutral.
    """
    columns = []
    for label in labels:
        known = next((tone for tone in _TONES if label.lower() in tone), {label.lower()})
        places = [i for i, name in enumerate(names) if name.lower() in known | {label.lower()}]
        if len(places) != 1:
            return None
        columns.append(places[0])
    return columns if len(set(columns)) == len(names) else None


class OtherModel:
    """A sequence-classification model and its name."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        by_place = sorted((int(i), str(label)) for i, label in model.config.id2label.items())
        self.labels = [label for _, label in by_place]

    @classmethod
    def load(cls, name: str) -> OtherModel:
        """Load a model of the hub or a folder.

        Raises:
            ConfigError: it cannot be reached or loaded, or its labels have no names.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name, split_special_tokens=True)  # a text has none
            model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True).eval()
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"evaluation.other_models: {name} cannot be loaded as a classifier with safetensors weights "
                f"({reason}): give a hub id that can be reached, or a local folder."
            ) from None
        other = cls(name, model, tokenizer)
        if all(label.upper().startswith("LABEL_") for label in other.labels):
            raise ConfigError(
                f"evaluation.other_models: {name} calls its labels {', '.join(other.labels)}, which says "
                "nothing of their meaning: name them in id2label of its config.json."
            )
        return other

    def predict(
        self,
        task: Task,
        records: Sequence[Record],
        batch_size: int = 16,
        on_done: Callable[[int], object] | None = None,
    ) -> list[Prediction] | str:
        """Its answers with probabilities, or the reason why it does not answer this task.

        Args:
            on_done: called with the number of records finished since the last call.
        """
        if not task.one_of:
            return f"{self.name} classifies, and this task's type is {task.type or 'unknown'}"
        labels = task.one_of
        columns = label_columns(self.labels, labels)
        if columns is None:
            return f"the labels of {self.name} ({', '.join(self.labels)}) are not {', '.join(labels)}"
        import torch

        texts, limit = [r.text for r in records], longest_input(self.model, self.tokenizer)
        encoded = self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        predictions: list[Prediction | None] = [None] * len(records)
        for batch in self._batches(encoded, batch_size):
            inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            with torch.no_grad():
                logits = self.model(**inputs.to(self.model.device)).logits.float()
            for i, row in zip(batch, logits[:, columns].softmax(dim=-1).tolist(), strict=True):
                shares = dict(zip(labels, row, strict=True))
                predictions[i] = Prediction(max(shares, key=shares.__getitem__), shares)
            if on_done:
                on_done(len(batch))
        return [prediction for prediction in predictions if prediction is not None]

    @staticmethod
    def _batches(encoded: Sequence[Sequence[int]], size: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
            if (
                not batches
                or len(batches[-1]) == size
                or (len(batches[-1]) + 1) * len(encoded[i]) > _TOKENS_TOGETHER
            ):
                batches.append([])
            batches[-1].append(i)
        return batches
