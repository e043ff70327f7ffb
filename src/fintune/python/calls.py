"""Implements `prepare`, `train`, `evaluate` and `load`, like the commands of the same names.

A recipe is a path, a dict, a `Recipe`, or None for the default one. Progress messages go to the logger
`fintune` at level INFO; `verbose=True` prints them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from fintune.config import Recipe
from fintune.python.given import let_data_come_later, with_data
from fintune.python.model import Model, quiet
from fintune.python.tables import Evaluation, Prepared
from fintune.recipes import default_recipe_path, load_recipe, recipe_from

logger = logging.getLogger("fintune")


def _say(verbose: bool) -> Callable[[str], None]:
    return print if verbose else logger.info


@quiet()
def prepare(recipe: Any = None, data: Any = None, *, force: bool = False, verbose: bool = False) -> Prepared:
    """Read, check and split the data of every task of a recipe; does nothing if nothing has changed.

    Args:
        data: task → its rows; or only the rows, if the recipe has one task. Rows are a pandas or polars
            DataFrame, a `datasets.Dataset`, a list of dicts, or the path of a file or folder; or a dict of
            these by split (`train`, `validation`, `test`), like a `DatasetDict`. They replace the recipe's
            own data.
        force: prepare again even if nothing has changed.

    Raises:
        ConfigError: the recipe is not valid.
        DataError: data is missing or cannot be used.
    """
    from fintune.data.prepare.dataset import prepare as run

    read = with_data(_recipe(recipe, data), data)
    prepared = Prepared(read, run(read, force=force, say=_say(verbose)))
    for note in prepared.notes() if not verbose else ():
        logger.warning("%s", note)  # such as many dropped rows, which must not go unnoticed
    return prepared


@quiet()
def train(
    recipe: Any = None,
    data: Any = None,
    output_dir: str | Path = "output/model",
    *,
    resume: str | Path | None = None,
    overwrite: bool = False,
    verbose: bool = False,
    progress: bool = True,
) -> Model:
    """Train an adapter into `output_dir`.

    Args:
        data: as in `prepare`, or the result of `prepare`.
        resume: a checkpoint folder, or "latest".
        overwrite: replace what an earlier run left in `output_dir`.

    Raises:
        ConfigError, DataError, ModelError: errors that the user can fix.
        Interrupted: by Ctrl-C; the message says what is saved.
    """
    from fintune.training.checkpoints import origin

    read = _recipe(data.recipe if recipe is None and isinstance(data, Prepared) else recipe, data)
    origin(read, Path(output_dir), resume, overwrite)
    if isinstance(data, Prepared):
        prepared, read = data, read.model_copy(update={"data": data.recipe.data})
    else:
        prepared = prepare(read, data, verbose=verbose)
        read = prepared.recipe
    from fintune.training.run import train as run  # slow import: after the cheap checks

    run(
        read,
        output_dir,
        prepared=prepared.dataset,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
        say=_say(verbose),
        progress=progress,
    )
    return Model(output_dir)


@quiet()
def evaluate(
    model: Any,
    recipe: Any = None,
    data: Any = None,
    *,
    output_file: str | Path | None = None,
    max_test: int | None = None,
    split: Literal["test", "validation"] = "test",
    verbose: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Score a model on the held-out examples against its baselines; writes reports beside the results.

    Args:
        model: a `Model`, or its folder; None is the recipe's untuned base.
        recipe: None is the recipe that the model was trained with.
        data: as in `prepare`; None is the recipe's data.
        output_file: None is results.json (results-validation.json) in the model's folder.
        max_test: the most examples per task.

    Raises:
        ConfigError, DataError, ModelError: errors that the user can fix.
    """
    from fintune.models.source import Source
    from fintune.pipeline import check_evaluation
    from fintune.pipeline import evaluate as run

    given = model if isinstance(model, Model) else None
    path = model.path if isinstance(model, Model) else model
    read = data.recipe if recipe is None and isinstance(data, Prepared) else None
    read = _recipe(recipe, data) if recipe is not None else read
    name = "results.json" if split == "test" else "results-validation.json"
    output = Path(output_file or Path(path or ".") / name)
    asked = read or Source.read(path, given.recipe if given else None).recipe
    check_evaluation(output, asked.evaluation)
    prepared = data if isinstance(data, Prepared) else prepare(asked, data, verbose=verbose)
    if given is None or read is not None:  # the recipe decides how a model answers
        given = Model(path, asked, given.backend if given else "builtin")
    results = run(
        given.engine,
        prepared.dataset,
        asked.evaluation,
        output,
        max_test=max_test,
        split=split,
        say=_say(verbose),
        progress=progress,
    )
    return Evaluation(results, output)


def load(path: str | Path | None, recipe: Any = None, *, backend: str = "builtin") -> Model:
    """Load the model in a folder: an adapter with its base, or what `fintune export` wrote.

    Args:
        path: None is the recipe's untuned base.
        recipe: for a trained model only its `evaluation` section is used.
        backend: builtin, vllm, llama.cpp, or another package's.

    Raises:
        ModelError: the folder is missing, damaged or unfit for the backend.
    """
    model = Model(path, None if recipe is None else _recipe(recipe), backend)
    _ = model.engine
    return model


def _recipe(recipe: Any, data: Any = None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        raw = copy.deepcopy(dict(recipe))
        if data is not None:
            let_data_come_later(raw)
        return recipe_from(raw, None, "the recipe").read_from(str(Path.cwd()))
    return load_recipe(default_recipe_path() if recipe is None else recipe)
