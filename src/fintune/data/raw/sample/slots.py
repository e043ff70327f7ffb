"""Fill text templates: phrasings with slots, and each split's values for them."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

Bank = tuple[tuple[str, ...], tuple[str, ...]]
"""Phrasings with one meaning: those of train and validation, and those of test."""


def lines_of(block: str) -> list[str]:
    """The lines of a block; an indented one continues the line before."""
    return [line.strip() for line in re.sub(r"\n +", " ", block).splitlines() if line.strip()]


@functools.cache
def phrases() -> dict[str, dict[str, str]]:
    """The blocks of `phrases.yaml`, by section and name."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))


def banks(section: str) -> dict[str, Bank]:
    """A section of `phrases.yaml` as phrasings by name."""
    return {name: bank(block) for name, block in phrases()[section].items()}


def bank(block: str) -> Bank:
    """Parse phrasings from lines or between `|`; those after the `~` are for the test split."""
    train, test = "\n".join(lines_of(block)).split("~")
    return _phrasings(train), _phrasings(test)


def _phrasings(half: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in re.split(r"[\n|]", half) if phrase.strip())


_STEMS = """
    Velmora Karvela Oskwell Brenholt Tarvane Quillex Noralux Hestwick Pelagor Drovane Sundreva Calvento
    Mirandel Fjordane Aldomar Tessaro Wexmoor Lumivar Ostrelle Branthor Zephalon Corvenna Glenvara Halvorin
    Jutlane Kestrano Marbeck Nyvalle Orrinvale Pravexa Rostelle Sigmora Thornbeck Ulvara Vintrell Wyndara
    Yarrowell Zandrio Ambrook Belcasta Cindervale Dunmarrow Elvastra Farrenby Grimwald Holmquay Ivoryn
    Jasperin""".split()
_COMPANIES = [f"{stem} {('Group', 'Corp', 'International', 'plc')[i % 4]}" for i, stem in enumerate(_STEMS)]
POOLS = {"train": _COMPANIES[:26], "validation": _COMPANIES[26:34], "test": _COMPANIES[34:]}

_WORDS = {  # open to every split
    "product": "industrial pumps|packaging paper|payment software|forklifts|hearing aids|bakery goods|"
    "steel pipes|network switches|rental bikes|medical gloves|office furniture|wind turbine parts",
    "region": "Northern Europe|Latin America|Southeast Asia|North America|Eastern Europe|Southern Africa|"
    "Central Asia|Oceania",
    "good": "operating profit|net sales|order intake|net profit|revenue|operating cash flow|pre-tax profit",
    "bad": "operating costs|freight costs|credit losses|energy costs|warranty costs|interest expenses",
    "quarter": "first|second|third|fourth",
    "month": "February|March|April|May|August|September|October|November",
    "currency": "$|$|EUR |GBP ",
}
_NAMES = {  # every second one is kept for the test split
    "first": "Erin|Tomas|Leila|Marcus|Ingrid|Pavel|Naomi|Duncan|Sofia|Henrik|Amara|Victor|Clara|Ravi",
    "last": "Kovac|Ashdown|Lindgren|Moreau|Okafor|Petrescu|Hale|Sandoval|Virtanen|Brandt|Osei|Farrow|"
    "Nair|Quinn",
    "city": "Helsinki|Vienna|Toronto|Lisbon|Chicago|Dublin|Singapore|Oslo|Madrid|Prague|Boston|Zurich",
    "broker": "Harrow & Lind|Northgate Research|Castellan Securities|Pinewater|Dalton Reeve|"
    "Bluestone Markets",
    "auditor": "Merrow & Finch|Talbot Kerr|Ostrom Audit|Whitlock Partners|Penhale & Co|Garrick Stowe",
    "target": "Tidewell Labs|Oakfen Tools|Marlin Freight|Copperline|Snowfield Data|Redmarsh Dairy",
}
STRENGTHS = (
    {"slightly": 0.5, "markedly": 1.0, "sharply": 1.7},
    {"a little": 0.5, "considerably": 1.0, "dramatically": 1.7},
)


