"""A task as a Python plug-in: its own data and its own metric. See plugin_task.yaml beside it."""

from typing import Any

from fintune.tasks import register
from fintune.tasks.types import ClassificationTask

_NOTICES = {
    "urgent": ("payment due today", "trading halted", "margin call", "deadline tonight"),
    "routine": ("annual report published", "office closed on Friday", "new logo", "meeting notes"),
}
_DESKS = ("rates", "credit", "equity", "commodity", "currency")


@register
class NoticeTask(ClassificationTask):
    """Whether a notice to a trading desk is urgent."""

    def __init__(self) -> None:
        super().__init__(
            name="notice",
            instruction="Say whether the notice needs action now. Answer with one word: urgent or routine.",
            labels=("urgent", "routine"),
        )

    def load_custom_dataset(self) -> list[dict[str, Any]]:
        """Dicts with `text` and `target`; also `question`, `group` and `split`, where there are any."""
        return [
            {"text": f"To the {desk} desk: {notice}.", "target": label, "group": desk}
            for desk in _DESKS
            for label, notices in _NOTICES.items()
            for notice in notices
        ]

    def evaluate_custom_task(self, test_data: list[dict[str, Any]]) -> dict[str, float]:
        """The share of urgent notices that were found: `prediction` stands beside `target`."""
        urgent = [row for row in test_data if row["target"] == "urgent"]
        found = sum(row["prediction"] == "urgent" for row in urgent)
        return {"urgent_recall": found / len(urgent)} if urgent else {}
