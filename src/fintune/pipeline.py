"""Complete jobs: an evaluation with its reports; and prepare, train, evaluate and show (`make run`)."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.config import Recipe
from fintune.errors import Interrupted

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.evaluation.bundle import Bundle, Line
    from fintune.evaluation.evaluate import TaskDone
    from fintune.evaluation.results import Answer, Results
    from fintune.evaluation.task_run import HeldOut
    from fintune.inference.engine import Engine
    from fintune.monitoring.profile import Profile


def check_evaluation(output_file: str | Path, config: EvaluationConfig) -> None:
    """Refuse bad settings before data and model are loaded.

    Raises:
        MissingExtraError: a tracker in `report_to` is not installed.
        ConfigError: the output file or the BERTScore encoder cannot be used.
    """
    from fintune.evaluation.evaluate import check
    from fintune.reports import uploads

    check(output_file, config)
    uploads.check(config.report_to)


def evaluate(
    engine: Engine,
    prepared: PreparedDataset,
    config: EvaluationConfig,
    output_file: str | Path,
    *,
    max_test: int | None = None,
    split: HeldOut = "test",
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Results:
    """`evaluation.evaluate`, with every report for people.

    After every task the Markdown and HTML reports are written beside the results. At the end the figures
    go to `report_to`. Figures on test examples also go to the adapter's model card, and the adapter's folder
    gets the profile that live answers are compared with.
    """
    from fintune.evaluation.evaluate import evaluate as run_evaluation
    from fintune.evaluation.results import output_files
    from fintune.files import atomic_write
    from fintune.models import card
    from fintune.monitoring.profile import Profile, profile_of
    from fintune.reports import figures, markdown, uploads
    from fintune.reports.evaluation import html_report
    from fintune.tasks import Prediction

    check_evaluation(output_file, config)
    reference = Profile({}, f"test split of {prepared.folder.name}")
    files = output_files(output_file)
    answers: list[Answer] = []

    def on_task(done: TaskDone) -> None:
        name = done.task.name
        answers[:] = done.rows
        if done.fresh:
            atomic_write(files["report"], markdown.markdown_report(done.results))
            atomic_write(files["page"], html_report(done.results, answers, files["results"]))
            say(figures.summary_line(done.results, name))
        own = [Prediction(row.prediction, row.probabilities) for row in done.rows if row.task == name]
        if own and split == "test":
            reference.tasks[name] = profile_of(done.task, done.records, own)

    results = run_evaluation(
        engine,
        prepared,
        config,
        output_file,
        max_test=max_test,
        split=split,
        say=say,
        progress=progress,
        on_task=on_task,
    )
    if engine.adapter is not None and split == "test":
        card.put_evaluation(engine.adapter, markdown.card_section(results), say)
        _save_profile(engine.adapter, reference)
    uploads.upload(results, answers, files["results"], config.report_to)
    return results


def _save_profile(adapter: Path, profile: Profile) -> None:
    """Save the profile; keep tasks that an earlier evaluation of this adapter measured on more examples."""
    from fintune.errors import DataError
    from fintune.files import file_sha256
    from fintune.models.adapters import WEIGHTS
    from fintune.monitoring.profile import Profile

    weights = adapter / WEIGHTS
    profile.weights = file_sha256(weights) if weights.is_file() else ""
    with contextlib.suppress(DataError):  # none yet, or from another version
        profile = profile.beside(Profile.load(adapter))
    profile.save(adapter)


@dataclass(frozen=True)
class Reproduced:
    """A bundle's recipe, run again."""

    other_data: list[str]
    """Prepared files that are not the bundle's."""
    metrics: list[Line]
    tolerance: float

    @property
    def same(self) -> bool:
        return not self.other_data and all(line.within(self.tolerance) for line in self.metrics)


