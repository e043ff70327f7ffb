"""The vLLM backend, for GPUs: the base on vLLM's engine, the adapter as a LoRA request."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fintune.errors import ModelError

if TYPE_CHECKING:
    from fintune.inference.decoding import Allowed, Generated, Texts, Watch
    from fintune.models.source import Source

AT_ONCE = 4096
"""Prompts per call: vLLM batches them itself."""
AT_MOST = 128
"""Tokens whose likelihoods vLLM returns for one request."""
_GREEDY = {"temperature": 0, "detokenize": False}


class Vllm:
    """A base in vLLM, perhaps with one adapter."""

    texts = 0

    def __init__(self, source: Source) -> None:
        """See `BackendSpec.load`."""
        import vllm
        from vllm.lora.request import LoRARequest

        from fintune.models import adapters, base, vllm_lora

        name, adapter = base.resolve(source.recipe.base_model.name), source.adapter
        options: dict[str, Any] = {"dtype": str(source.dtype).removeprefix("torch.")}
        if adapter is not None:
            options |= {"enable_lora": True, "max_lora_rank": vllm_lora.room(adapters.rank(adapter))}
        self.context: int | None = source.recipe.training.max_length
        try:
            self._llm = vllm.LLM(
                model=str(name),
                revision=source.recipe.base_model.revision,
                max_model_len=self.context,
                generation_config="vllm",  # not the sampling that the model's folder may ask for
                **options,
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[:1]
            raise ModelError(f"vLLM cannot load {name}: {''.join(reason)}") from error
        self._sampling = vllm.SamplingParams
        self._adapter = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        self._request = self._adapter

    @contextlib.contextmanager
    def session(self, use_adapter: bool = True) -> Iterator[None]:
        self._request = self._adapter if use_adapter else None
        yield

    def batch_limits(self, size: int, scoring: bool) -> tuple[int, int]:
        return AT_ONCE, AT_ONCE * (self.context or 0)

    def shared(self, prompts: Sequence[Sequence[int]]) -> int:
        return 0  # vLLM finds common prefixes by itself

    def lookups(self) -> tuple[int, int]:
        return 0, 0

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int = 0
    ) -> list[list[float]]:
        # Not prompt_logprobs: with a LoRA, vLLM gets those wrong or stops (its issues 16668, 29955), and it
        # computes the prompt again for every answer.
        wanted = next_tokens(answers)
        found = self._llm.generate(
            [{"prompt_token_ids": [*prompt, *start]} for prompt in prompts for start, _ in wanted],
            [self._sampling(max_tokens=1, logprob_token_ids=ids, **_GREEDY) for _, ids in wanted]
            * len(prompts),
            use_tqdm=False,
            lora_request=self._request,
        )
        rows = iter([output.outputs[0].logprobs[0] for output in found])
        scores = []
        for _ in prompts:
            known = {}
            for (start, ids), row in zip(wanted, rows, strict=False):
                known.update({(*start, token): float(row[token].logprob) for token in ids})
            scores.append(
                [sum(known[(*a[:i], token)] for i, token in enumerate(a)) for a in map(tuple, answers)]
            )
        return scores

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        ends: Collection[int],
        allowed: Allowed | None,
        shared: int = 0,
    ) -> list[Generated]:
        from fintune.inference.decoding import Generated

        if allowed is not None:
            raise ModelError(
                "--backend vllm cannot constrain texts to a format: remove it from evaluation.formats, or "
                "use --backend builtin."
            )
        found = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            self._sampling(max_tokens=max_new_tokens, stop_token_ids=[*ends], logprobs=0, **_GREEDY),
            use_tqdm=False,
            lora_request=self._request,
        )
        answers = []
        for output in found:
            ids = list(output.outputs[0].token_ids)
            values = [row[token].logprob for row, token in zip(output.outputs[0].logprobs, ids, strict=True)]
            answers.append(Generated([token for token in ids if token not in ends], values))
        return answers

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        watched: Mapping[int, Watch] | None = None,
    ) -> Texts:
        raise ModelError("--backend vllm cannot write token by token: serve it with vLLM's own server.")


load = Vllm


def next_tokens(answers: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], list[int]]]:
    """Every prefix of an answer, the empty one too, with up to `AT_MOST` of the tokens that follow it."""
    found: dict[tuple[int, ...], dict[int, None]] = {}
    for answer in answers:
        for i, token in enumerate(answer):
            found.setdefault(tuple(answer[:i]), {})[token] = None
    return [
        (start, list(tokens)[i : i + AT_MOST])
        for start, tokens in found.items()
        for i in range(0, len(tokens), AT_MOST)
    ]
