"""A server's only model, if its backend or exported folder has no adapters by name.

It has the interface of `adapters.Models`.
"""

from __future__ import annotations

from pathlib import Path

from fintune.errors import ConfigError
from fintune.inference.backends import DEFAULT
from fintune.inference.engine import Engine
from fintune.serving.errors import ApiError
from fintune.serving.settings import Settings
from fintune.tasks import TaskSet


class OneModel:
    """The interface of `Models` for one engine."""

    def __init__(self, settings: Settings) -> None:
        """Load it.

        Raises:
            ConfigError: adapters are named too.
            FintuneError: as in `Engine.load`.
        """
        if settings.adapters:
            raise ConfigError(
                f"--adapters is given, but --backend {settings.backend} serves a single model: leave it "
                f"out, or pass --backend {DEFAULT} and an adapter."
            )
        self._engine = Engine.load(settings.model_path, backend=settings.backend)
        path = settings.model_path or self._engine.base_name
        self.base = self.default = Path(path).resolve().name
        self.texts = self._engine.backend.texts

    def folders(self) -> dict[str, Path]:
        """Adapters: none."""
        return {}

    def names(self) -> list[str]:
        return [self.default]

    def loaded(self) -> list[str]:
        return []

    def check(self, name: str | None) -> str:
        """The model's name.

        Raises:
            ApiError: 404, the request names another model.
        """
        if name not in (None, self.default):
            raise ApiError(
                404,
                f"There is no model of this name: this server has only {self.default}.",
                code="model_not_found",
                param="model",
            )
        return self.default

    def tasks(self, name: str) -> TaskSet:
        return self._engine.tasks

    def get(self, name: str) -> tuple[Engine, bool]:
        return self._engine, True

    def ready(self, name: str) -> Engine:
        return self._engine

    def unload(self, name: str) -> bool:
        return False
