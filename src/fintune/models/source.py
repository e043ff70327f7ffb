"""What a model path holds: an adapter, or a model from `fintune export`; no path is the untuned base.

The folder is checked and its recipe and tasks are read; no weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.config import Recipe
from fintune.errors import ModelError
from fintune.models import adapters, base, manifest
from fintune.recipes import default_recipe_path, load_recipe
from fintune.tasks import TaskSet, task_set

if TYPE_CHECKING:
    import torch

Kind = Literal["base", "adapter", "merged", "gguf"]
"""No path; an adapter; a folder of `fintune export` with safetensors; one with a GGUF file."""


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from, and what is known before they are loaded."""

    kind: Kind
    path: Path | None
    recipe: Recipe
    """For an exported folder, `base_model` is the folder itself."""
    tasks: TaskSet
    base_name: str
    """The base model's name; its folder for an exported base without an adapter."""
    tuned: bool
    """Whether the weights, or an adapter beside them, were trained."""

    @classmethod
    def read(cls, model_path: str | Path | None, recipe: Recipe | None = None) -> Source:
        """Read a folder's manifest.

        Args:
            recipe: for a trained model only its `evaluation` is used; for an adapter without a manifest, and
                for the untuned base, all of it. None is the default recipe.

        Raises:
            ModelError: the folder is missing or damaged, or holds no model.
        """
        if model_path is None:
            recipe = recipe or load_recipe(default_recipe_path())
            return cls("base", None, recipe, task_set(recipe), recipe.base_model.name, False)
        path = check_model(model_path)
        raw = manifest.read_raw(path)
        read, tasks = manifest.read(path, recipe)
        name = read.base_model.name
        kind: Kind = "adapter"
        if exported := raw.get("exported"):
            kind = "gguf" if exported.get("format") == "gguf" else "merged"
            read = read.on_base(str(path.absolute()))
        tuned = kind == "adapter" or bool(manifest.facts(raw).keys() - {"exported"})
        if recipe is not None:
            read = read.model_copy(update={"evaluation": recipe.evaluation})
        return cls(kind, path, read, tasks, name if tuned else read.base_model.name, tuned)

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder, if its weights are separate from the base's."""
        return self.path if self.kind == "adapter" else None

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, which an exported folder holds too."""
        return base.load_tokenizer(self.recipe.base_model.name, self.recipe.base_model.revision)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision in which the recipe's weights are loaded on this machine."""
        dtype: torch.dtype = base.choose_precision(self.recipe.training).dtype
        return dtype


def check_model(folder: str | Path) -> Path:
    """Check that a folder holds a model from `fintune export` or a complete adapter, and return it.

    Raises:
        ModelError: the folder is missing, holds neither, or the adapter's weights are truncated.
    """
    if not is_exported(folder):
        manifest.check_weights(adapters.check_adapter(folder))
    return Path(folder)


def is_exported(folder: str | Path) -> bool:
    """Whether `fintune export` wrote this folder."""
    return bool(manifest.read_raw(folder).get("exported"))


def newest_adapter() -> Path:
    """The most recently written adapter folder under `output/`, except checkpoints.

    Raises:
        ModelError: there is none.
    """
    root = Path("output")
    folders = [
        path.parent
        for path in root.rglob(adapters.WEIGHTS)
        if not any(part.startswith((".", "checkpoint-")) for part in path.relative_to(root).parts)
    ]
    if not folders:
        raise ModelError(f"There is no trained adapter under {root}/: train one with  python train.py")
    return max(folders, key=lambda folder: (folder / adapters.WEIGHTS).stat().st_mtime)
