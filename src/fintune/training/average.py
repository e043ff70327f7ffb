"""Averages several adapters of one recipe, such as those of several seeds, into one adapter.

Weights that were fine-tuned from the same model often lie in one basin of the loss, where their mean is
better than each of them and no slower (model soups: Wortsman et al., ICML 2022). This averages the updates
B·A exactly: the rank of the result is the sum of the ranks. Averaging A and B separately would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fintune.data.prepare.dataset import prepare
from fintune.errors import ModelError
from fintune.files import atomic_folder
from fintune.inference.calibration import calibrate
from fintune.inference.engine import Engine
from fintune.models import adapter_files, adapters, base, card, manifest
from fintune.models.export import new_folder
from fintune.provenance import stamp

CALIBRATED = ("normalization", "temperature", "interval_margin")
"""Fields of a task that `calibrate` sets for one adapter."""
OF_ONE = ("training", "validation", "kept", "warnings", "seed", "resumed_from")
"""Manifest keys that differ between the members."""


def average(
    folders: Sequence[str | Path],
    output_dir: str | Path,
    *,
    rank: int | None = None,
    data_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Average adapters into a new folder, calibrate the mean on their validation data, and return its facts.

    Args:
        rank: rank of the mean, whose smallest singular values are dropped; None keeps all: the mean is exact.
        data_dir: folder of public datasets, in case the adapters' data must be prepared again.

    Raises:
        ModelError: the adapters do not match, one is not a LoRA adapter that fintune trained, or the output
            folder is not empty.
        DataError: the adapters' data is not available.
    """
    target = new_folder(output_dir)
    raws = [_read(folder) for folder in folders]
    _check_alike(folders, raws)
    recipe, tasks = manifest.read(folders[0])
    # Members differ in their training seed but share the splits, so fix the data seed for each of them.
    recipe = recipe.changed("data", seed=recipe.data_seed, dir=data_dir or recipe.data.dir)
    prepared = prepare(recipe, say=say)
    if prepared.manifest["files"] != raws[0]["data"]["files"]:
        raise ModelError(
            f"{folders[0]} was trained on other data than {prepared.folder} holds now, but the mean must be "
            "calibrated on the adapters' own validation examples. Prepare the same data again."
        )
    say(f"Loading {recipe.base_model.name} and {len(folders)} adapters …")
    precision = base.choose_precision(recipe.training)
    model = _mean(base.load_base_model(recipe.base_model, precision.dtype), folders, rank)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base.public_name(recipe.base_model.name)
    tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    adapters.merge(model)
    engine = Engine.of(model.eval(), tokenizer, tasks, recipe, None)
    names = list(raws[0]["examples_per_epoch"])
    say(f"Calibrating on validation examples of {', '.join(names)} …")
    validation = {name: prepared.records(name, "validation") for name in names}
    chosen = calibrate(engine, validation, recipe.evaluation)
    model.unmerge_adapter()
    parameters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    facts = {
        **{key: value for key, value in manifest.facts(raws[0]).items() if key not in OF_ONE},
        **stamp(),
        "trainable_parameters": parameters,
        "all_parameters": raws[0]["all_parameters"] - raws[0]["trainable_parameters"] + parameters,
        "label_scoring": chosen,
        "average_of": [_member(folder, raw) for folder, raw in zip(folders, raws, strict=True)],
    }
    with atomic_folder(target) as staging:
        adapters.save(model, tokenizer, staging)
        manifest.write(staging, recipe, tasks, **facts)
        card.write(staging, facts, recipe.changed("lora_config", r=config.r, lora_alpha=config.r), prepared)
    say(f"Averaged {len(folders)} adapters into one of rank {config.r}: {target}")
    return facts


def _read(folder: str | Path) -> dict[str, Any]:
    """The manifest of an adapter that can be averaged."""
    config = adapter_files.read(adapters.check_adapter(folder)).config
    raw = manifest.read_raw(folder)
    if not raw.get("data") or "recipe" not in raw:
        raise ModelError(
            f"{folder} has no {manifest.NAME} of a training run: average adapters that fintune trained."
        )
    if config.use_dora:
        raise ModelError(f"{folder} is a DoRA adapter: only LoRA adapters can be averaged.")
    if config.bias != "none":
        raise ModelError(f"{folder} has trained biases: only plain LoRA matrices can be averaged.")
    return raw


def _check_alike(folders: Sequence[str | Path], raws: Sequence[dict[str, Any]]) -> None:
    """Raise a ModelError unless all share one base, the same tasks and the same data.

    With other splits one adapter's test examples may be another's training examples.
    """
    if len(folders) < 2:
        raise ModelError(f"Averaging needs at least two adapters, got {len(folders)}.")

    def asked(raw: dict[str, Any]) -> Any:
        return [{k: v for k, v in task.items() if k not in CALIBRATED} for task in raw["tasks"]]

    first = raws[0]
    for folder, raw in zip(folders[1:], raws[1:], strict=True):
        for what, same in (
            ("settings of base_model", raw["recipe"]["base_model"] == first["recipe"]["base_model"]),
            ("prepared data", raw["data"]["files"] == first["data"]["files"]),
            ("tasks", asked(raw) == asked(first)),
        ):
            if not same:
                raise ModelError(f"{folder} has other {what} than {folders[0]}: they cannot be averaged.")


def _mean(model: Any, folders: Sequence[str | Path], rank: int | None) -> Any:
    """The base with the mean as its only adapter, `default`."""
    names = [f"member{i}" for i in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        model = adapters.load_adapter(model, folder, name=name)
    # PEFT copies the first adapter's settings; each layer already has its members' scalings.
    model.peft_config[names[0]].use_rslora = False
    how: dict[str, Any] = {"combination_type": "cat"}
    if rank:
        how = {"combination_type": "svd", "svd_rank": rank, "svd_full_matrices": False}
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), "default", **how)
    model.set_adapter("default")
    for name in names:
        model.delete_adapter(name)
    return model


def _member(folder: str | Path, raw: dict[str, Any]) -> dict[str, Any]:
    """What the mean's manifest records about one member."""
    keys = ("seed", "optimizer_steps", "created", "git_commit", "training")
    return {"name": Path(folder).name, **{key: raw.get(key) for key in keys}}
