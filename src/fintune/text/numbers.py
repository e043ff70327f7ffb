"""Numbers in texts: parse sign, scale and percent, compare answers, and look numbers up in a source.

Texts in, figures and scores out. Knows no tasks or models.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fintune.text.answers import ARTICLES

SCALES = {
    "hundred": 1e2,
    "k": 1e3,
    "thousand": 1e3,
    "m": 1e6,
    "mn": 1e6,
    "mm": 1e6,
    "mln": 1e6,
    "million": 1e6,
    "b": 1e9,
    "bn": 1e9,
    "bln": 1e9,
    "billion": 1e9,
    "tn": 1e12,
    "trillion": 1e12,
}
PERCENT = ("%", "percent", "per cent", "pct", "percentage points", "percentage point")
_UNITS = "|".join(re.escape(unit) for unit in sorted([*SCALES, *PERCENT], key=len, reverse=True))
_CURRENCY = r"(?:US\$|A\$|C\$|[$€£¥]|\b(?:USD|EUR|GBP)\b)"
# Possessive spaces (`\s*+`), and no match starts with one: otherwise runs of spaces take O(n⁴) time.
_FIGURE = re.compile(
    rf"(?<![\w.])(?<!\d,)(?!\s)(?:{_CURRENCY}\s*(?=\())?(?P<open>\()?\s*+(?P<sign>[-+−–](?!\s))?\s*+"
    rf"{_CURRENCY}?\s*+(?P<inner>[-−–])?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<close>\s*+%?\s*+\))?"
    rf"(?:\s*+(?!-[kmb]\b)-?(?P<unit>{_UNITS})(?![A-Za-z]))?"  # the 10-K of "Form 10-K" is not ten thousand
    r"(?P<after>\s*+\))?(?![A-Za-z\d]|\.\d)",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_RANGE = re.compile(r"\s*(?:to|and|or|through|-|–)\s*", re.IGNORECASE)
_NUMERAL = re.compile(r"\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b", re.IGNORECASE)
_NUMERALS = "one two three four five six seven eight nine ten eleven twelve".split()


@dataclass(frozen=True)
class Figure:
    """A number as written: `figure` × `scale`, in percent or not."""

    figure: float
    """Signed, without its scale: -12.6 in "(12.6) million"."""
    scale: float = 1.0
    """1000, 1e6, …; 1 if none is written."""
    percent: bool = False
    decimals: int = 0
    """Digits after the decimal point, as written."""

    @property
    def value(self) -> float:
        """The numeric value; a percentage as a fraction (12 % is 0.12)."""
        return self.figure * self.scale * (0.01 if self.percent else 1)

    @property
    def key(self) -> str:
        """The lookup key (`value_key`): with its scale applied, without its percent sign."""
        return value_key(self.figure * self.scale)


def _figure(match: re.Match[str]) -> Figure:
    digits = match["digits"].replace(",", "")
    unit = (match["unit"] or "").lower()
    inside_percent = "%" in (match["close"] or "")
    negative = (match["sign"] or match["inner"] or "+") != "+"
    negative |= bool(match["open"]) and bool(match["close"] or match["after"])
    return Figure(
        figure=-float(digits) if negative else float(digits),
        scale=SCALES.get(unit, 1.0),
        percent=inside_percent or unit in PERCENT,
        decimals=len(digits.partition(".")[2]),
    )


def figures(text: str) -> list[Figure]:
    """Every number in a text: `$1.2bn`, `1,200 million`, `(12)` for -12, `5.5 percent`, `-0.4%`.

    The first number of a range takes the unit of the second (`1.2 to 1.4 billion`), but a year never does.
    Digits inside a word (`q2`, `COVID19`) are not numbers.
    """
    matches = list(_FIGURE.finditer(text))
    found = [_figure(match) for match in matches]
    for i in range(len(found) - 2, -1, -1):
        between = text[matches[i].end() : matches[i + 1].start()]
        year = _YEAR.fullmatch(matches[i][0])  # "in 2009 to EUR 13.1 mn"
        if matches[i]["unit"] is None and not year and _RANGE.fullmatch(between):
            found[i] = replace(found[i], scale=found[i + 1].scale, percent=found[i + 1].percent)
    return found


def parse_figure(text: str) -> Figure | None:
    """The number that is the whole text except a currency and a full stop; None if there is more."""
    text = text.strip().rstrip(".").strip()
    match = _FIGURE.match(text)
    if match is None or not re.fullmatch(r"\s*(?:dollars?|euros?|USD|EUR|GBP)?", text[match.end() :], re.I):
        return None
    return _figure(match)


def numeric_match(target: str, prediction: str) -> float | None:
    """1 if the prediction states the target's number, 0 if not; None if the target is not a number.

    The prediction must be a number or contain exactly one. Scale and percent count (1.2 billion is 1,200
    million, 12 % is 0.12 and not 12), currency does not, and the difference may be half a unit of the
    target's last digit: 4.14 million answers "4.1 million". In the spirit of FinQA's execution accuracy,
    which compares values instead of text (Chen et al., EMNLP 2021; its `code/evaluate/evaluate.py` rounds to
    5 decimals), and of TAT-QA's scales (`tatqa_metric.py` there).
    """
    expected = parse_figure(target)
    if expected is None:
        return None
    got = parse_figure(prediction)
    if got is None:
        inside = figures(prediction)
        if len(inside) != 1:
            return 0.0
        got = inside[0]
    last_place = 10.0**-expected.decimals * expected.scale * (0.01 if expected.percent else 1)
    tolerance = last_place / 2 * (1 + 1e-9)
    return float(abs(got.value - expected.value) <= tolerance)


def tatqa_scores(target: str, prediction: str, kind: str) -> tuple[float, float]:
    """Exact match and F1 by TAT-QA's rules (Zhu et al., ACL 2021; `tatqa_metric.py`, `TaTQAEmAndF1`).

    A number becomes its value, rounded to two decimals in its own scale; a bare number may also stand for a
    percentage as a fraction. Spans of a multi-span answer (separated by `;` or line ends) are sorted. F1 is
    over the sets of normalised tokens; for `arithmetic` and `count` it is the exact match. Unlike there, the
    scale is read from the answer's text, because a model here answers with text only.

    Args:
        kind: TAT-QA's answer type: span, multi-span, arithmetic or count.
    """
    expected = _tatqa_tokens(_tatqa_text(target, kind))
    answers = [_tatqa_text(prediction, kind)]
    bare = parse_figure(prediction)
    if bare is not None and bare.scale == 1 and not bare.percent:
        answers.append(f"{bare.value:.4f}")
    best = max(_set_scores(expected, _tatqa_tokens(answer)) for answer in answers)
    exact, f1 = best
    return exact, exact if kind in ("arithmetic", "count") else f1


def _tatqa_text(text: str, kind: str) -> str:
    spans = re.split(r";|\n", text) if kind == "multi-span" else [text]
    written = []
    for span in sorted(span.strip() for span in spans if span.strip()):
        figure = parse_figure(span)
        unit = figure.scale * (0.01 if figure.percent else 1) if figure else 1
        written.append(f"{round(figure.figure, 2) * unit:.4f}" if figure else span)
    return " ".join(written)


def _tatqa_tokens(text: str) -> list[str]:
    tokens = []
    for token in text.lower().split():
        figure = parse_figure(token)
        if figure is not None:
            tokens.append(f"{figure.value:.4f}")
        else:
            plain = "".join(character for character in token if character not in string.punctuation)
            tokens += ARTICLES.sub(" ", plain).split()
    return tokens


def _set_scores(expected: Sequence[str], got: Sequence[str]) -> tuple[float, float]:
    if not got:
        return float(not expected), float(not expected)
    shared = len(set(expected) & set(got))
    return float(list(expected) == list(got)), 2 * shared / (len(set(expected)) + len(set(got)))


def value_key(value: float) -> str:
    """A value's lookup key: without its sign, in ten digits."""
    return f"{abs(value):.10g}"


def supported_numbers(text: str, source: str) -> tuple[int, int]:
    """How many numbers of a text occur in its source, and how many numbers it has.

    A number occurs if its value, with scale applied, is in the source: 1.2 bn is 1,200 million. Signs are
    ignored (a loss of 12 is written (12)), and so are percent signs (5 to 7 %); one to twelve may be spelt
    out in the source. A rounded number does not occur.
    """
    total = len(figures(text))
    return total - len(unsupported_figures(text, source)), total


def unsupported_figures(text: str, source: str) -> list[Figure]:
    """The numbers in a text that do not occur in its source, by the rules of `supported_numbers`."""
    known = stated_values(source)
    return [figure for figure in figures(text) if figure.key not in known]


def stated_values(source: str) -> set[str]:
    """The values in a text, by the rules of `supported_numbers`, each as a `value_key`."""
    known = {figure.key for figure in figures(source)}
    return known | {value_key(_NUMERALS.index(word.lower()) + 1) for word in _NUMERAL.findall(source)}
