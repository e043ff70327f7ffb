"""A server's settings in one place, with the defaults of `fintune serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def web_address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@dataclass(frozen=True)
class Settings:
    """Limits and addresses of one server; times are in seconds."""

    model_path: str | Path | None = None
    """The adapter for requests that name no model; None is the untuned base."""
    backend: str = "builtin"
    """One of `fintune.inference.backends.names()`."""
    adapters: tuple[str | Path, ...] = ()
    """Adapter folders, or folders that hold some; requests name them, and they are loaded on demand."""
    max_adapters: int = 4
    """The most adapters in memory; the least recently used makes room."""
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    """The file of API keys; None is `keys.default_path()`."""
    insecure: bool = False
    """Require no key, whatever the address."""
    rate: int = 0
    """Requests per minute of a key (without keys: of an address); 0 is no limit."""
    rate_records: int = 0
    """Records per minute, over all its requests."""
    rate_tokens: int = 0
    """Tokens per minute, of prompts and generated texts."""
    max_batch: int = 32
    """Records of one task computed together."""
    max_batch_tokens: int = 4096
    """The most tokens of these records, without the shared instruction: other requests wait this long."""
    max_text_tokens: int = 16_384
    """The most tokens of all texts written at once, prompts and answers: their KV cache takes memory."""
    max_wait: float = 0.005
    """How long an idle model waits for more requests to batch with the first."""
    max_queue: int = 512
    """The most waiting records; further ones are refused at once."""
    timeout: float = 60.0
    """The most time from a request's arrival to its answer."""
    max_step: float = 600.0
    """The most time for one step of the model thread (a batch, a token of the texts, loading an adapter).
    After that the server considers the model lost and ends. Even slow CPUs need far less."""
    max_failures: int = 3
    """Model failures in a row after which a small test decides whether the server ends."""
    max_body: int = 1_000_000
    """The most bytes of a request's body."""
    max_document: int = 16_000_000
    """The most bytes of a request's body that holds a document in base64."""
    max_items: int = 128
    """The most records per request."""
    max_tokens: int = 512
    """The most tokens that one request may generate."""
    max_context: int = 4096
    """The most tokens of a chat's prompt and answer together, if the base's context allows as many."""
    slow: float = 10.0
    """How long a client may take to send its request."""
    grace: float = 30.0
    """How long a stopping server may take to finish what it has begun."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser."""
    hosts: tuple[str, ...] = ()
    """Names allowed in a request's Host header besides this machine's, such as a proxy's. On an address that
    other machines can reach, an empty list allows any."""
    log_text: bool = False
    """Whether the log also contains the texts of requests."""

    @property
    def public(self) -> bool:
        """Whether other machines can connect."""
        return self.host not in LOOPBACK
