"""An adapter and its base as one model: a folder of safetensors, or a GGUF file with what asks it.

Either folder has the manifest of the adapter, so that its tasks are asked as they were trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.config import Recipe
from fintune.errors import ModelError
from fintune.files import atomic_folder, like_neighbours
from fintune.models import adapters, base, gguf, manifest
from fintune.recipes import default_recipe_path, load_recipe
from fintune.tasks import task_set

FORMATS = ("merged", "gguf")


@dataclass(frozen=True)
class Exported:
    """The folder, and whether other programs can read text with it: a GGUF may have no vocabulary."""

    folder: Path
    vocabulary: bool = True


def export(
    model_path: str | Path | None,
    output_dir: str | Path,
    format: str = "merged",
    dtype: str = "f16",
    recipe: Recipe | None = None,
) -> Exported:
    """Merge an adapter into its base, which is loaded unquantized, and write it; None is the untuned base.

    Args:
        dtype: of the matrices: `f16`, `bf16` or `f32`.

    Raises:
        ModelError: the adapter or its base cannot be loaded, the output is not empty, or `gguf_file` does not
            write this kind of base.
    """
    target = new_folder(output_dir)
    facts: dict[str, Any] = {}
    if model_path is None:
        recipe = recipe or load_recipe(default_recipe_path())
        tasks = task_set(recipe)
    else:
        recipe, tasks = manifest.read(adapters.check_adapter(model_path), recipe)
        raw = manifest.read_raw(model_path)
        facts = {"adapter": Path(model_path).resolve().name, **manifest.facts(raw)}
    if format == "gguf":
        gguf.check(base.model_type(recipe.base_model))
    model = _merged(recipe, model_path, dtype)
    tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    vocabulary = True
    with atomic_folder(target) as staging:
        tokenizer.save_pretrained(staging)
        if format == "gguf":
            name = Path(model_path).resolve().name if model_path else recipe.base_model.name
            source = base.source_gguf(recipe.base_model.name)
            path = staging / f"model-{dtype}.gguf"
            vocabulary = gguf.write(path, model, staging, dtype, source, name)
            model.config.save_pretrained(staging)
        else:
            model.save_pretrained(staging)
        manifest.write(staging, recipe, tasks, **facts, exported={"format": format, "dtype": dtype})
        like_neighbours(staging)
    return Exported(target, vocabulary)


def new_folder(output_dir: str | Path) -> Path:
    """The folder to write a model to; raises a ModelError where something stands there already."""
    target = Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"--output_dir is {target}, which is not empty: name another folder.")
    return target


def _merged(recipe: Recipe, model_path: str | Path | None, dtype: str) -> Any:
    """The base in `dtype` with the adapter's products added to its weights, each rounded once."""
    import torch

    # What was trained over 4 or 8 bit is merged into the weights that these stand for.
    plain = recipe.base_model.model_copy(update={"load_in_4bit": False, "load_in_8bit": False})
    model = base.load_base_model(plain, getattr(torch, gguf.DTYPES[dtype][0]))
    if model_path is not None:
        try:
            model = adapters.load_adapter(model, model_path).merge_and_unload(safe_merge=True)
        except ValueError as error:  # PEFT found a weight that is no number
            raise ModelError(f"The adapter at {model_path} cannot be merged in {dtype}: {error}") from error
    model.config.use_cache = True
    return model.eval()
