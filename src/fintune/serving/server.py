"""`fintune serve`: loads the model, binds the address and serves the API until it is stopped."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any

from fintune.errors import ConfigError, MissingExtraError
from fintune.serving.health import Health
from fintune.serving.settings import Settings, web_address


def serve(settings: Settings) -> None:
    """Serve until interrupted or terminated; requests in progress are finished first.

    If the model is lost, the process ends with exit code 1.

    Raises:
        FintuneError: the address is taken, other machines could connect without a key, the model cannot be
            loaded, or FastAPI is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import swagger_ui_bundle  # noqa: F401
        import uvicorn
    except ModuleNotFoundError:
        raise MissingExtraError("The API", "serve") from None
    from fintune.monitoring import tracing
    from fintune.serving import logs
    from fintune.serving.keys import required

    keys = required(settings.keys, settings.insecure, settings.public)
    listener = _listen(settings.host, settings.port)
    from fintune.inference import backends
    from fintune.models.source import is_exported
    from fintune.serving.adapters import Models
    from fintune.serving.api import build
    from fintune.serving.one_model import OneModel
    from fintune.serving.queue import ModelThread

    print(f"Loading {settings.model_path or 'the untuned base model'} …", flush=True)
    models: Models | OneModel
    by_name = backends.find(settings.backend).adapters_by_name
    if by_name and not (settings.model_path and is_exported(settings.model_path)):
        models = Models(settings.model_path, settings.adapters, settings.max_adapters)
    else:
        models = OneModel(settings)
    thread = ModelThread(models, settings)
    app = build(settings, thread, keys)
    logs.configure()
    tracing.configure()
    config = uvicorn.Config(
        app,
        http=_protocol(settings.slow),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.grace),
        backlog=1024,
    )
    where = web_address(*listener.getsockname()[:2])
    access = "a key is needed" if keys else "no key is needed"
    print(f"The API of {', '.join(models.names())} is at {where} ({access}; {where}/docs; Ctrl+C stops it).")
    print(end="", flush=True)
    _server(config, thread.health, settings.grace).run(sockets=[listener])
    if thread.health.lost:
        _give_up()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be used ({error}): choose another address."
        ) from None


def _server(config: Any, health: Health, grace: float) -> Any:
    """A uvicorn server that also stops when the model is lost."""
    import uvicorn

    class Server(uvicorn.Server):
        async def on_tick(self, counter: int) -> bool:
            if not health.lost:
                return await super().on_tick(counter)
            alarm = threading.Timer(grace + 10, _give_up)  # in case the orderly shutdown hangs too
            alarm.daemon = True
            alarm.start()
            return True

    return Server(config)


def _give_up() -> None:
    """Exit with an error, so that a supervisor restarts the server. The model thread may hang forever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _protocol(slow: float) -> Any:
    """uvicorn's HTTP protocol, but closing connections whose request line and headers take `slow` seconds.

    A reverse proxy does this too. But without one, clients that open connections and send nothing must not
    exhaust the server's. uvicorn (0.54) limits the time between two requests (`timeout_keep_alive`), the size
    of the headers and the number of connections, but not the time for the headers. `gate` limits the time for
    the body.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        _alarm: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._alarm = self.loop.call_later(slow, self._close_idle)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            idle = self.cycle is None or self.cycle.response_complete
            if not idle and self._alarm:
                self._alarm.cancel()
                self._alarm = None
            elif idle and self._alarm is None:  # another request begins
                self._alarm = self.loop.call_later(slow, self._close_idle)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._alarm:
                self._alarm.cancel()
            super().connection_lost(exc)

        def _close_idle(self) -> None:
            self._alarm = None
            if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
                self.transport.close()

    return Protocol
