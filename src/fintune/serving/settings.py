"""What an operator may vary in a server, in one place, with the defaults of `fintune serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """Limits and addresses of one server; times are in seconds."""

    model_path: str | Path | None = None
    """The adapter that answers where a request names no model; None is the untuned base."""
    backend: str = "builtin"
    """What computes: one of `fintune.inference.backends.names()`."""
    adapters: tuple[str | Path, ...] = ()
    """Adapter folders, or folders that hold some; they are chosen by name and loaded when asked for."""
    max_adapters: int = 4
    """Adapters in memory at once; the one unused for longest makes room."""
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    """The file of API keys; None is `keys.default_path()`."""
    insecure: bool = False
    """Ask for no key, whatever the address."""
    rate: int = 0
    """Requests a minute that a key (or, where none is asked for, an address) may make; 0 is no limit."""
    rate_records: int = 0
    """Records a minute, of all its requests together."""
    rate_tokens: int = 0
    """Tokens a minute, of prompts and of what is written."""
    max_batch: int = 32
    """Records of one task computed together."""
    max_batch_tokens: int = 4096
    """Tokens of these records at most, without the instruction that they share: others wait so long."""
    max_text_tokens: int = 16_384
    """Tokens of all texts that are written at once, prompts and answers: their keys take memory."""
    max_wait: float = 0.005
    """How long an idle model waits for company for a request."""
    max_queue: int = 512
    """Records that wait at most; what comes on top is refused at once."""
    timeout: float = 60.0
    """From a request's arrival to its answer."""
    max_step: float = 600.0
    """How long the model thread may take for one step (a batch, a token of the texts, the loading of an
    adapter) before the server takes it for lost, and ends. Slow CPUs need less by far."""
    max_failures: int = 3
    """Failures of the model in a row after which a small test decides whether the server ends."""
    max_body: int = 1_000_000
    """Bytes of a request's body."""
    max_document: int = 16_000_000
    """Bytes of a request's body that holds a document, in base64."""
    max_items: int = 128
    """Records of one request."""
    max_tokens: int = 512
    """Tokens that one request may have written."""
    max_context: int = 4096
    """Tokens of a chat's prompt and answer together, where the base has room for so many."""
    slow: float = 10.0
    """How long a client may take to send its request."""
    grace: float = 30.0
    """How long a server that stops finishes what it has begun."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser."""
    hosts: tuple[str, ...] = ()
    """Names that a request's Host header may have, besides this machine's: a proxy's that passes its own. On
    an address that other machines can reach, none named means any."""
    log_text: bool = False
    """Whether the log has the texts of requests too."""

    @property
    def public(self) -> bool:
        """Whether other machines can connect."""
        return self.host not in LOOPBACK
