"""Writes a folder from which an adapter can be reproduced: recipe, versions, data checksums and scores.

bundle.json       the figures compared: metrics per task, checksums of the prepared data, commit, machine
recipe.yaml       the complete recipe
constraints.txt   the packages that fintune used, with the versions of this machine
README.md         the model card
SHA256SUMS        checksums of the files above, as `sha256sum -c` reads them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from fintune.config import Recipe
from fintune.errors import DataError, ModelError
from fintune.evaluation.results import Results, read_results
from fintune.evaluation.runs import results_file
from fintune.extras import version
from fintune.files import atomic_folder, atomic_write, file_sha256, read_json, write_json
from fintune.models import adapters, card, manifest
from fintune.recipes import load_recipe

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A bundle's recipe, and the figures that a new run is compared with."""

    folder: Path
    recipe: Recipe
    metrics: dict[str, dict[str, float]]
    """Task → metric → the adapter's value."""
    data: dict[str, str]
    """Prepared file → SHA-256."""
    constraints: dict[str, str]

    def other_versions(self) -> list[str]:
        """Packages that are installed here in another version, or not at all."""
        here = {name: version(name) for name in self.constraints}
        return [
            f"{name} {here[name] or 'is not installed'} (then {then})"
            for name, then in self.constraints.items()
            if here[name] != then
        ]


@dataclass(frozen=True)
class Line:
    """One metric in the bundle and in a new run."""

    task: str
    metric: str
    then: float
    now: float | None
    """None if it is missing."""

    def within(self, tolerance: float) -> bool:
        return self.now is not None and abs(self.now - self.then) <= tolerance * max(1.0, abs(self.then))


def write(model_path: str | Path, target: Path) -> None:
    """Write the bundle of an evaluated adapter.

    Raises:
        ModelError: no single run of a recipe made it, or it was not evaluated on all of its test examples.
    """
    folder = adapters.check_adapter(model_path)
    raw = manifest.read_raw(folder)
    recipe = manifest.read_recipe(folder)
    if not raw.get("data") or raw.get("average_of") or recipe.lora_config.init_adapter:
        raise ModelError(f"{folder} was not made by one run of one recipe, so no run can reproduce it.")
    results = _results(folder)
    if results.settings.get("max_test") or results.split != "test" or not results.complete:
        raise ModelError(
            f"{folder}/results.json lacks some test examples: run  fintune evaluate --model_path {folder}"
        )
    content = {
        "format": 1,
        "metrics": metrics(results),
        "data": raw["data"].get("files", {}),
        **{key: raw.get(key) for key in ("created", "git_commit", "machine", "seed", "weights_sha256")},
    }
    with atomic_folder(target) as staging:
        write_json(staging / "bundle.json", content)
        atomic_write(
            staging / "recipe.yaml", yaml.safe_dump(manifest.asked(raw), sort_keys=False, allow_unicode=True)
        )
        pins = "".join(f"{name}=={known}\n" for name, known in packages().items())
        atomic_write(staging / "constraints.txt", pins)
        atomic_write(staging / "README.md", card.for_hub(folder, raw))
        files = sorted(staging.iterdir())
        atomic_write(staging / SUMS, "".join(f"{file_sha256(path)}  {path.name}\n" for path in files))


def _results(folder: Path) -> Results:
    try:
        return read_results(results_file(folder))
    except DataError as error:
        raise ModelError(f"{error} Evaluate it first:  fintune evaluate --model_path {folder}") from error


def read(folder: str | Path) -> Bundle:
    """Read a bundle after checking that its files are unchanged.

    Raises:
        DataError: the folder is not a bundle, or a file was changed.
    """
    folder = Path(folder)
    if not (folder / SUMS).is_file():
        raise DataError(
            f"{folder} is not a bundle: it has no {SUMS}. fintune export --format bundle writes one."
        )
    named = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        named[name] = wanted
    for name in ("bundle.json", "recipe.yaml", "constraints.txt", "README.md"):
        if not (folder / name).is_file() or file_sha256(folder / name) != named.get(name):
            raise DataError(f"{folder / name} does not match {SUMS}: copy the bundle again.")
    content = read_json(folder / "bundle.json")
    pins = (folder / "constraints.txt").read_text(encoding="utf-8").split()
    constraints = dict(pin.split("==", 1) for pin in pins)
    recipe = load_recipe(folder / "recipe.yaml")
    return Bundle(folder, recipe, content["metrics"], content["data"], constraints)


def metrics(results: Results) -> dict[str, dict[str, float]]:
    """The headline metrics of the model's own answers, by task."""
    return {
        name: {m: v for m in task.headline_metrics if (v := task.own.metrics.get(m)) is not None}
        for name, task in results.tasks.items()
        if task.own is not None
    }


def compare(bundle: Bundle, results: Results) -> list[Line]:
    """Each metric of the bundle with that of a new run."""
    now = metrics(results)
    return [
        Line(task, metric, then, now.get(task, {}).get(metric))
        for task, values in bundle.metrics.items()
        for metric, then in values.items()
    ]


def other_data(bundle: Bundle, prepared: Mapping[str, Any]) -> list[str]:
    """Prepared files that differ from the bundle's, according to a prepared dataset's manifest."""
    files = prepared["files"]
    return sorted(name for name in {*files, *bundle.data} if files.get(name) != bundle.data.get(name))


def packages() -> dict[str, str]:
    """The installed versions of fintune's requirements and of theirs; no extras."""
    found: dict[str, str] = {}
    waiting = ["fintune"]
    while waiting:
        name = waiting.pop()
        if name in found or (known := version(name)) is None:
            continue
        found[name] = known
        wanted = map(Requirement, distribution(name).requires or ())
        kept = (r for r in wanted if not r.marker or r.marker.evaluate({"extra": ""}))
        waiting += [requirement.name.lower().replace("_", "-") for requirement in kept]
    return dict(sorted(found.items()))
