"""Work on Ray: `predict --ray`, `data prepare --ray`, or any one-argument function over many items.

Workers read, parse and compute with the same functions as a single process (`data.inputs`,
`predict.answers`); this process writes their results in order. A worker that dies is restarted and its work
is repeated.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fintune.config import Recipe
from fintune.data.inputs import CHUNK, chunks
from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile, open_rows
from fintune.data.records import Dropped
from fintune.data.storage import locate
from fintune.errors import DataError, FintuneError, MissingExtraError, ModelError
from fintune.inference import backends
from fintune.models.source import Source
from fintune.tasks import Record, Task

if TYPE_CHECKING:
    from fintune.inference.answers import Checked

LOCAL = "local"
RETRIES = 3
"""How often a dead worker is restarted and its work retried."""
_STORE_BYTES = 512 * 2**20
"""Shared memory of a Ray started here; the rest spills to disk."""
_BLOCK_BYTES = 2**20
"""The most rows read before they are handed on."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def connect(address: str = LOCAL) -> None:
    """Join the Ray cluster at `address` (`auto`, `HOST:PORT`, `ray://HOST:PORT`), or start Ray locally.

    A local Ray listens on 127.0.0.1 only, has no dashboard, sends no usage reports, and ends with this
    process. Does nothing if this process has already joined one.

    Raises:
        MissingExtraError: Ray is not installed.
        DataError: no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # users need nothing less severe
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # Ray's future default, without its warning
    if address == LOCAL:  # Ray replaces 127.0.0.1 by an outer address, except where it has no clusters
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("--ray", "ray") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Deprecated by Ray without a replacement; pyproject.toml restricts Ray to versions that have it.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    if address not in (LOCAL, "auto"):
        _refuse_unreachable(address)
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        ray.init(
            address=LOCAL,
            num_cpus=max(2, os.cpu_count() or 1),  # one core reads, one computes
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            **quiet,
        )
        if {node["NodeManagerAddress"] for node in ray.nodes()} != {"127.0.0.1"}:
            ray.shutdown()
            raise DataError(
                "Ray was imported before it could be kept on 127.0.0.1: set the environment variable "
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 and start again."
            )
        return
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # ConnectionError, ValueError or RuntimeError, depending on the address
        why = " ".join(str(error).split())[:200]
        raise DataError(f"--ray is {address}, but no Ray cluster answers there: {why}") from None


def _refuse_unreachable(address: str) -> None:
    """Raise a DataError if nothing listens at the address: Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise DataError(
            f"--ray is {address}, but no Ray cluster answers there ({error}): give auto or HOST:PORT."
        ) from None


def ray_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    address: str = LOCAL,
) -> Iterator[Result]:
    """`map(function, items)` on Ray Data, in order, like a process pool's `imap` on one machine.

    Args:
        function: pure and importable on the workers; its arguments and results must be serializable.
        workers: how many calls run at once, at most; None uses the whole cluster.

    Raises:
        DataError: the function raised a FintuneError with this message; other errors come as Ray wraps them.
    """
    connect(address)
    import ray.data

    wanted = [{"item": _Box(item)} for item in items]
    if not wanted:
        return
    data = ray.data.from_items(wanted, override_num_blocks=len(wanted))
    results = data.map(
        lambda row: {"result": _Box(_tried(function, row["item"].value))},
        compute=ray.data.TaskPoolStrategy(size=workers) if workers else None,
        max_retries=RETRIES,
    )
    with _told_deaths():
        for row in _ordered(results).iter_rows():
            if isinstance(row["result"].value, _Failure):
                raise DataError(row["result"].value.message)
            yield row["result"].value


@dataclass(frozen=True)
class _Failure:
    """A worker's error message: Ray would pass on a printed traceback instead of the error."""

    message: str


def _tried(function: Callable[[Item], Result], item: Item) -> Result | _Failure:
    try:
        return function(item)
    except FintuneError as error:
        return _Failure(str(error))


class _Box:
    """Wraps a value so that Ray Data does not read it as columns."""

    def __init__(self, value: Any) -> None:
        self.value = value


def predict_on_ray(
    model_path: str | Path | None,
    task: str,
    input_file: str | Path,
    output_file: str | Path | None,
    truncate: bool = False,
    address: str = LOCAL,
    workers: int | None = None,
    columns: Mapping[str, str] | None = None,
    reading: Mapping[str, str | None] | None = None,
    checked: Checked | None = None,
) -> int:
    """`answers.predict_file` on several workers that each load the model once; same lines, same order.

    Args:
        model_path: an adapter folder that every machine of the cluster can read; None is the untuned base.
        workers: None is one per GPU, or, without GPUs, one per four CPU cores.
        checked: see `predict_file`.

    Raises:
        FintuneError: as in `predict_file`, or a worker could not load the model.
    """
    from fintune.inference.answers import check_files, write_answers

    source = Source.read(model_path)
    backends.check(backends.DEFAULT, source)
    chosen = source.tasks[task]
    mapped = (columns, source.recipe.columns(task))
    parts, output = checked or check_files(chosen, input_file, output_file, *mapped, reading)
    if not parts[0].place.shared:
        raise DataError(
            f"{locate(input_file).shown} is in this process's memory, which Ray's workers cannot read: "
            "write it to a file first."
        )
    connect(address)
    asked = (str(Path(model_path).resolve()) if model_path else None, source.recipe, chosen, truncate)
    with _told_deaths():
        return write_answers(
            lambda done: _answers(_left(parts, done), mapped, asked, workers),
            chosen,
            parts,
            output,
            {"model": asked[0], "truncate": truncate, "columns": columns, "reading": reading},
        )


