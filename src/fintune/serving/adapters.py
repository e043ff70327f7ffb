"""Manages one base model and its adapters by name: finds them on disk, loads on demand, unloads the oldest.

A name is looked up among the folders found, never joined to a path. A folder may come from anyone: an
unusable one is skipped with a line in the log, and one that fails to load is not tried again until its files
change. Call `get` and `unload` on the model thread only; the rest is thread-safe.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from fintune.config import Recipe
from fintune.errors import ConfigError, FintuneError, ModelError
from fintune.files import stamp
from fintune.inference.engine import Engine
from fintune.models import manifest
from fintune.models.adapters import CONFIG, WEIGHTS, check_adapter, load_adapter, withdraw
from fintune.recipes import default_recipe_path, load_recipe
from fintune.serving.errors import ApiError
from fintune.tasks import TaskSet, plugins

log = logging.getLogger("fintune.serving")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Stamp = tuple[tuple[int, ...], ...]


class Models:
    """The models a client can name: the untuned base and each adapter. The default model decides the base."""

    texts: int | None = None
    """Texts that the backend can write at once; None is any number."""

    def __init__(
        self,
        model_path: str | Path | None = None,
        adapters: tuple[str | Path, ...] = (),
        max_loaded: int = 4,
    ) -> None:
        """Load the base and the default model.

        Raises:
            ConfigError: an adapter's name is taken or invalid, or a folder is missing.
            ModelError: the default model cannot be loaded.
        """
        self._places = tuple(Path(place) for place in adapters)
        for place in self._places:
            if not place.is_dir():
                raise ConfigError(
                    f"--adapters names {place}, which is not a folder: name one that holds adapters."
                )
        self._lock = threading.RLock()
        self._told: dict[Path, str] = {}
        self._home: dict[str, Path] = {}
        self._tasks: dict[Path, tuple[_Stamp, TaskSet | str]] = {}
        self._refused: dict[Path, tuple[_Stamp, str]] = {}
        self._loaded: OrderedDict[str, tuple[str, Engine]] = OrderedDict()
        self._default_folder: Path | None = None
        found = self._found()
        if self._told:
            raise ConfigError(next(iter(self._told.values())))
        first = check_adapter(model_path).resolve() if model_path else None
        if first and found.get(first.name, first) != first:
            raise ConfigError(f"Two adapters are called {first.name}: rename the folder of one.")
        self._default_folder = first
        self.recipe = self._recipe([first] if first else list(found.values()))
        self.base = re.sub(r"[^A-Za-z0-9._-]", "-", Path(self.recipe.base_model.name).name)[:64] or "base"
        self.default = first.name if first else self.base
        if not _NAME.fullmatch(self.default):
            raise ConfigError(f"--model_path ends in {self.default!r}: use letters, digits, dots and dashes.")
        self.max_loaded = max_loaded
        self._count = 0
        self._active: str | None = None
        if self.base in self.folders():
            raise ConfigError(f"An adapter is called {self.base}, like its base model: rename its folder.")
        self._untuned = Engine.load(None, self.recipe)
        self._plain = self._untuned.model
        if self.default != self.base:
            self.get(self.default)

    def _recipe(self, folders: list[Path]) -> Recipe:
        """The default adapter's recipe, else that of the first usable one: its base is the server's."""
        for folder in folders:
            try:
                recipe = manifest.read_recipe(check_adapter(folder))
                plugins.check_trusted(recipe.plugins, str(folder))
                return recipe
            except FintuneError as error:
                if folder == self._default_folder:
                    raise
                self._tell(folder, str(error))
        return load_recipe(default_recipe_path())

    # What there is ----------------------------------------------------------------------------------

    def folders(self) -> dict[str, Path]:
        """Name → folder of every adapter on disk now; one that is still being copied does not count yet."""
        with self._lock:
            there = self._found().items()
            found = {
                name: path
                for name, path in there
                if name in self._loaded or path == self._default_folder or not self._problem(path)
            }
            self._home = {name: path for name, path in self._home.items() if name in found} | found
            return found

    def _found(self) -> dict[str, Path]:
        """Name → folder. Missing folders and second ones with a name are skipped with a line in the log: the
        name stays with the folder that had it first."""
        found = dict[str, Path]()
        if self._default_folder:
            found[self._default_folder.name] = self._default_folder
        places = [path for place in self._places for path in self._adapters_in(place)]
        for folder in sorted(places, key=lambda path: self._home.get(path.name) != path):
            if found.setdefault(folder.name, folder) != folder:
                self._tell(
                    folder,
                    f"Two adapters are called {folder.name}: rename one's folder, {folder} is skipped.",
                )
        return found

    def _adapters_in(self, place: Path) -> list[Path]:
        """The folder itself if it is an adapter, else its subfolders that are."""
        try:
            folders = [place]
            if not (place / WEIGHTS).is_file():
                folders = [folder for folder in sorted(place.iterdir()) if _NAME.fullmatch(folder.name)]
            return [
                folder.resolve()
                for folder in folders
                if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
            ]
        except OSError as error:
            self._tell(place, f"--adapters names {place}, which cannot be read: {error.strerror}.")
            return []

    def _tell(self, folder: Path, why: str) -> None:
        """Log what is skipped, once for each reason."""
        if self._told.get(folder) != why:
            log.warning("skipping an adapter: %s", why)
        self._told[folder] = why

    def _problem(self, folder: Path) -> str:
        """Why an adapter is skipped; "" if it is usable."""
        tasks = self._tasks_in(folder)
        if not isinstance(tasks, str):
            self._told.pop(folder, None)
            return ""
        self._tell(folder, tasks)
        return tasks

    def _tasks_in(self, folder: Path) -> TaskSet | str:
        """The tasks of an adapter's manifest, or why it is unusable; read again when its files change."""
        with self._lock:
            now = _stamp(folder)
            known = self._tasks.get(folder)
            if known is None or known[0] != now:
                known = self._tasks[folder] = now, self._read(folder)
            return known[1]

    def _read(self, folder: Path) -> TaskSet | str:
        try:
            self._check_base(check_adapter(folder))
            return manifest.read(folder, self.recipe)[1]
        except FintuneError as error:
            return str(error)
        except Exception as error:  # a bad folder must not stop the other models
            return f"{folder} cannot be read: {error!r}"

    def _check_base(self, folder: Path) -> Recipe:
        """The adapter's recipe, after checking before any plug-in is read that it is on this base."""
        recipe = manifest.read_recipe(folder, self.recipe)
        if recipe.base_model != self.recipe.base_model:
            raise ModelError(
                f"The adapter {folder.name} is on the base {Path(recipe.base_model.name).name}, but this "
                f"server has {self.base}: serve it separately."
            )
        return recipe

    def names(self) -> list[str]:
        """The base, and the adapters on disk."""
        return [self.base, *sorted(self.folders())]

    def loaded(self) -> list[str]:
        return list(self._loaded)

    def check(self, name: str | None) -> str:
        """The model's name; None is the default.

        Raises:
            ApiError: 404, no model has this name.
        """
        if name is None or name == self.default:
            return self.default
        if name in self._loaded and (home := self._home.get(name)) and home.is_dir():
            return name
        if name != self.base and name not in self.folders():
            known = ", ".join(self.names()[:20])
            raise ApiError(
                404,
                f"There is no model of this name; the models are {known}.",
                code="model_not_found",
                param="model",
            )
        return name

    def tasks(self, name: str) -> TaskSet:
        """The tasks of a model, without loading it."""
        if name == self.base:
            return self._untuned.tasks
        if loaded := self._loaded.get(name):
            return loaded[1].tasks
        folder = self.folders().get(name)
        tasks = self._tasks_in(folder) if folder else f"The folder of the adapter {name} is gone."
        if isinstance(tasks, str):
            raise ModelError(tasks)
        return tasks

    # On the model thread ----------------------------------------------------------------------------

    def get(self, name: str) -> tuple[Engine, bool]:
        """The engine that answers as `name`, ready to use, and its `use_adapter`.

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
        """The model's engine if it is in memory, on any thread: for work that needs no weights."""
        if name == self.base:
            return self._untuned
        loaded = self._loaded.get(name)
        return loaded[1] if loaded else None

    def unload(self, name: str) -> bool:
        """Remove an adapter from memory; False if it was not there."""
        if name not in self._loaded:
            return False
        inner, engine = self._loaded.pop(name)
        if self._active == name:
            self._active = None
        if self._loaded:
            engine.model.delete_adapter(inner)
        else:  # the last adapter: PEFT's wrapper goes too
            from fintune.kernels import lora

            lora.disable(engine.model)
            self._untuned.builtin.model = self._plain = engine.model.unload()
        return True

    def _load(self, name: str) -> None:
        folder = self.folders().get(name)
        if folder is None:
            raise ModelError(f"The folder of the adapter {name} is gone.")
        now, before = _stamp(folder), self._refused.get(folder)
        if before and before[0] == now:
            raise ModelError(before[1])
        try:
            self._put(name, folder)
        except (OSError, MemoryError) as error:  # the next request may succeed
            raise ModelError(f"The adapter {name} cannot be read: {error!r}") from error
        except Exception as error:  # whatever the folder holds
            why = str(error) if isinstance(error, FintuneError) else f"{folder} cannot be loaded: {error!r}"
            self._refused[folder] = now, why
            raise ModelError(why) from error
        self._refused.pop(folder, None)
        while len(self._loaded) > self.max_loaded:
            self.unload(next(iter(self._loaded)))

    def _put(self, name: str, folder: Path) -> None:
        """Load an adapter to answer as `name`; a failure leaves the others as they were."""
        recipe = self._check_base(check_adapter(folder))
        tasks = manifest.read(folder, self.recipe)[1]
        self._count += 1
        inner = f"a{self._count}"  # PEFT allows no dots in a name
        model = next(iter(self._loaded.values()))[1].model if self._loaded else self._plain
        self._active = None  # a failure below may have changed layers
        model = load_adapter(model, folder, name=inner, shared=True)
        try:
            self._activate(inner, model)
            engine = Engine.of(model, self._untuned.tokenizer, tasks, recipe, folder)
        except Exception:
            withdraw(model, inner)
            raise
        self._active, self._loaded[name] = name, (inner, engine)
        self._untuned.builtin.model = model

    def _activate(self, inner: str, model: Any = None) -> None:
        """Activate this adapter's layers, on the fast path where they have one."""
        from fintune.kernels import lora

        model = model or next(iter(self._loaded.values()))[1].model
        model.set_adapter(inner)
        model.requires_grad_(False)
        lora.disable(model)
        fast = lora.enable(model)
        for own, engine in self._loaded.values():
            if own == inner:
                engine.builtin.fast_layers = fast


def _stamp(folder: Path) -> _Stamp:
    return stamp(*(folder / name for name in (CONFIG, WEIGHTS, manifest.NAME)))
