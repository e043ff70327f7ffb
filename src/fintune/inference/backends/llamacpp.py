"""The backend of llama.cpp, through llama-cpp-python's bindings: one GGUF file, that `fintune export` wrote.

Token ids go in and logits come out; llama.cpp's own tokenizer, sampler and chat formats are not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.errors import MissingExtraError, ModelError
from fintune.kernels.packing import common_prefix_length

if TYPE_CHECKING:
    from fintune.inference.decoding import Allowed, Generated

TEXTS = 2
"""Texts written a token a step at once: each has keys and values for a whole context."""
TEXT_TOKENS = 4096
"""Tokens of such a text and its prompt at most (of a task's, as many as the recipe trained with)."""
BATCH = 512
"""Tokens of one forward pass."""
SEQUENCES = 32
"""Answers scored at once, and the prompt they share."""


class _Model:
    """The weights, freed when no context is left that uses them."""

    def __init__(self, library: Any, path: Path) -> None:
        self.library = library
        library.llama_backend_init()
        self.own = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        if not self.own:
            raise ModelError(
                f"{path} cannot be read by llama.cpp: it is damaged, or of an architecture that this "
                "llama-cpp-python does not know yet (pip install --upgrade llama-cpp-python)."
            )
        weakref.finalize(self, library.llama_model_free, self.own)
        self.context: int = library.llama_model_n_ctx_train(self.own)
        kind = ctypes.create_string_buffer(16)
        library.llama_model_meta_val_str(self.own, b"general.file_type", kind, len(kind))
        self.exact = kind.value == b"0"  # float32 throughout
        self.vocabulary: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.own))


class _Context:
    """Keys and values of several sequences, and what is computed over them."""

    def __init__(self, model: _Model, size: int, sequences: int) -> None:
        import torch

        self.model = model
        self.library = library = model.library
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = size, sequences
        settings.n_batch = settings.n_ubatch = BATCH
        settings.kv_unified = True  # sequences share what they begin with
        if model.exact:  # else keys and values, and what flash attention reads, have 16 bit
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

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> Any:
        """(N, V) float32 logits after those tokens that want them.

        Args:
            tokens: of each its id, its place, its sequence, and whether its logits are wanted.
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
        return torch.from_numpy(np.stack(found))

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop a sequence from its place `start` on."""
        self.library.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def fork(self, source: int, target: int) -> None:
        """Let `target` begin with all of `source`, without a copy."""
        self.library.llama_memory_seq_cp(self._memory, source, target, -1, -1)


@dataclass
class _Texts:
    """The sequence and the length of each text; `prompts` are to be computed first."""

    prompts: list[Sequence[int]]
    sequences: list[int]
    lengths: list[int] = field(default_factory=list)


class LlamaCpp:
    """A GGUF file."""

    texts = TEXTS

    def __init__(self, path: Path, max_length: int) -> None:
        """
        Args:
            max_length: tokens of a task's prompt and answer.

        Raises:
            ModelError: llama.cpp cannot read the file.
            MissingExtraError: llama-cpp-python is not installed.
        """
        try:
            import llama_cpp
        except ModuleNotFoundError:
            raise MissingExtraError("--backend llama.cpp", "llamacpp") from None
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # it prints a page by itself
        self._model = _Model(llama_cpp, path)
        self.context: int | None = min(self._model.context, max(max_length, TEXT_TOKENS))
        self._tasks = _Context(self._model, max_length + BATCH, SEQUENCES)
        self._written: _Context | None = None
        self._free = list(range(TEXTS))
        self._held: list[int] = []  # the tokens of sequence 0 of `_tasks`

    @classmethod
    def load(cls, model_path: str | Path | None, max_length: int) -> LlamaCpp:
        """The GGUF of a folder of `fintune export`.

        Raises:
            ModelError: there is none, or more than one, and as of `LlamaCpp`.
        """
        files = sorted(Path(model_path).glob("*.gguf")) if model_path else []
        if not files:
            what = f"--model_path is {model_path}, which has none" if model_path else "there is no adapter"
            raise ModelError(
                f"--backend llama.cpp answers from a GGUF file, and {what}: make one with  fintune export "
                "--format gguf --output_dir output/gguf  and pass  --model_path output/gguf"
            )
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise ModelError(
                f"--model_path is {model_path}, which has several GGUF files ({names}): keep one."
            )
        return cls(files[0], max_length)

    @contextlib.contextmanager
    def session(self, use_adapter: bool = True) -> Iterator[None]:
        if not use_adapter:
            raise ModelError(
                "--backend llama.cpp has one merged model and cannot answer as its untuned base: export the "
                "base apart, or use --backend builtin."
            )
        yield

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
        group: list[int] = []
        for i in range(len(answers)):
            group.append(i)
            longest = sum(len(answers[j]) for j in group) + (
                len(answers[i + 1]) if i + 1 < len(answers) else 0
            )
            if i + 1 == len(answers) or len(group) == SEQUENCES - 1 or longest > BATCH:
                for j, more in zip(group, self._rest(prompt, [answers[j] for j in group]), strict=True):
                    scores[j] += more
                group = []
        return scores

    def _rest(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Of each answer log p of its tokens after the first."""
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

    def _read(self, prompt: Sequence[int]) -> Any:
        """(1, V) logits after a prompt; what it begins with as the one before it is not computed again."""
        known = common_prefix_length([self._held, prompt])
        self._tasks.forget(0, known)
        del self._held[known:]  # of a pass that fails nothing is held
        last = len(prompt) - 1
        logits = self._tasks.decode([(prompt[i], i, 0, i == last) for i in range(known, len(prompt))])
        self._held = list(prompt)
        return logits

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        end: int,
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        from fintune.inference.decoding import Generated, most_likely

        answers = [Generated() for _ in prompts]
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            logits = self._read(prompt)
            while True:
                tokens, values = most_likely(logits, [row], [answer.ids], allowed)
                answer.log_probabilities.append(float(values[0]))
                if tokens[0] == end:
                    break
                answer.ids.append(int(tokens[0]))
                if len(answer.ids) == max_new_tokens:
                    break
                logits = self._tasks.decode([(answer.ids[-1], len(self._held), 0, True)])
                self._held.append(answer.ids[-1])
        return answers

    def begin(self, prompts: Sequence[Sequence[int]]) -> _Texts:
        if self._written is None:
            assert self.context
            self._written = _Context(self._model, TEXTS * self.context, TEXTS)
        return _Texts(list(prompts), [self._free.pop() for _ in prompts])

    def advance(self, texts: _Texts, tokens: Sequence[int] | None) -> Any:
        assert self._written
        if tokens is None:
            rows = list(zip(texts.prompts, texts.sequences, strict=True))
            texts.lengths = [len(prompt) for prompt in texts.prompts]
            return self._written.decode(
                [
                    (prompt[i], i, own, i == len(prompt) - 1)
                    for prompt, own in rows
                    for i in range(len(prompt))
                ]
            )
        wanted = list(zip(tokens, texts.lengths, texts.sequences, strict=True))
        texts.lengths = [length + 1 for length in texts.lengths]
        return self._written.decode([(*each, True) for each in wanted])

    def keep(self, texts: _Texts, rows: Sequence[int]) -> None:
        assert self._written
        kept = [texts.sequences[i] for i in rows]
        for sequence in set(texts.sequences) - set(kept):
            self._written.forget(sequence)
            self._free.append(sequence)
        texts.prompts = [texts.prompts[i] for i in rows]
        texts.lengths = [texts.lengths[i] for i in rows] if texts.lengths else []
        texts.sequences = kept
