"""The llama.cpp backend, through llama-cpp-python: runs one GGUF file that `fintune export` wrote.

Token ids go in and logits come out; llama.cpp's own tokenizer, sampler and chat formats are not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.errors import ModelError
from fintune.kernels.packing import common_prefix_length, parts
from fintune.models import gguf

if TYPE_CHECKING:
    import torch

    from fintune.inference.decoding import Allowed, Generated, Texts, Watch
    from fintune.models.source import Source

TEXTS = 2
"""Texts written token by token at once; each has keys and values for a whole context."""
TEXT_TOKENS = 4096
"""The most tokens of such a text with its prompt (for a task: as many as the recipe trained with)."""
BATCH = 512
"""Tokens per forward pass."""
SEQUENCES = 32
"""Answers scored at once, with the prompt they share."""


class _Model:
    """The weights, freed when the last context that uses them is gone."""

    def __init__(self, library: Any, path: Path) -> None:
        self.library = library
        library.llama_backend_init()
        self.own = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        if not self.own:
            raise ModelError(
                f"{path} cannot be read by llama.cpp: the file is damaged, or this llama-cpp-python does not "
                "know its architecture yet (pip install --upgrade llama-cpp-python)."
            )
        weakref.finalize(self, library.llama_model_free, self.own)
        self.context: int = library.llama_model_n_ctx_train(self.own)
        kind = ctypes.create_string_buffer(16)
        library.llama_model_meta_val_str(self.own, b"general.file_type", kind, len(kind))
        self.exact = kind.value == b"0"  # float32 throughout
        self.vocabulary: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.own))


class _Context:
    """Keys and values of several sequences, and the computations on them."""

    def __init__(self, model: _Model, size: int, sequences: int) -> None:
        import torch

        self.model = model
        self.library = library = model.library
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = size, sequences
        settings.n_batch = settings.n_ubatch = BATCH
        settings.kv_unified = True  # sequences share a common beginning
        if model.exact:  # otherwise keys, values and flash attention's inputs have 16 bits
            settings.type_k = settings.type_v = library.GGML_TYPE_F32
            settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self.own = library.llama_init_from_model(model.own, settings)
        if not self.own:
            raise ModelError(f"llama.cpp has no memory for {size} tokens: lower training.max_length.")
        weakref.finalize(self, library.llama_free, self.own)
        self._memory = library.llama_get_memory(self.own)
        self._batch = library.llama_batch_init(BATCH, 0, 1)
        weakref.finalize(self, library.llama_batch_free, self._batch)

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> torch.Tensor:
        """(N, V) float32 logits after the tokens for which they are wanted.

        Args:
            tokens: each token's id, position and sequence, and whether its logits are wanted.
        """
        import numpy as np
        import torch

        found, batch = [], self._batch
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            batch.n_tokens = len(part)
            for i, (token, place, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if code := self.library.llama_decode(self.own, batch):
                raise ModelError(f"llama.cpp could not compute {len(part)} tokens (code {code}).")
            for i, each in enumerate(part):
                if each[3]:
                    row = self.library.llama_get_logits_ith(self.own, i)
                    found.append(np.ctypeslib.as_array(row, (self.model.vocabulary,)).copy())
        return torch.from_numpy(np.stack(found)) if found else torch.empty(0, self.model.vocabulary)

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop a sequence's tokens from position `start` on."""
        self.library.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def fork(self, source: int, target: int) -> None:
        """Let `target` begin with all of `source`, without copying."""
        self.library.llama_memory_seq_cp(self._memory, source, target, -1, -1)


