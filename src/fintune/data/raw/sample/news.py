"""News on a company, and the price change that follows, in percent."""

from __future__ import annotations

from typing import Any

from fintune.data.raw.sample.slots import STRENGTHS, Bank, Slots, bank, lines_of, polish

NOISE_SD = 1.1
"""Standard deviation of what a text does not explain, in percent."""

# The expected move in percent, then the news. Lines come in pairs, good and bad news on one topic.

_EVENTS: list[tuple[float, Bank]] = []
for _line in lines_of("""
    2.4 {company} {strength} raised its profit forecast for the year. |
        {company} {strength} increased its earnings outlook. ~ {company} lifted its profit guidance
        {strength}.
    -2.4 {company} {strength} lowered its profit forecast for the year. |
        {company} {strength} reduced its earnings outlook. ~ {company} cut its profit guidance {strength}.
    2.0 Quarterly earnings at {company} beat the consensus by {pct} percent. |
        {company} earned {pct} percent more than analysts had expected. ~
        Profit at {company} topped estimates by {pct} percent.
    -2.0 Quarterly earnings at {company} missed the consensus by {pct} percent. |
        {company} earned {pct} percent less than analysts had expected. ~
        Profit at {company} fell short of estimates by {pct} percent.
    1.3 New orders at {company} rose {pct} percent from a year ago. |
        Demand for {product} lifted orders at {company} by {pct} percent. ~
        The order book of {company} grew by {pct} percent.
    -1.3 New orders at {company} fell {pct} percent from a year ago. |
        Weak demand for {product} cut orders at {company} by {pct} percent. ~
        The order book of {company} shrank by {pct} percent.
    1.2 {broker} upgraded {company} to buy. | {broker} now recommends buying shares of {company}. ~
        Analysts at {broker} turned positive on {company}.
    -1.2 {broker} downgraded {company} to sell. | {broker} now recommends selling shares of {company}. ~
        Analysts at {broker} turned negative on {company}.
    3.0 {company} received a takeover offer at a premium of {pct} percent. |
        A rival offered to buy {company} at {pct} percent above the market price. ~
        {company} is to be acquired for {pct} percent more than its last share price.
    -3.0 A bidder withdrew its offer for {company}, which had carried a premium of {pct} percent. |
        A rival gave up its plan to buy {company} at {pct} percent above the market price. ~
        The deal to acquire {company} for {pct} percent more than its share price collapsed.
    1.1 {company} raised its dividend by {pct} percent. | The dividend of {company} goes up by {pct}
        percent. ~
        {company} is to pay its holders {pct} percent more.
    -1.1 {company} cut its dividend by {pct} percent. | The dividend of {company} goes down by {pct}
        percent. ~
        {company} is to pay its holders {pct} percent less.
    1.5 Gross margin at {company} {strength} improved. | Input costs at {company} fell {strength}. ~
        Profitability at {company} rose {strength}.
    -1.5 Gross margin at {company} {strength} narrowed. | Input costs at {company} rose {strength}. ~
        Profitability at {company} declined {strength}.
    1.8 A court dismissed the lawsuit against {company} over its {product}. |
        {company} settled the dispute over its {product} on good terms. ~
        Judges ruled in favor of {company} in the case about its {product}.
    -1.8 Regulators opened an investigation into {company} over its {product}. |
        {company} faces a lawsuit over its {product}. ~
        Judges ruled against {company} in the case about its {product}.
    """):
    _points, _phrases = _line.split(" ", 1)
    _EVENTS.append((float(_points), bank(_phrases)))

_NO_NEWS = bank("""
    {company} will hold its annual meeting in {city} on {date}. | {company} employs {count} people in
        {region}.
    {person} of {company} will speak at a conference on {date}. | {company} files its annual report on {date}.
    ~ {company} moves into a new head office on {date}. | {company} sells {product} in {region}.
    """)


def _news(slots: Slots) -> tuple[str, float]:
    """News of one or two topics, and the move it leads one to expect, in percent.

    An event moves the price by its points, times pct/15 (within 0.3 and 2) where it names an amount or
    times its strength word's factor (0.5, 1, 1.7). Events add up; a line without news adds nothing.
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
    """News, and the move it leads one to expect plus Gaussian noise of `NOISE_SD`: no real market."""
    text, expected = _news(slots)
    return {"text": text, "target": round(expected + slots.rng.gauss(0.0, NOISE_SD), 2)}