_Asked = tuple[str | None, Recipe, Task, bool]
"""An adapter's folder, the recipe, the task, and whether long texts are cut."""


_Mapped = tuple[Mapping[str, str] | None, Mapping[str, str]]
"""Field → column, as given and as in the training file."""


def _left(parts: list[RowFile], done: int) -> list[tuple[RowFile, int]]:
    """The files with rows after the first `done` of all, each with the number of its rows to skip."""
    left = []
    for part in parts:
        rows = sum(1 for _ in open_rows(part)[1]) if done else 1
        if rows > done:
            left.append((part, done))
        done = max(0, done - rows)
    return left


def _answers(
    parts: list[tuple[RowFile, int]], mapped: _Mapped, asked: _Asked, workers: int | None
) -> Iterator[list[dict[str, Any]]]:
    """The lines of all parts, in order, as the workers return them."""
    if not parts:
        return
    import ray.data

    share = _share(workers)
    rows = ray.data.from_items([{"part": part} for part in range(len(parts))], override_num_blocks=len(parts))
    rows = rows.map_batches(
        _read,
        fn_args=(parts, asked[2], mapped),
        batch_size=1,
        batch_format="pyarrow",
        max_retries=RETRIES,
    )
    # One chunk per block, so that no worker gets a whole file and batches match a single process's.
    lines = rows.repartition(target_num_rows_per_block=CHUNK).map_batches(
        Answerer,
        fn_constructor_args=(*asked, share.threads, os.getcwd()),
        batch_size=CHUNK,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=share.workers),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    for block in _ordered(lines).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        found = [json.loads(line) for line in block["line"].to_pylist()]
        for line in found:
            if "failure" in line:
                raise DataError(line["failure"])
        yield found


def _ordered(data: Any) -> Any:
    """A dataset that yields rows in order and shows no progress bar of its own."""
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    data.context.target_max_block_size = _BLOCK_BYTES
    return data


@dataclass(frozen=True)
class _Share:
    """The resources of each of `workers`, and the smaller share to request from Ray, so reading can go on."""

    workers: int
    threads: int
    cpus: float
    gpus: float


def _share(workers: int | None) -> _Share:
    import ray

    have = ray.cluster_resources()
    cpus, gpus = int(have.get("CPU", 1)), int(have.get("GPU", 0))
    count = workers or gpus or max(1, cpus // 4)
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if workers and workers > max(cpus, gpus):
        raise DataError(f"--workers is {workers}, but the cluster has {cpus} CPU cores and {gpus} GPUs.")
    each = max(1, min(cpus // count, *(cores for cores in nodes if cores)))
    return _Share(
        count, each, each - 1 if each > 1 else 0.5, gpus // count if gpus >= count else gpus / count
    )


def _read(batch: Any, parts: list[tuple[RowFile, int]], task: Task, mapped: _Mapped) -> Iterator[Any]:
    """The rows of a batch's parts: tables with one column `row`, each a JSON object of a `Record`, a
    `Dropped`, or the `failure` that ends the work."""
    try:
        for number in batch["part"].to_pylist():
            part, skip = parts[number]
            for chunk in chunks(islice(read_inputs(part, task, *mapped), skip, None)):
                yield _table("row", [asdict(row) for row in chunk])
    except FintuneError as error:
        yield _table("row", [{"failure": str(error)}])


def _table(column: str, values: list[dict[str, Any]]) -> Any:
    """A table of one column of JSON objects."""
    import pyarrow as pa

    return pa.table({column: [json.dumps(value) for value in values]})


class Answerer:
    """A worker: loads the model once, then answers the tables that `_read` yields."""

    def __init__(
        self,
        model_path: str | None,
        recipe: Recipe,
        task: Task,
        truncate: bool,
        threads: int,
        folder: str,
    ) -> None:
        import torch

        from fintune.inference.engine import Engine
        from fintune.tasks import plugins

        with contextlib.suppress(OSError):  # a recipe's paths are relative to where the command was run
            os.chdir(folder)
        torch.set_num_threads(threads)
        plugins.trust(recipe.plugins)  # the calling process has already checked them
        self.engine = _tried(lambda _: Engine.load(model_path, recipe), None)
        self.task = task.name
        self.truncate = truncate

    def __call__(self, batch: Any) -> Any:
        """The batch's answers, in order: a column `line` of JSON objects, or one object with a `failure`."""
        from fintune.inference.answers import answers

        read = [json.loads(row) for row in batch["row"].to_pylist()]
        failures = [row["failure"] for row in read if "failure" in row]
        if isinstance(self.engine, _Failure):
            failures.append(self.engine.message)
        if failures or isinstance(self.engine, _Failure):
            return _table("line", [{"failure": failures[0]}])
        rows = [Record(**row) if "text" in row else Dropped(**row) for row in read]
        return _table("line", answers(self.engine, self.task, rows, self.truncate))


@contextlib.contextmanager
def _told_deaths() -> Iterator[None]:
    """Turn the error of a worker that died too often into one sentence."""
    try:
        yield
    except FintuneError:
        raise
    except Exception as error:
        import ray.exceptions as known

        if not isinstance(error, known.RayActorError | known.WorkerCrashedError | known.OutOfMemoryError):
            raise
        raise ModelError(
            f"A worker died {RETRIES + 1} times over the same work, most likely because memory ran out: "
            "use fewer --workers so that each has more, or see Ray's logs."
        ) from error
