"""Implements `fintune monitor` and `fintune data from-feedback`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.errors import ConfigError, DataError, MissingExtraError

if TYPE_CHECKING:
    from fintune.monitoring.store import Store


def open_store(url: str) -> Store:
    """Open the store at a URL.

    Raises:
        MissingExtraError: SQLAlchemy or Alembic is not installed.
        DataError: there is no such file (SQLite), or it cannot be opened.
    """
    try:
        from fintune.monitoring.store import Store
    except ModuleNotFoundError:
        raise MissingExtraError("The store of predictions", "monitor") from None
    file = url.removeprefix("sqlite:///")
    if file != url and not Path(file).is_file():
        raise DataError(f"There is no store {file}: name the one the service writes with --store.")
    return Store.open(url)


def drift(
    model_path: str | Path, url: str, output_file: str | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Compare the newest answers of an adapter in a store with its profile; write the report if it is to be.

    Its own answers are those under the name of its folder, by which the service calls it.
    """
    from fintune.monitoring.drift import WINDOW, compare
    from fintune.monitoring.profile import Profile
    from fintune.reports.drift import write_report

    reference = Profile.load(model_path)
    model = Path(model_path).resolve().name
    store = open_store(url)
    observed = store.observations(WINDOW, model)
    report = compare(reference, observed)
    report["live_scores"] = store.live_scores(model)
    others = [] if observed else store.models()
    store.close()
    if others:
        say(
            f"The store has no answer of {model}, but of {', '.join(others)}: answers are kept under the "
            "name of the folder that was served, so give --model_path the one of that name."
        )
    if output_file:
        say(f"Drift: {report['status']}. Report: {write_report(report, output_file)}")
    return report


def show_drift(report: dict[str, Any]) -> None:
    """Print the report."""
    from fintune.reports.drift import markdown

    print(markdown(report).rstrip())


def feedback(url: str, forget_days: float | None = None) -> dict[str, dict[str, Any]]:
    """The live scores by task; with `forget_days`, predictions older than that are deleted first."""
    store = open_store(url)
    if forget_days is not None:
        print(f"{store.delete_older(forget_days):,} predictions older than {forget_days:g} days deleted.")
    scores = store.scores()
    store.close()
    return scores


def show_feedback(scores: dict[str, dict[str, Any]]) -> None:
    """Print the scores, a line a task."""
    if not scores:
        print("There is no feedback yet: it comes by POST /v1/feedback.")
    for task, entry in sorted(scores.items()):
        line = f"{task}: {entry['feedback']:,} answers with feedback"
        if entry["accuracy"] is not None:
            line += f", {entry['accuracy']:.1%} right"
        if entry["mae"] is not None:
            line += f", mean absolute error {entry['mae']:.3f}"
        print(line)


def from_feedback(
    url: str,
    task: str,
    output_file: str,
    *,
    everything: bool = False,
    model_path: str | Path | None = None,
) -> None:
    """Write what feedback teaches of a task as a file to train on, .jsonl or .parquet.

    Args:
        model_path: the adapter whose recipe the printed command trains by, with these rows beside its own.

    Raises:
        ConfigError: the file's name has another ending.
        DataError: there is nothing to write.
    """
    from fintune.files import atomic_file, write_jsonl
    from fintune.monitoring.lessons import training_rows

    path = Path(output_file)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"output_file must end in .jsonl or .parquet, got {output_file}")
    store = open_store(url)
    rows = [dict(row) for row in training_rows(store, task, everything=everything)]
    known = sorted(store.scores())
    store.close()
    if not rows:
        raise DataError(
            f"There is no wrong answer of task {task!r} with its right one: feedback is there for "
            f"{', '.join(known) or 'no task'}, and only feedback with a target teaches."
        )
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with atomic_file(path) as stream:
            pq.write_table(pa.Table.from_pylist(rows), stream)
    print(
        f"{len(rows):,} examples written to {path}. Look through them, then train on them beside the others:"
    )
    print(
        f"  fintune train --config {model_path or 'RECIPE'} --set data.tasks.{task}.more_train={path} "
        "--output_dir output/better"
    )