class Slots(dict[str, str]):
    """The values of a template's slots, drawn on first use and then kept.

    `{money}` and `{money2}` are two values of one kind; no value is drawn twice within a record.
    `{low}` is less than `{high}`, in the same unit, and so are `{price_low}` and `{price_high}`.
    """

    def __init__(self, rng: random.Random, split: str, used: set[str] | None = None, **fixed: str) -> None:
        super().__init__(fixed)
        self.rng, self.split = rng, split
        self.held_out = int(split == "test")
        self.used = set() if used is None else used

    def spawn(self) -> Slots:
        """New values for another statement of the same record, about the same company and year."""
        shared = {name: self[name] for name in ("company", "year", "currency")}
        return Slots(self.rng, self.split, self.used, **shared)

    def phrase(self, bank: Bank) -> str:
        return self.rng.choice(bank[self.held_out])

    def fill(self, phrase: str) -> str:
        return phrase.format_map(self)

    def number(self, low: float, high: float, decimals: int = 0) -> str:
        """A number whose last digit is odd in the test split and even elsewhere."""
        scale = 10**decimals
        units = self.rng.randint(round(low * scale), round(high * scale))
        units += (units + self.held_out) % 2
        return f"{units / scale:,.{decimals}f}"

    def __missing__(self, slot: str) -> str:
        if slot in ("low", "high"):
            low, high, decimals, unit = self.rng.choice(
                ((1.2, 98, 1, "million"), (110, 950, 0, "million"), (1.1, 9, 1, "billion"))
            )
            self._pair("low", "high", low, high, decimals, self["currency"], f" {unit}")
        elif slot in ("price_low", "price_high"):
            self._pair("price_low", "price_high", 12, 180, 0, "$", "")
        else:
            value = self._draw(slot.rstrip("234"))
            while value in self.used:
                value = self._draw(slot.rstrip("234"))
            self[slot] = value
            self.used.add(value)
        return self[slot]

    def _pair(self, low_slot, high_slot, low, high, decimals, before, after) -> None:
        first = self.number(low, high, decimals)
        value = float(first.replace(",", ""))
        second = self.number(value * 1.12 + 2 / 10**decimals, value * 1.6 + 2 / 10**decimals, decimals)
        self[low_slot], self[high_slot] = (f"{before}{number}{after}" for number in (first, second))

    def _draw(self, kind: str) -> str:
        choice = self.rng.choice
        match kind:
            case "company":
                return choice(POOLS[self.split])
            case "ticker":
                return "$" + self["company"][:4].upper()
            case "person":
                return f"{self._draw('first')} {self._draw('last')}"
            case "pct":
                return self.number(2, 38, choice((0, 0, 1)))
            case "small":
                return self.number(0.2, 3.8, 1)
            case "percent":
                return self.number(2, 38, choice((0, 0, 1))) + " percent"
            case "count":
                return self.number(40, 2400)
            case "price":
                return "$" + self.number(12, 180)
            case "per_share":
                return self["currency"] + self.number(0.2, 3.9, 2)
            case "money":
                million = choice(((1.2, 98, 1), (110, 950, 0)))
                number, unit = (
                    (self.number(1.1, 9.8, 1), "billion")
                    if self.rng.random() < 0.15
                    else (self.number(*million), "million")
                )
                return f"{self['currency']}{number} {unit}"
            case "date":
                return f"{self.number(1, 27)} {self._draw('month')}"
            case "year":  # of a report; `later` is after it
                return str(choice((2022, 2024)) + self.held_out)
            case "later":
                return str(choice((2026, 2028, 2030)) + self.held_out)
            case "strength":
                return choice(tuple(STRENGTHS[self.held_out]))
            case _ if kind in _NAMES:
                return choice(_NAMES[kind].split("|")[self.held_out :: 2])
            case _:
                return choice(_WORDS[kind].split("|"))


def polish(text: str) -> str:
    """Start with a capital, and say «an 8», «an 18» where a template has «a {pct}»."""
    text = re.sub(r"\b([Aa]) (?=8|1[18](?![\d,]))", r"\1n ", text)
    return text[0].upper() + text[1:]
