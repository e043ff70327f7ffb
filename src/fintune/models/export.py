"""Export to a new folder: adapter and base merged, the adapter for vLLM, or only the base.

Each folder has the adapter's manifest, so that its tasks are asked as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.config import Recipe
from fintune.errors import ConfigError, ModelError
from fintune.files import atomic_folder, like_neighbours
from fintune.models import adapters, base, card, gguf, manifest, merging, ollama, vllm_lora
from fintune.recipes import default_recipe_path, load_recipe
from fintune.tasks import TaskSet, task_set

DTYPES = (*gguf.DTYPES, *gguf.BLOCKS, *gguf.K_QUANTS)


@dataclass(frozen=True)
class Exported:
    """The folder, and what to tell the user about it."""

    folder: Path
    vocabulary: bool = True
    """Whether other programs can tokenize text for it: a GGUF may have no vocabulary."""
    commands: tuple[str, ...] = ()
    """Commands that load it in other programs."""


def export(
    model_path: str | Path | None,
    output_dir: str | Path,
    format: str = "merged",
    dtype: str | None = None,
    recipe: Recipe | None = None,
    base_model: str | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Export an adapter with its base; None exports the untuned base.

    Args:
        dtype: the matrices' type, one of `DTYPES`; None is f16, or for an untuned base that of its files.
        base_model: use another base than in training, such as other weights of the same model.

    Raises:
        ConfigError: format and dtype do not fit together.
        ModelError: the adapter or its base cannot be loaded, the output is not empty, or the format does not
            support this kind of base or adapter.
    """
    target = new_folder(output_dir)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype is {dtype}, but the types are {', '.join(DTYPES)}.")
    if format != "gguf" and dtype is not None and (format == "vllm" or dtype not in gguf.DTYPES):
        raise ConfigError(
            f"--dtype is {dtype}, and --format {format} "
            + ("keeps the adapter's type: omit --dtype." if format == "vllm" else "takes f16, bf16 or f32.")
        )
    if dtype is None and (model_path is not None or format == "gguf"):
        dtype = "f16"
    facts: dict[str, Any] = {}
    if model_path is None:
        recipe = recipe or load_recipe(default_recipe_path())
        tasks = task_set(recipe)
    else:
        recipe, tasks = manifest.read(adapters.check_adapter(model_path), recipe)
        facts = {"adapter": Path(model_path).resolve().name, **manifest.facts(manifest.read_raw(model_path))}
    if base_model:
        recipe = recipe.on_base(base_model)
    if format == "vllm":
        return _for_vllm(model_path, target, recipe, tasks)
    if format == "gguf":
        gguf.check(base.model_type(recipe.base_model), dtype or "f16")
        if model_path and (
            line := gguf.grid_warning(base.source_gguf(recipe.base_model.name), dtype or "f16")
        ):
            say(line)
    import torch

    wide = "f32" if format == "gguf" and dtype not in gguf.DTYPES else dtype
    model = merging.merged(recipe, model_path, getattr(torch, gguf.DTYPES[wide]) if wide else None, say)
    dtype = dtype or str(model.dtype).removeprefix("torch.")
    with atomic_folder(target) as staging:
        done = _write(staging, target, model, format, dtype, recipe, tasks, model_path)
        manifest.write(staging, recipe, tasks, **facts, exported={"format": format, "dtype": dtype})
        adapter = Path(model_path) if model_path else None
        card.put_export(staging, adapter, format, dtype, recipe.base_model.name)
        like_neighbours(staging)
    return done


def _write(
    staging: Path,
    target: Path,
    model: Any,
    format: str,
    dtype: str,
    recipe: Recipe,
    tasks: TaskSet,
    model_path: str | Path | None,
) -> Exported:
    tokenizer = base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    tokenizer.save_pretrained(staging)
    if format == "merged":
        model.save_pretrained(staging)
        return Exported(target, commands=(f"vllm serve {target}",))
    name = Path(model_path).resolve().name if model_path else recipe.base_model.name
    path = staging / f"model-{dtype}.gguf"
    source = base.source_gguf(recipe.base_model.name)
    vocabulary = gguf.write(path, model, staging, dtype, source, name)
    model.config.save_pretrained(staging)
    commands: tuple[str, ...] = (f"llama-server --model {target / path.name}",)
    if vocabulary:
        files = ollama.write(staging, path.name, tokenizer, tasks, model.generation_config)
        plain = target.name.lower()
        commands += tuple(
            f"ollama create {plain}-{t.name} -f {target / f.name}" for t, f in zip(tasks, files, strict=True)
        )
    return Exported(target, vocabulary, commands)


def _for_vllm(model_path: str | Path | None, target: Path, recipe: Recipe, tasks: TaskSet) -> Exported:
    if model_path is None:
        raise ModelError("--format vllm needs an adapter: vLLM loads a base without an export.")
    with atomic_folder(target) as staging:
        rank = vllm_lora.write(Path(model_path), staging)
        base.load_tokenizer(recipe.base_model.name, recipe.base_model.revision).save_pretrained(staging)
        if raw := manifest.read_raw(model_path):
            manifest.write(staging, recipe, tasks, **manifest.facts(raw))
        card.put_export(staging, Path(model_path), "vllm", "f32", recipe.base_model.name)
    name, weights = target.name, base.resolve(recipe.base_model.name)
    command = (
        f"vllm serve {weights} --enable-lora --max-lora-rank {vllm_lora.room(rank)} "
        f"--lora-modules {name}={target}"
    )
    return Exported(target, commands=(command,))


def new_folder(output_dir: str | Path) -> Path:
    """The folder to write a model to; raises a ModelError if it is not empty."""
    target = Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"--output_dir is {target}, which is not empty: name another folder.")
    return target
