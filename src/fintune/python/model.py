"""A model that answers: the result of `load` and `train`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.config import Recipe
from fintune.errors import DataError
from fintune.progress import progress_bar
from fintune.python.given import records_of
from fintune.python.tables import Predictions

if TYPE_CHECKING:
    from fintune.inference.engine import Engine
    from fintune.tasks import Prediction


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries' notices off the console during a call."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="IProgress not found")  # without ipywidgets bars are text
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(peft|torch|transformers)(\.|$)")
        yield


class Model:
    """A trained model, or an untuned base, ready to answer."""

    def __init__(self, path: str | Path | None, recipe: Recipe | None = None, backend: str = "builtin"):
        self.path = None if path is None else Path(path)
        self.backend = backend
        self.recipe = recipe

    @cached_property
    def engine(self) -> Engine:
        """The engine, loaded on first use."""
        from fintune.inference.engine import Engine

        with quiet():
            return Engine.load(self.path, self.recipe, self.backend)

    @property
    def tasks(self) -> list[str]:
        return list(self.engine.tasks.names())

    def __repr__(self) -> str:
        return (
            f"Model({str(self.path or 'untuned base')!r}, tasks={self.tasks}, base={self.engine.base_name!r})"
        )

    def predict(
        self,
        task: str,
        texts: Any,
        *,
        question: str | None = None,
        truncate: bool = False,
        errors: Literal["raise", "keep"] = "raise",
        progress: bool = True,
    ) -> Predictions:
        """Answer each text.

        Args:
            texts: a string; or a list, tuple or Series of strings; or a list of dicts, a DataFrame or a
                `datasets.Dataset` with `text` and for qa `question`, or the columns of the training data.
            question: the question for every text, if the texts are strings.
            truncate: truncate texts that do not fit the context; False refuses them.
            errors: `raise` a DataError at the first refused text; or `keep` its place, with None as the
                answer and the reason in `errors`.

        Raises:
            DataError: an unknown task, texts of an unsupported kind, or a refused text.
        """
        from fintune.data.records import Dropped
        from fintune.tasks import Record

        if errors not in ("raise", "keep"):
            raise DataError(f"errors is {errors!r}: use 'raise' or 'keep'.")
        engine = self.engine
        rows, index = records_of(engine, task, texts, question)
        lost = {place: row.why for place, row in enumerate(rows) if isinstance(row, Dropped)}
        if lost and errors == "raise":
            place, why = next(iter(lost.items()))
            raise DataError(f"Text {place + 1:,} of {len(rows):,} cannot be read: {why}.")
        asked = [row for row in rows if isinstance(row, Record)]
        many = progress and len(asked) > engine.batch_size
        with quiet(), progress_bar(many, total=len(asked), desc=f"predict {task}", unit="text") as shown:
            replies = iter(
                engine.replies(task, asked, truncate=truncate, strict=errors == "raise", on_done=shown.update)
            )
        answers: list[Prediction | None] = []
        for place in range(len(rows)):
            answer = lost[place] if place in lost else next(replies).answer
            if isinstance(answer, str):
                lost[place] = answer
            answers.append(None if isinstance(answer, str) else answer)
        records = [row if isinstance(row, Record) else Record(text="") for row in rows]
        return Predictions(task, records, answers, lost, index)
