"""Constrains generated text to a format: bullets, a passage of the input text, or the input's numbers.

Knows tokenizers and token ids, no models.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from fintune.errors import ConfigError
from fintune.inference.decoding import Allowed, Choice
from fintune.models.endings import end_tokens
from fintune.prompts import framed_ids
from fintune.tasks.base import Record, TextFormat
from fintune.text.numbers import SCALES, stated_values, value_key

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def allowed_tokens(
    text_format: TextFormat | None, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]
) -> Allowed | None:
    """The callback that `decoding.greedy` asks before each token; None if nothing is constrained.

    Args:
        records: the records answered, in the order of their prompts: passages and numbers are copied
            from their texts.
    """
    if text_format is None:
        return None
    shape: Allowed | None = None
    if text_format.copy_spans:
        passages = [_Passage(tokenizer, record.text) for record in records]
        shape = lambda row, sofar: passages[row].next(sofar)  # noqa: E731
    elif text_format.bullets:
        bullets = _bullets(tokenizer, text_format.bullets, text_format.bullet_tokens)
        shape = lambda row, sofar: bullets.next(sofar)  # noqa: E731
    if not text_format.source_numbers:
        return shape
    numbers = [_Numbers(tokenizer, f"{record.text}\n{record.question or ''}") for record in records]
    return lambda row, sofar: numbers[row].next(sofar, shape(row, sofar) if shape else None)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return framed_ids(tokenizer, str, text)


@lru_cache(maxsize=1)
def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each vocabulary token."""
    return tokenizer.batch_decode([[i] for i in range(len(tokenizer))])


@lru_cache(maxsize=1)
def _ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return end_tokens(tokenizer)


class _Bullets:
    """Lines that begin with a dash: at most `count` of them, each with at most `tokens` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, count: int, tokens: int | None) -> None:
        import torch

        self.count, self.tokens = count, tokens
        self.ends = _ends(tokenizer)
        self.line = _ids(tokenizer, "\n")[-1]  # SentencePiece writes a space before it
        if tokenizer.decode([self.line]) != "\n":
            raise ConfigError(
                "evaluation.formats: bullets need a tokenizer with a token for the line end alone, "
                "and this base has none: remove `bullets`.",
                "This base model cannot be constrained to bullets: its tokenizer has no line-end token.",
            )
        self.dash = _ids(tokenizer, "-")[0]
        pieces = _pieces(tokenizer)
        # A token that contains a line end inside other text would begin lines that are not counted.
        hidden = {i for i, piece in enumerate(pieces) if "\n" in piece and i != self.line}
        special = set(tokenizer.all_special_ids) - set(self.ends)
        inside = [i for i in range(len(pieces)) if i not in hidden and i not in special]
        self.any = torch.tensor(inside)
        self.no_line = torch.tensor([i for i in inside if i != self.line])
        word = [i for i in inside if i not in (self.line, *self.ends)]
        self.word = torch.tensor(word)
        # A space follows the dash, alone or before a word: «-3.05» would be a number, not a bullet.
        signs = tokenizer.convert_ids_to_tokens(word)
        spaced = [i for i, sign in zip(word, signs, strict=True) if sign.startswith((" ", "Ġ", "▁"))]
        self.spaced = torch.tensor(spaced or word)
        self.blank = {i for i in spaced if not pieces[i].strip()}

    def next(self, sofar: Sequence[int]) -> Choice:
        lines = list(sofar).count(self.line)
        begun = 0
        for token in reversed(sofar):
            if token == self.line:
                break
            begun += 1
        if begun == 0:
            return [self.dash]
        final = lines + 1 >= self.count
        if self.tokens is not None and begun >= self.tokens:
            return self.ends if final else [self.line, *self.ends]
        if begun == 1:
            return self.spaced
        if set(sofar[-(begun - 1) :]) <= self.blank:  # a dash alone is no bullet
            return self.word
        return self.no_line if final else self.any


class _Passage:
    """A run of the text's tokens, from any start to any end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self.ends = _ends(tokenizer)
        self.ids = _ids(tokenizer, text)
        # An answer's first word has no leading space, unlike inside the text.
        bare = {i: _ids(tokenizer, tokenizer.decode([i]).lstrip()) for i in set(self.ids)}
        self.starts = [ids[0] if len(ids := bare[i]) == 1 else None for i in self.ids]

    def next(self, sofar: Sequence[int]) -> Sequence[int]:
        if not sofar:
            return sorted({i for i in self.starts if i is not None}) or self.ends
        at = [i + 1 for i, first in enumerate(self.starts) if first == sofar[0]]
        for token in sofar[1:]:
            at = [i + 1 for i in at if i < len(self.ids) and self.ids[i] == token]
        return sorted({self.ids[i] for i in at if i < len(self.ids)} | set(self.ends))


