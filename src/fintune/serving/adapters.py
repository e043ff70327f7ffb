"""One base model and the adapters on it, by name: found on disk, loaded when asked for, the oldest unloaded.

A name is looked up among the folders found, never joined to a path. `get` and `unload` are for the model
thread.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.config import Recipe
from fintune.errors import ConfigError, ModelError
from fintune.inference.engine import Engine
from fintune.models import manifest
from fintune.models.adapters import CONFIG, WEIGHTS, check_adapter
from fintune.recipes import default_recipe_path, load_recipe
from fintune.serving.errors import ApiError
from fintune.tasks import TaskSet

log = logging.getLogger("fintune.serving")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Models:
    """What can be asked: the untuned base, and each adapter. The base is that of the default model."""

    texts: int | None = None
    """Texts that the backend can write at once; None is any number."""

    def __init__(
        self,
        model_path: str | Path | None = None,
        adapters: tuple[str | Path, ...] = (),
        max_loaded: int = 4,
        recipe: Recipe | None = None,
    ) -> None:
        """Load the base and the default model.

        Raises:
            ConfigError: an adapter's name is taken or unfit, or a folder is missing.
            ModelError: the default model cannot be loaded.
        """
        self._places = tuple(Path(place) for place in adapters)
        for place in self._places:
            if not place.is_dir():
                raise ConfigError(
                    f"--adapters names {place}, which is no folder: name one that holds adapters."
                )
        first = (
            check_adapter(model_path).resolve() if model_path else next(iter(self._found().values()), None)
        )
        self._default_folder = first if model_path else None
        self.recipe = (
            manifest.read(first, recipe)[0] if first else recipe or load_recipe(default_recipe_path())
        )
        self.base = re.sub(r"[^A-Za-z0-9._-]", "-", Path(self.recipe.base_model.name).name)[:64] or "base"
        self.default = first.name if model_path and first else self.base
        if not _NAME.fullmatch(self.default):
            raise ConfigError(f"--model_path ends in {self.default!r}: use letters, digits, dots and dashes.")
        self.max_loaded = max_loaded
        self._tasks: dict[Path, tuple[tuple[int, ...], TaskSet]] = {}
        self._unreadable: dict[Path, str] = {}
        self._loaded: OrderedDict[str, tuple[str, Engine]] = OrderedDict()
        self._count = 0
        self._active: str | None = None
        if self.base in self.folders():
            raise ConfigError(f"An adapter is called {self.base}, as its base model is: rename its folder.")
        self._untuned = Engine.load(None, self.recipe)
        self._plain = self._untuned.model
        if self.default != self.base:
            self.get(self.default)

    # What there is ----------------------------------------------------------------------------------

    def folders(self) -> dict[str, Path]:
        """Name → folder of every adapter there is now; one that is still being copied is none yet."""
        there = self._found().items()
        found = {name: path for name, path in there if name in self._loaded or self._readable(path)}
        if self._default_folder:
            if found.get(self._default_folder.name, self._default_folder) != self._default_folder:
                raise ConfigError(
                    f"Two adapters are called {self._default_folder.name}: rename one's folder."
                )
            found[self._default_folder.name] = self._default_folder
        return found

    def _found(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in (path.resolve() for place in self._places for path in _adapters_in(place)):
            if found.setdefault(folder.name, folder) != folder:
                raise ConfigError(f"Two adapters are called {folder.name}: rename one's folder.")
        return found

    def _readable(self, folder: Path) -> bool:
        try:
            self._tasks_in(folder)
        except Exception as error:  # whatever one folder holds, the other models are answered for
            if self._unreadable.get(folder) != str(error):
                log.warning("an adapter is left out: %s", error)
            self._unreadable[folder] = str(error)
            return False
        self._unreadable.pop(folder, None)
        return True

    def _tasks_in(self, folder: Path) -> TaskSet:
        """The tasks of an adapter's manifest, read again when a file of the adapter has changed."""
        files = (folder / name for name in (CONFIG, WEIGHTS, manifest.NAME))
        stamp = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)
        known = self._tasks.get(folder)
        if known is None or known[0] != stamp:
            tasks = manifest.read(check_adapter(folder), self.recipe)[1]
            known = self._tasks[folder] = stamp, tasks
        return known[1]

    def names(self) -> list[str]:
        """The base, and the adapters on disk."""
        return [self.base, *sorted(self.folders())]

    def loaded(self) -> list[str]:
        return list(self._loaded)

    def check(self, name: str | None) -> str:
        """The model's name; None is the default.

        Raises:
            ApiError: 404, there is none of this name.
        """
        if name is None or name == self.default:
            return self.default
        if name != self.base and name not in self.folders():
            known = ", ".join(self.names()[:20])
            raise ApiError(
                404,
                f"There is no model of this name: there are {known}.",
                code="model_not_found",
                param="model",
            )
        return name

    def tasks(self, name: str) -> TaskSet:
        """The tasks of a model, without loading it."""
        if name == self.base:
            return self._untuned.tasks
        loaded = self._loaded.get(name)
        return loaded[1].tasks if loaded else self._tasks_in(self.folders()[name])

    # On the model thread ----------------------------------------------------------------------------

    def get(self, name: str) -> tuple[Engine, bool]:
        """The engine that answers as `name`, made ready, and its `use_adapter`.

        Raises:
            ModelError: the adapter cannot be loaded, or is on another base.
        """
        if name == self.base:
            return self._untuned, False
        if name not in self._loaded:
            self._load(name)
        self._loaded.move_to_end(name)
        inner, engine = self._loaded[name]
        if self._active != name:
            self._activate(inner)
            self._active = name
        return engine, True

    def ready(self, name: str) -> Engine | None:
        """The model's engine where it is in memory, on any thread: for what needs no weights."""
        if name == self.base:
            return self._untuned
        loaded = self._loaded.get(name)
        return loaded[1] if loaded else None

    def unload(self, name: str) -> bool:
        """Take an adapter out of memory; False where it was not in it."""
        if name not in self._loaded:
            return False
        inner, engine = self._loaded.pop(name)
        if self._active == name:
            self._active = None
        if self._loaded:
            engine.model.delete_adapter(inner)
        else:  # the last: PEFT's wrapper goes too
            from fintune.kernels import lora

            lora.disable(engine.model)
            self._untuned.builtin.model = self._plain = engine.model.unload()
        return True

    def _load(self, name: str) -> None:
        import peft

        folder = check_adapter(self.folders()[name])
        recipe, tasks = manifest.read(folder, self.recipe)
        if recipe.base_model != self.recipe.base_model:
            raise ModelError(
                f"The adapter {name} is on the base {Path(recipe.base_model.name).name}, and this server has "
                f"{self.base}: serve it apart."
            )
        self._count += 1
        inner = f"a{self._count}"  # PEFT allows no dots in a name
        try:
            if self._loaded:
                model = next(iter(self._loaded.values()))[1].model
                model.load_adapter(str(folder), adapter_name=inner)
            else:
                model = peft.PeftModel.from_pretrained(self._plain, str(folder), adapter_name=inner)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"The adapter {name} does not fit: {str(error).splitlines()[0]}") from error
        self._activate(inner, model)
        self._active = name
        engine = Engine.of(model.eval(), self._untuned.tokenizer, tasks, recipe, folder)
        self._loaded[name] = inner, engine
        self._untuned.builtin.model = model
        while len(self._loaded) > self.max_loaded:
            self.unload(next(iter(self._loaded)))

    def _activate(self, inner: str, model: Any = None) -> None:
        """Let this adapter's layers compute, on their fast path where they have one."""
        from fintune.kernels import lora

        model = model or next(iter(self._loaded.values()))[1].model
        model.set_adapter(inner)
        model.requires_grad_(False)
        lora.disable(model)
        fast = lora.enable(model)
        for own, engine in self._loaded.values():
            if own == inner:
                engine.builtin.fast_layers = fast


def _adapters_in(place: Path) -> Iterator[Path]:
    """The folder itself where it is an adapter, else those of its folders that are."""
    folders = [place]
    if not (place / WEIGHTS).is_file():
        folders = [folder for folder in sorted(place.iterdir()) if _NAME.fullmatch(folder.name)]
    for folder in folders:
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            yield folder
