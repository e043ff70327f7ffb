"""Constrains text to a JSON schema, a regular expression, a choice or a grammar, with llguidance.

A schema may come from anyone, so its size, its depth and the parser's work are limited. Anything beyond the
limits, or unsupported, is refused with llguidance's own reason. Knows tokenizers and token ids, no models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fintune.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MAX_CHARACTERS = 100_000
"""The most characters of a schema or a grammar."""
MAX_DEPTH = 64
_LIMITS = {"max_grammar_size": 50_000, "max_lexer_states": 20_000, "verbose_errors": False}
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as `json.dumps` writes it: a small model that may write white space writes it endlessly."""


@dataclass(frozen=True)
class Grammar:
    """The grammar that a text must follow; `field` is its name in the request."""

    field: str
    source: str
    """llguidance's own form."""

    def allowed(self, tokenizer: PreTrainedTokenizerBase) -> _Follower:
        """The constraint on the next token of one text.

        Raises:
            DataError: the grammar is unsupported, has an error, or exceeds a limit.
            MissingExtraError: llguidance is not installed.
        """
        matcher = _compiled(tokenizer, self.source)
        if isinstance(matcher, str):
            raise DataError(f"{self.field} cannot be followed: {_short(matcher)}.")
        return _Follower(self.field, matcher.deep_copy(), len(tokenizer))


def of_schema(field: str, schema: Any) -> Grammar:
    """A grammar for JSON that follows this schema.

    Raises:
        DataError: it is not a schema, too long or too deep.
    """
    return Grammar(field, _llguidance(field).LLMatcher.grammar_from_json_schema(inner(field, schema)))


def inner(field: str, schema: Any) -> str:
    """A schema as the JSON that follows `%json` in a grammar; errors as in `of_schema`."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise DataError(f"{field} is not a JSON schema: send an object.")
    if _depth(schema) > MAX_DEPTH:
        raise DataError(f"{field} is nested more than {MAX_DEPTH} levels deep: send a flatter schema.")
    return _bounded(field, json.dumps({**schema, "x-guidance": _COMPACT}))


def parsed(field: str, schema: Any) -> Any:
    """A schema given as text or as an object."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(_bounded(field, schema))
    except (ValueError, RecursionError):
        raise DataError(f"{field} is not valid JSON.") from None


def of_regex(field: str, pattern: str) -> Grammar:
    """A grammar for text that matches a regular expression as a whole."""
    return Grammar(field, _llguidance(field).LLMatcher.grammar_from_regex(_bounded(field, pattern)))


def of_choice(field: str, choices: Sequence[str]) -> Grammar:
    """A grammar for one of these texts."""
    if not choices or not all(choices):
        raise DataError(f"{field} has an empty choice: send texts of at least one character.")
    texts = " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
    return of_lark(field, f"start: CHOICE\nCHOICE: {texts}")  # one lexeme: thousands of rules would be slow


def of_lark(field: str, grammar: str) -> Grammar:
    """A grammar in llguidance's dialect of Lark."""
    return Grammar(field, _llguidance(field).LLMatcher.grammar_from_lark(_bounded(field, grammar)))


class _Follower:
    """An `Allowed` for one text, which follows the tokens as they are written."""

    def __init__(self, field: str, matcher: Any, size: int) -> None:
        self._field, self._matcher, self._size, self._seen = field, matcher, size, 0

    def __call__(self, row: int, sofar: Sequence[int]) -> torch.Tensor:
        import numpy as np
        import torch

        self._matcher.consume_tokens(list(sofar[self._seen :]))
        self._seen = len(sofar)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(mask, bitorder="little")[: self._size].nonzero()[0]
        if self._matcher.is_error() or not len(found):
            reason = _short(self._matcher.get_error()) or "no token may come next"
            raise DataError(f"{self._field} cannot be followed: {reason}.")
        return torch.from_numpy(found)


@lru_cache(maxsize=16)
def _compiled(tokenizer: PreTrainedTokenizerBase, source: str) -> Any:
    """A matcher at the start of the text, or the reason why there is none."""
    library = _llguidance("response_format")
    limits = library.LLParserLimits(**_LIMITS)
    matcher = library.LLMatcher(_tokens(tokenizer), source, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds grammars that no first token fits
    return matcher.get_error() if matcher.is_error() else matcher


@lru_cache(maxsize=2)
def _tokens(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer in llguidance's form, which takes a second to build."""
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer)
    except ValueError as error:
        raise DataError("This model's tokenizer has no fast form, which structured output needs.") from error


def _llguidance(field: str) -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError(field, "serve") from None
    return llguidance


def _bounded(field: str, text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{field} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed.")
    return text


def _depth(value: Any) -> int:
    """The nesting depth of a JSON value, without recursion; stops below the allowed depth."""
    layer, depth = [value], 0
    while layer and depth <= MAX_DEPTH:
        layer = [
            inner
            for each in layer
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        depth += 1
    return depth


def _short(message: str) -> str:
    return " ".join(message.replace("<non-verbose/>", "").split())[:200].rstrip(". ")