_bullets = lru_cache(maxsize=8)(_Bullets)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LAST_WORD = re.compile(r"\S*$")
_CUT = re.compile(r"\S*\d\S*$")


@lru_cache(maxsize=1)
def _by_digits(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[torch.Tensor, dict[int, str], dict[int, float], torch.Tensor]:
    """(V,) mask of the tokens that are no part of a number; the pieces of those that may be; the scale of
    each unit token (million); (V,) mask of the tokens that begin with a letter, which end a number (2nd)."""
    import torch

    pieces = _pieces(tokenizer)
    part = {i: piece for i, piece in enumerate(pieces) if piece in (".", ",") or _NUMBER.search(piece)}
    units = {i: SCALES[p.strip().lower()] for i, p in enumerate(pieces) if p.strip().lower() in SCALES}
    plain = torch.ones(len(pieces), dtype=torch.bool)
    plain[list(part)] = False
    return plain, part, units, plain & torch.tensor([piece[:1].isalpha() for piece in pieces])


class _Numbers:
    """Texts whose every number, with its scale, is stated in the source (as `text.numbers.supported_numbers`
    reads it), in the source's digits; thousands separators may be left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.tokenizer = tokenizer
        self.plain, self.part, self.units, self.letters = _by_digits(tokenizer)
        found = set(_NUMBER.findall(source))
        self.written = found | {number.replace(",", "") for number in found}
        self.in_order = sorted(self.written)
        self.values = stated_values(source)
        self.masks: dict[str, torch.Tensor] = {}

    def next(self, sofar: Sequence[int], among: Choice = None) -> torch.Tensor:
        """The tokens that may come next, restricted to those in `among` if given.

        If none may (a bullet of full length ends inside a number), return `among` itself.
        """
        import torch

        begin = len(sofar)
        while begin and sofar[begin - 1] in self.part:
            begin -= 1
        before = _LAST_WORD.findall(self.tokenizer.decode(list(sofar[max(0, begin - 1) :])))[0]
        mask = self._may_follow(before)
        if among is None:
            return mask.nonzero()[:, 0]
        among = torch.as_tensor(among)
        kept = among[mask[among]]
        return kept if len(kept) else among

    def _may_follow(self, before: str) -> torch.Tensor:
        """(V,) mask of the tokens that may follow a word that has begun like this."""
        if any(c.isdigit() for c in before):
            return self._mask(before)
        # Only the kind of the word's end matters then: most steps look up one of four masks.
        end = before[-1:]
        kind = "a" if end.isalpha() else end if end in (".", ",") else ""
        if kind not in self.masks:
            self.masks[kind] = self._mask(kind)
        return self.masks[kind]

    def _mask(self, word: str) -> torch.Tensor:
        import torch

        mask = self.plain.clone() if self._fits(word + " ") else torch.zeros_like(self.plain)
        *_, last = [*_NUMBER.findall(word)] or [""]
        if last and word.endswith(last):  # a unit may follow, and letters on digits alone (2nd)
            mask[self.letters] = last.isdigit() and last in self.written
            for token, scale in self.units.items():
                mask[token] = self._states(last, scale)
        mask[[i for i, piece in self.part.items() if self._fits(word + piece)]] = True
        return mask

    def _fits(self, text: str) -> bool:
        """Whether each number of the text is in the source; the last one may be only a beginning of such."""
        for number in _NUMBER.finditer(text):
            after = text[number.end() :]
            ahead = text[: number.start()][-1:]
            if ahead in (".", ","):  # it would be read as a fraction
                return False
            whole = number.group() in self.written if ahead.isalpha() else self._states(number.group())
            begun = after in ("", ".", ",") and self._begins(number.group() + after)
            if not (begun or (after and whole)):
                return False
        return True

    def _begins(self, text: str) -> bool:
        """Whether a number of the source begins like this: bisects the sorted numbers."""
        place = bisect_left(self.in_order, text)
        return place < len(self.in_order) and self.in_order[place].startswith(text)

    def _states(self, number: str, scale: float = 1.0) -> bool:
        try:
            value = float(number.replace(",", "")) * scale
        except ValueError:  # 1.2.3
            return scale == 1 and number in self.written
        return number in self.written and value_key(value) in self.values


def without_cut_number(text: str) -> str:
    """The text without a last word that has digits, which the token limit may have truncated."""
    return _CUT.sub("", text).rstrip()
