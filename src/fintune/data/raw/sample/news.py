"""News on a company, and the price change that follows, in percent."""

from __future__ import annotations

from typing import Any

from fintune.data.raw.sample.slots import STRENGTHS, Bank, Slots, bank, lines_of, phrases, polish

NOISE_SD = 1.1
"""Standard deviation, in percent, of the part of a move that the text does not explain."""

# A line is the expected move in percent, then the news. Lines come in pairs, good and bad news on one topic.
_EVENTS: list[tuple[float, Bank]] = []
for _line in lines_of(phrases()["news"]["events"]):
    _points, _phrases = _line.split(" ", 1)
    _EVENTS.append((float(_points), bank(_phrases)))
_NO_NEWS = bank(phrases()["news"]["no_news"])


def _news(slots: Slots) -> tuple[str, float]:
    """News on one or two topics, and the expected move, in percent.

    An event moves the price by its points, times pct/15 (within 0.3 and 2) if it names an amount, or times
    its strength word's factor (0.5, 1, 1.7). Events add up; a line without news adds nothing.
    """
    rng = slots.rng
    bad = rng.randrange(2)
    lines: list[str] = []
    expected = 0.0
    for topic in rng.sample(range(len(_EVENTS) // 2), rng.choice((1, 1, 2))):
        second_disagrees = bool(lines) and rng.random() < 0.3
        points, phrasings = _EVENTS[2 * topic + (bad ^ second_disagrees)]
        values = slots.spawn()
        lines.append(values.fill(slots.phrase(phrasings)))
        if "pct" in values:
            points *= min(2.0, max(0.3, float(values["pct"]) / 15))
        elif "strength" in values:
            points *= STRENGTHS[slots.held_out][values["strength"]]
        expected += points
    if rng.random() < 0.5:
        lines.insert(rng.randrange(len(lines) + 1), slots.fill(slots.phrase(_NO_NEWS)))
    return "\n".join(map(polish, lines)), expected


def news(slots: Slots) -> dict[str, Any]:
    """News, and the expected move plus Gaussian noise of `NOISE_SD`: not a real market."""
    text, expected = _news(slots)
    return {"text": text, "target": round(expected + slots.rng.gauss(0.0, NOISE_SD), 2)}