def reproduce(bundle: Bundle, output_dir: Path, tolerance: float, data_dir: str | None = None) -> Reproduced:
    """Run a bundle's recipe again; return how its data and metrics differ from the bundle's.

    Args:
        output_dir: a new folder, also for the prepared data.
        tolerance: allowed difference of a metric; relative for numbers above 1.
        data_dir: where to look for public datasets first.
    """
    from fintune.data.prepare.dataset import load_prepared
    from fintune.evaluation.bundle import compare, other_data
    from fintune.models.export import new_folder

    for line in bundle.other_versions():
        print(f"Different version: {line}.")
    new_folder(output_dir)
    recipe, prepared_dir = bundle.recipe, str(output_dir / "prepared")
    recipe = recipe.changed("data", prepared_dir=prepared_dir, dir=data_dir or recipe.data.dir)
    results = run(recipe, output_dir / "model")
    differ = other_data(bundle, load_prepared(prepared_dir).manifest)
    for name in differ:
        print(f"Other data: {name} differs from the data that the bundle's adapter was trained on.")
    lines = compare(bundle, results)
    for each in lines:
        mark = "✓" if each.within(tolerance) else "✗"
        now = "missing" if each.now is None else f"{each.now:.4f}"
        print(f"{mark} {each.task} {each.metric}: {each.then:.4f} then, {now} now")
    return Reproduced(differ, lines, tolerance)


def run(
    recipe: Recipe,
    output_dir: Path,
    *,
    output_file: Path | None = None,
    resume: str | Path | None = None,
    use_wandb: bool = False,
    verbose: bool = False,
    say: Callable[[str], None] = print,
) -> Results:
    """Run every stage; return the evaluation's results. Raises what the stages raise.

    Replaces what an earlier run left in `output_dir`, and says so: its checkpoints once there is a new one,
    its adapter once the new one is trained.
    """
    from fintune.data.prepare.dataset import prepare
    from fintune.data.raw.sources import describe_sources, fetch_missing
    from fintune.inference.engine import Engine
    from fintune.reports.figures import print_table
    from fintune.tasks import task_set
    from fintune.training.checkpoints import occupant, origin

    start = time.perf_counter()
    output_file = output_file or output_dir / "results.json"
    config = recipe.evaluation.tracked(use_wandb)
    origin(recipe, output_dir, resume, overwrite=True)
    check_evaluation(output_file, config)  # now, because it is needed only hours later
    if not resume and (what := occupant(output_dir)):
        say(f"{output_dir} holds {what}. This run replaces it; --resume_from_checkpoint would resume it.")
    why = fetch_missing(recipe, say)
    data = describe_sources(recipe, task_set(recipe), why)
    say(f"This run uses {data}.")
    say("1/3  Data")
    prepared = prepare(recipe, say=say)
    say("2/3  Training")
    from fintune.training.run import train  # slow import: after the checks

    train(
        recipe,
        output_dir,
        prepared=prepared,
        resume=resume,
        overwrite=True,
        use_wandb=use_wandb,
        verbose=verbose,
        say=say,
    )
    say("3/3  Evaluation")
    try:
        results = evaluate(Engine.load(output_dir), prepared, config, output_file, say=say)
    except KeyboardInterrupt as stop:
        told = str(stop) or "Stopped."
        command = ["fintune", "evaluate", "--model_path", str(output_dir), "--output_file", str(output_file)]
        command += ["--use_wandb"] if use_wandb else []
        raise Interrupted(f"{told} {output_dir} is trained.", stop, command=shlex.join(command)) from None
    print_table(results)
    say(f"Data      prepared in {prepared.folder}")
    say(f"Adapter   {output_dir}  (plain PEFT; its recipe and figures: {output_dir / 'fintune.json'})")
    say(f"Results   {output_file}; to read: {output_file.with_suffix('.html')} or .md")
    minutes = (time.perf_counter() - start) / 60
    say(f"Next      fintune demo --model_path {output_dir}")
    say(f"Done in {minutes:.1f} minutes, with {data}.")
    return results
