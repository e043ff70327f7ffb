"""The interface through which the engine runs a model, and the registry of backends behind it.

A backend knows token ids but no tasks: prompts, label decisions, calibration and parsing stay in the engine,
so that every backend is asked and read in the same way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from fintune.errors import ConfigError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from fintune.inference.decoding import Allowed, Generated, Texts, Watch
    from fintune.models.source import Kind, Source

DEFAULT = "builtin"
GROUP = "fintune.backends"
"""Entry points of other packages: NAME = "package.module:SPEC", a `BackendSpec` of that name."""
_HOLDS = {"adapter": "an adapter", "merged": "a merged model", "gguf": "a GGUF file"}


class Backend(Protocol):
    """One model, perhaps with an adapter. Every method but `context` and `texts` needs an open `session`."""

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt with its answer; None if unknown."""

    @property
    def texts(self) -> int | None:
        """How many texts `begin` can have in progress at once; None is any number, 0 is none."""

    def session(self, use_adapter: bool = True) -> AbstractContextManager[None]:
        """A context in which the model computes. Two sessions are never open at once.

        Args:
            use_adapter: False computes with the untuned base. The engine does that only if the backend's
                `BackendSpec` and the model's `Source` allow it.
        """

    def batch_limits(self, size: int, scoring: bool) -> tuple[int, int]:
        """The most prompts, and the most prompt tokens, for one call below.

        Args:
            size: the recipe's `evaluation.batch_size`, which a backend may exceed.
            scoring: True for `log_likelihoods`, False for `generate`.
        """

    def shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many common first tokens of `prompts` are computed only once; passed to the calls below."""

    def lookups(self) -> tuple[int, int]:
        """Prefix cache hits and misses since the start."""

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int = 0
    ) -> list[list[float]]:
        """For each prompt log p(answer | prompt) of each answer: the sum over its tokens, in nats."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        ends: Collection[int],
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        """Greedy decoding until one of `ends` or `max_new_tokens`; results in the prompts' order.

        Args:
            ends: ids of the tokens that end a text.
            allowed: which tokens may come next; None allows all.
        """

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        watched: Mapping[int, Watch] | None = None,
    ) -> Texts:
        """Start texts after these prompts; the caller writes them token by token, with other work in between.

        Args:
            max_new_tokens: the most tokens that will be added to any of them.
            watched: row → callback for the (T, V) logits after each of its prompt's tokens, in several parts,
                in order. Passed only if a caller asks for a prompt's log-probabilities.
        """


@dataclass(frozen=True)
class BackendSpec:
    """A backend that `--backend` can name."""

    name: str
    load: Callable[[Source], Backend]
    """Loads the weights; raises ModelError on failure."""
    takes: tuple[Kind, ...]
    """The kind of model that it loads (`Source.kind`)."""
    needs: tuple[str, str] | None = None
    """The Python package that it needs, and fintune's extra that installs it."""
    untuned_base: bool = True
    """Whether it can also compute without the adapter (`session(use_adapter=False)`)."""
    adapters_by_name: bool = False
    """Whether `fintune serve` can load several adapters onto one base; needs the built-in backend's model."""


def _in_module(name: str) -> Callable[[Source], Backend]:
    """The `load` of one of our modules, imported only when called: each imports a large library."""

    def load(source: Source) -> Backend:
        backend: Backend = importlib.import_module(f"{__name__}.{name}").load(source)
        return backend

    return load


_registered = {
    spec.name: spec
    for spec in (
        BackendSpec(
            DEFAULT, _in_module("builtin"), takes=("base", "adapter", "merged", "gguf"), adapters_by_name=True
        ),
        BackendSpec("llama.cpp", _in_module("llamacpp"), takes=("gguf",), needs=("llama_cpp", "llamacpp")),
        BackendSpec("vllm", _in_module("vllm"), takes=("base", "adapter", "merged"), needs=("vllm", "vllm")),
    )
}


def register(spec: BackendSpec) -> BackendSpec:
    """Register a backend by its name, for example from a module that the recipe's `plugins` names.

    Alternatively, a package declares an entry point in the group `fintune.backends`.
    """
    _registered[spec.name] = spec
    return spec


def names() -> list[str]:
    """The registered backends, and those of other packages, without importing them."""
    return list(dict.fromkeys([*_registered, *(point.name for point in entry_points(group=GROUP))]))


def find(name: str) -> BackendSpec:
    """The backend with this name.

    Raises:
        ConfigError: there is none, or its package cannot be imported.
    """
    for point in entry_points(group=GROUP) if name not in _registered else ():
        if point.name != name:
            continue
        try:
            register(point.load())
        except Exception as error:  # another package's code may raise anything
            raise ConfigError(
                f"--backend is {name} ({point.value}), which cannot be loaded: {error}; repair or uninstall "
                "its package."
            ) from error
    if name not in _registered:
        raise ConfigError(f"--backend is {name}, but the backends are {', '.join(names())}.")
    return _registered[name]


def check(name: str, source: Source) -> BackendSpec:
    """The backend with this name, after checking that it is installed and takes such a model.

    Raises:
        ConfigError: as in `find`.
        MissingExtraError: its package is not installed.
        ModelError: it cannot load what `source` holds.
    """
    spec = find(name)
    if source.kind not in spec.takes:
        found = f"--model_path is {source.path}, which holds {_HOLDS[source.kind]}" if source.path else ""
        able = " or ".join(each.name for each in _registered.values() if source.kind in each.takes)
        fix = f"ask it with --backend {able}"
        if source.kind not in ("merged", "gguf"):
            format = spec.takes[0]
            folder = f"output/{format}"
            fix = (
                f"make one with  fintune export --format {format} --output_dir {folder}  and pass  "
                f"--model_path {folder}"
            )
        wanted = " or ".join(_HOLDS[kind] for kind in spec.takes if kind in _HOLDS)
        raise ModelError(
            f"--backend {name} takes {wanted}, and {found or 'there is no --model_path'}: {fix}."
        )
    if spec.needs and find_spec(spec.needs[0]) is None:
        raise MissingExtraError(f"--backend {name}", spec.needs[1])
    return spec


def untuned_base_problem(spec: BackendSpec, source: Source) -> str:
    """Why the model cannot answer as its untuned base; "" if it can."""
    if not source.tuned:
        return ""
    if source.kind != "adapter":
        return (
            f"{source.path} is an adapter merged into its base, which cannot be separated: use the "
            "unmerged adapter, or the base itself"
        )
    return "" if spec.untuned_base else f"the backend {spec.name} cannot answer without the adapter"