class _Prompt:
    """One text in sequence 0 of the task context, which also keeps what the next prompt may begin with."""

    def __init__(self, backend: LlamaCpp, prompt: Sequence[int]) -> None:
        self._backend, self._prompt = backend, prompt

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor:
        return self._backend._read(self._prompt) if tokens is None else self._backend._extend(tokens[0])

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to free: `LlamaCpp._read` drops what the next prompt does not share."""


class _Written:
    """Texts in sequences of their own; their numbers come from `free` and return to it."""

    def __init__(
        self,
        context: _Context,
        free: list[int],
        prompts: Sequence[Sequence[int]],
        watched: Mapping[int, Watch],
    ) -> None:
        self._context, self._free = context, free
        self._prompts, self._watched = list(prompts), [watched.get(i) for i in range(len(prompts))]
        self._sequences = [free.pop() for _ in prompts]
        self._lengths = [0] * len(prompts)  # tokens computed
        self._first: list[torch.Tensor | None] = [None] * len(prompts)  # (1, V) logits after the prompts

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor | None:
        import torch

        if tokens is None:
            if any(logits is None for logits in self._first):
                self._compute(next(i for i, logits in enumerate(self._first) if logits is None))
            rows = [logits for logits in self._first if logits is not None]
            return torch.cat(rows) if len(rows) == len(self._first) else None
        wanted = list(zip(tokens, self._lengths, self._sequences, strict=True))
        self._lengths = [length + 1 for length in self._lengths]
        return self._context.decode([(*each, True) for each in wanted])

    def _compute(self, row: int) -> None:
        """Compute one pass of a prompt."""
        prompt, begin, own = self._prompts[row], self._lengths[row], self._sequences[row]
        end = self._lengths[row] = min(begin + BATCH, len(prompt))
        last, watch = len(prompt) - 1, self._watched[row]
        logits = self._context.decode(
            [(prompt[i], i, own, bool(watch) or i == last) for i in range(begin, end)]
        )
        if watch:
            watch(logits)
        self._first[row] = logits[-1:] if end == len(prompt) else None

    def keep(self, rows: Sequence[int]) -> None:
        kept = [self._sequences[i] for i in rows]
        for sequence in set(self._sequences) - set(kept):
            self._context.forget(sequence)
            self._free.append(sequence)
        self._prompts = [self._prompts[i] for i in rows]
        self._watched = [self._watched[i] for i in rows]
        self._lengths = [self._lengths[i] for i in rows]
        self._first = [self._first[i] for i in rows]
        self._sequences = kept


def load(source: Source) -> LlamaCpp:
    """The one GGUF file of an exported folder; see `BackendSpec.load`."""
    assert source.path
    return LlamaCpp(gguf.only_file(source.path), source.recipe.training.max_length)


class LlamaCpp:
    """A GGUF file."""

    texts = TEXTS

    def __init__(self, path: Path, max_length: int) -> None:
        """
        Args:
            max_length: the most tokens of a task's prompt with its answer.

        Raises:
            ModelError: llama.cpp cannot read the file.
        """
        import llama_cpp

        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # it prints a page by itself
        self._model = _Model(llama_cpp, path)
        self.context: int | None = min(self._model.context, max(max_length, TEXT_TOKENS))
        self._tasks = _Context(self._model, max_length + BATCH, SEQUENCES)
        self._written: _Context | None = None
        self._free = list(range(TEXTS))
        self._held: list[int] = []  # the tokens of sequence 0 of `_tasks`

    def session(self, use_adapter: bool = True) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def batch_limits(self, size: int, scoring: bool) -> tuple[int, int]:
        return size, size * (self.context or 0)

    def shared(self, prompts: Sequence[Sequence[int]]) -> int:
        return 0  # each prompt keeps what it shares with the one before it

    def lookups(self) -> tuple[int, int]:
        return 0, 0

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int = 0
    ) -> list[list[float]]:
        return [self._score(prompt, answers) for prompt in prompts]

    def _score(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        first = self._read(prompt).double().log_softmax(1)[0]
        scores = [float(first[answer[0]]) for answer in answers]
        for group in parts(list(map(len, answers)), BATCH, SEQUENCES - 1):
            for i, more in zip(group, self._rest(prompt, [answers[i] for i in group]), strict=True):
                scores[i] += more
        return scores

    def _rest(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """For each answer, log p of its tokens after the first."""
        tokens = [
            (token, len(prompt) + place, sequence, True)
            for sequence, answer in enumerate(answers, 1)
            for place, token in enumerate(answer[:-1])
        ]
        if not tokens:
            return [0.0] * len(answers)
        for sequence in range(1, len(answers) + 1):
            self._tasks.fork(0, sequence)
        try:
            rows = iter(self._tasks.decode(tokens).double().log_softmax(1))
        finally:
            for sequence in range(1, len(answers) + 1):
                self._tasks.forget(sequence)
        return [sum(float(next(rows)[token]) for token in answer[1:]) for answer in answers]

    def _read(self, prompt: Sequence[int]) -> torch.Tensor:
        """(1, V) logits after a prompt; tokens shared with the previous prompt are not computed again."""
        known = common_prefix_length([self._held, prompt])
        self._tasks.forget(0, known)
        del self._held[known:]  # if the pass fails, none of its tokens count as held
        last = len(prompt) - 1
        logits = self._tasks.decode([(prompt[i], i, 0, i == last) for i in range(known, len(prompt))])
        self._held = list(prompt)
        return logits

    def _extend(self, token: int) -> torch.Tensor:
        """(1, V) logits after one more token of sequence 0."""
        logits = self._tasks.decode([(token, len(self._held), 0, True)])
        self._held.append(token)
        return logits

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        ends: Collection[int],
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        from fintune.inference.decoding import greedy

        # One after the other: each shares the instruction that the previous one left in sequence 0.
        return [
            greedy(_Prompt(self, prompt), [number], max_new_tokens, ends, allowed)[0]
            for number, prompt in enumerate(prompts)
        ]

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        watched: Mapping[int, Watch] | None = None,
    ) -> Texts:
        if self._written is None:
            assert self.context
            self._written = _Context(self._model, TEXTS * self.context, TEXTS)
        return _Written(self._written, self._free, prompts, watched or {})
