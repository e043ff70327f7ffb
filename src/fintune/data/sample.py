"""A small finance sample for the five tasks, written for this project: a task and a seed in, records out.

It stands in where no real data is at hand. Every text is a template filled with invented companies,
figures and names; it copies no dataset and describes no real event. Its test split asks for
generalisation: it has its own companies, its own phrasings, and numbers whose last digit is odd, where
those of train and validation end in an even one.
"""

from __future__ import annotations

import random
import re
from typing import Any

from fintune.errors import DataError
from fintune.tasks.base import Record

SIZES: dict[str, tuple[int, int, int]] = {
    "sentiment": (240, 40, 100),
    "headline": (240, 40, 100),
    "summarization": (100, 20, 30),
    "qa": (240, 40, 60),
    "regression": (240, 40, 80),
}
"""The number of train, validation and test records of each task."""

NOISE_SD = 1.1
"""Standard deviation of what a regression text does not explain, in percent."""

Bank = tuple[tuple[str, ...], tuple[str, ...]]
"""Phrasings of one meaning: those of train and validation, and those of test."""


def _lines(block: str) -> list[str]:
    """The lines of a block; one that is indented by 8 or more continues the line before."""
    return [line.strip() for line in re.sub(r"\n {8,}", " ", block).splitlines() if line.strip()]


def _bank(block: str) -> Bank:
    """Phrasings stand on lines or between `|`; after the `~` come those of the test split."""
    train, test = "\n".join(_lines(block)).split("~")
    return tuple(tuple(p.strip() for p in re.split(r"[\n|]", half) if p.strip()) for half in (train, test))  # type: ignore[return-value]


# Vocabulary ----------------------------------------------------------------------------------------

_STEMS = """
    Velmora Karvela Oskwell Brenholt Tarvane Quillex Noralux Hestwick Pelagor Drovane Sundreva Calvento
    Mirandel Fjordane Aldomar Tessaro Wexmoor Lumivar Ostrelle Branthor Zephalon Corvenna Glenvara Halvorin
    Jutlane Kestrano Marbeck Nyvalle Orrinvale Pravexa Rostelle Sigmora Thornbeck Ulvara Vintrell Wyndara
    Yarrowell Zandrio Ambrook Belcasta Cindervale Dunmarrow Elvastra Farrenby Grimwald Holmquay Ivoryn
    Jasperin""".split()
_COMPANIES = [f"{stem} {('Group', 'Corp', 'International', 'plc')[i % 4]}" for i, stem in enumerate(_STEMS)]
_POOLS = {"train": _COMPANIES[:26], "validation": _COMPANIES[26:34], "test": _COMPANIES[34:]}

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
    "last": "Kovac|Ashdown|Lindgren|Moreau|Okafor|Petrescu|Hale|Sandoval|Virtanen|Brandt|Osei|Farrow|Nair|Quinn",
    "city": "Helsinki|Vienna|Toronto|Lisbon|Chicago|Dublin|Singapore|Oslo|Madrid|Prague|Boston|Zurich",
    "broker": "Harrow & Lind|Northgate Research|Castellan Securities|Pinewater|Dalton Reeve|Bluestone Markets",
    "auditor": "Merrow & Finch|Talbot Kerr|Ostrom Audit|Whitlock Partners|Penhale & Co|Garrick Stowe",
    "target": "Tidewell Labs|Oakfen Tools|Marlin Freight|Copperline|Snowfield Data|Redmarsh Dairy",
}
_STRENGTHS = (
    {"slightly": 0.5, "markedly": 1.0, "sharply": 1.7},
    {"a little": 0.5, "considerably": 1.0, "dramatically": 1.7},
)


class _Slots(dict[str, str]):
    """The values of a template's slots, drawn when first named and then kept.

    `{money}` and `{money2}` are two values of one kind; no value is drawn twice within a record.
    `{low}` is less than `{high}`, in the same unit, and so are `{price_low}` and `{price_high}`.
    """

    def __init__(self, rng: random.Random, split: str, used: set[str] | None = None, **fixed: str) -> None:
        super().__init__(fixed)
        self.rng, self.split = rng, split
        self.held_out = int(split == "test")
        self.used = set() if used is None else used

    def spawn(self) -> _Slots:
        """New values for another statement of the same record, about the same company and year."""
        shared = {name: self[name] for name in ("company", "year", "currency")}
        return _Slots(self.rng, self.split, self.used, **shared)

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
                return choice(_POOLS[self.split])
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
            case "year":  # of a report; `later` is still to come
                return str(choice((2022, 2024)) + self.held_out)
            case "later":
                return str(choice((2026, 2028, 2030)) + self.held_out)
            case "strength":
                return choice(tuple(_STRENGTHS[self.held_out]))
            case _ if kind in _NAMES:
                return choice(_NAMES[kind].split("|")[self.held_out :: 2])
            case _:
                return choice(_WORDS[kind].split("|"))


def _polish(text: str) -> str:
    """Start with a capital, and say «an 8», «an 18» where a template has «a {pct}»."""
    text = re.sub(r"\b([Aa]) (?=8|1[18](?![\d,]))", r"\1n ", text)
    return text[0].upper() + text[1:]


# Sentiment and headlines ---------------------------------------------------------------------------
# «main // subordinate» may also be said as «subordinate, main».

_SENTIMENT = {
    "positive": _bank("""
    {good} rose to {high}, from {low} a year earlier.
    {company} narrowed its net loss to {low} from {high} // as restructuring costs came down.
    {company} raised its full-year outlook by {pct} percent // after demand for {product} proved strong.
    {company}'s {good} fell by only {small} percent, a far smaller drop than analysts had feared.
    {company} won an order worth {money} for {product} from a customer in {region}.
    {bad} dropped by {pct} percent // thanks to the savings plan that {company} launched in {year}.
    {company} returned to profit, earning {money} after a loss of {money2} in the comparison period.
    the board of {company} proposes to raise the dividend by {pct} percent.
    {company} beat market expectations with {good} of {money}.
    margins widened by {small} percentage points // because prices rose faster than {company}'s costs.
    {company} repaid {money} of debt ahead of schedule // as cash flow strengthened.
    {good} grew in every region at {company}, led by {region} with a gain of {pct} percent.
    {company} gained {small} percentage points of market share in {product}.
    despite higher wage costs, {company} increased {good} by {pct} percent.
    ~
    {company} posted a {pct} percent increase in {good}, reaching {money}.
    {company}'s loss shrank to {low}, compared with {high} in the same period last year.
    {company} now expects stronger growth than before // and lifts its sales forecast to {money}.
    {good} at {company} declined less than expected, slipping {small} percent.
    {company} signed a contract to supply {product} to {region}, valued at {money}.
    {company} brought {bad} down by {pct} percent, which improved profitability.
    {company} swung to a profit of {money} // after losing {money2} a year ago.
    shareholders of {company} will receive a {pct} percent higher dividend // after earnings beat forecasts.
    """),
    "negative": _bank("""
    {good} fell to {low}, from {high} a year earlier.
    {company}'s net loss widened to {high} from {low} // as restructuring costs went up.
    {company} cut its full-year outlook by {pct} percent // after demand for {product} proved weak.
    {company}'s {good} rose by only {small} percent, a far smaller gain than analysts had hoped for.
    {company} lost an order worth {money} for {product} to a rival in {region}.
    {bad} climbed by {pct} percent // because of delays in the plan that {company} launched in {year}.
    {company} fell into the red, losing {money} after a profit of {money2} in the comparison period.
    the board of {company} proposes to cancel the dividend and to cut {count} jobs.
    {company} missed market expectations with {good} of {money}.
    margins shrank by {small} percentage points // because {company}'s costs rose faster than prices.
    {company} breached a covenant on {money} of debt // as cash flow weakened.
    {good} declined in every region at {company}, with {region} down by {pct} percent.
    {company} lost {small} percentage points of market share in {product}.
    despite higher sales volumes, {company} earned {pct} percent less.
    ~
    {company} posted a {pct} percent decrease in {good}, which came to {money}.
    {company}'s loss grew to {high}, compared with {low} in the same period last year.
    {company} now expects weaker growth than before // and lowers its sales forecast to {money}.
    {good} at {company} increased less than expected, adding {small} percent.
    a customer in {region} cancelled a contract for {product}, costing {company} {money} in sales.
    {bad} at {company} went up by {pct} percent, which hurt profitability.
    {company} swung to a loss of {money} // after earning {money2} a year ago.
    shareholders of {company} will receive a {pct} percent lower dividend // after earnings missed forecasts.
    """),
    "neutral": _bank("""
    {company} will publish its report on growth markets on {date}.
    {company} makes {product} and employs {count} people in {region}.
    {good} for the {quarter} quarter will be reported on {date}, {company} said.
    the annual general meeting of {company} will be held in {city} on {date}.
    the share capital of {company} is divided into {count} thousand shares.
    {company} reported {good} of {money}, unchanged from a year earlier.
    {company} appointed {person} as head of its {product} business from {date}.
    {company} kept its full-year outlook // and will comment on demand for {product} on {date}.
    the contract between {company} and a customer in {region} runs until {later}.
    {company} moved the team that sells {product} to {city} on {date}.
    {company} has linked the price of {product} to an index of rising and falling energy costs since {year}.
    {company} will host a webcast on profit and loss accounting on {date}.
    {person} will speak about the decline of cash payments at an event of {company} in {city}.
    {region} made up {pct} percent of {company}'s net sales, the same share as last year.
    ~
    {company} is to present its growth strategy for {product} in {city} on {date}.
    {company} has {count} employees and sells {product} in {region}.
    {company} left its dividend at the level of last year, {per_share} a share.
    {company} changed the date of its {quarter}-quarter report to {date}.
    an increase in the share capital of {company} was entered in the trade register on {date}.
    {company}'s sales of {money} matched both the forecast and last year's figure.
    {person} becomes chair of the audit committee at {company} on {date}.
    terms of the agreement on {product} between {company} and its partner in {region} were not disclosed.
    """),
}
_HEADLINE = {
    "bullish": _bank("""
    {ticker} - shares jump {pct}% // after guidance raise
    {ticker} upgraded to buy at {broker}, target raised to {price_high} from {price_low}
    {company} tops {quarter}-quarter estimates, shares up {pct}% premarket
    {ticker} hits record high // as orders for {product} surge
    {company} announces {money} share buyback
    {ticker} soars {pct}% // on takeover bid from private equity
    short sellers retreat from {ticker} // after surprise profit of {money}
    {ticker}: bulls in control, breakout above {price}
    {company} wins {money} contract for {product}
    {broker} starts {ticker} at outperform, sees {pct}% upside
    {ticker} bounces {pct}% // as auditors drop going-concern warning
    {company} loss narrower than feared, stock climbs {pct}%
    {ticker} insiders buy {count} thousand shares on the dip
    {company} hikes dividend {pct}%, cites strong cash flow
    ~
    {ticker} rallies {pct}% // as company lifts forecast
    {broker} moves {ticker} up to overweight, price target {price}
    {company} beats on profit and sales, stock gains {pct}% after hours
    buyers pile into {ticker}, now above {price} for the first time this year
    {company} gets takeover offer at a {pct}% premium
    {ticker} - {quarter}-quarter loss smaller than expected, shares rise {pct}%
    {company} to buy back {money} of stock
    long {ticker}: strong demand for {product} points to upside
    """),
    "bearish": _bank("""
    {ticker} - shares slump {pct}% // after guidance cut
    {ticker} downgraded to sell at {broker}, target cut to {price_low} from {price_high}
    {company} misses {quarter}-quarter estimates, shares down {pct}% premarket
    {ticker} hits record low // as orders for {product} dry up
    {company} suspends {money} share buyback
    {ticker} plunges {pct}% // on probe into its accounts
    short sellers circle {ticker} // after surprise loss of {money}
    {ticker}: bears in control, breakdown below {price}
    {company} loses {money} contract for {product}
    {broker} starts {ticker} at underperform, sees {pct}% downside
    {ticker} tumbles {pct}% // as auditors add going-concern warning
    {company} profit weaker than hoped, stock drops {pct}%
    {ticker} insiders sell {count} thousand shares near the top
    {company} cuts dividend {pct}%, cites weak cash flow
    ~
    {ticker} sinks {pct}% // as company lowers forecast
    {broker} moves {ticker} down to underweight, price target {price}
    {company} disappoints on profit and sales, stock slides {pct}% after hours
    sellers dump {ticker}, now below {price} for the first time this year
    {company} takeover falls through, {pct}% premium gone
    {ticker} - {quarter}-quarter loss bigger than expected, shares fall {pct}%
    {company} to issue {money} of new stock to cover losses
    short {ticker}: weak demand for {product} points to downside
    """),
    "neutral": _bank("""
    {ticker} to report {quarter}-quarter results on {date}
    {company} sets annual meeting for {date} in {city}
    {ticker} - options expire on {date}, open interest {count}
    {broker} reiterates hold on {ticker}, target unchanged at {price}
    {company} names {person} as head of investor relations
    {ticker} flat in quiet trading near {price}
    {company} files annual report for {year}
    {ticker} goes ex-dividend on {date}
    watchlist for {date}: {ticker} results, rate decision, jobs data
    {company} to present at growth conference in {city} on {date}
    {ticker} moves listing to {city} exchange, symbol unchanged
    {company} {quarter}-quarter sales of {money} in line with estimates, outlook maintained
    {ticker} unchanged after early rise and fall, volume {count} thousand shares
    what {company} does: {product} for {region}, explained
    ~
    {company} schedules {quarter}-quarter earnings call for {date}
    {broker} keeps {ticker} at neutral, {price} target stands
    {ticker} trades sideways between {price_low} and {price_high}
    {person} joins board of {company}
    {ticker}: what bulls and bears want to know when earnings come on {date}
    {company} changes fiscal year end, next report due {date}
    {ticker} closes at {price}, little changed with the market
    {company} publishes agenda of annual meeting in {city}
    """),
}
# Lead-ins and trailers say nothing of the label; they only vary the text.
_LEADS = {
    "sentiment": _bank(
        "according to a stock exchange release, | as announced this morning, ~ in a statement,"
    ),
    "headline": _bank("BRIEF - | Market wrap: | UPDATE: ~ JUST IN: | Newsflash:"),
}
_TRAILERS = {
    "sentiment": _bank(
        "The shares are listed in {city2}. | The release is dated {date2}. ~ News of {date2}."
    ),
    "headline": _bank("#stocks | (last trade {price2}) | - {city2} ~ #markets | (previous close {price2})"),
}


def _classification(task: str, slots: _Slots, label: str) -> dict[str, Any]:
    """One statement or headline of a label, sometimes with a lead-in or a trailer."""
    phrase = slots.phrase({"sentiment": _SENTIMENT, "headline": _HEADLINE}[task][label])
    main, _, subordinate = phrase.partition(" // ")
    if subordinate and not subordinate.startswith("and ") and slots.rng.random() < 0.4:
        phrase = f"{subordinate.rstrip('.')}, {main}" + ("." if subordinate.endswith(".") else "")
    else:
        phrase = phrase.replace(" // ", " ")
    if task == "headline":
        phrase = phrase[0].upper() + phrase[1:]
    extra = slots.rng.random()
    if extra < 0.2:
        phrase = f"{slots.phrase(_LEADS[task])} {phrase}"
    elif extra < 0.45:
        phrase = f"{phrase} {slots.phrase(_TRAILERS[task])}"
    return {"text": slots.fill(phrase), "target": label}


# Earnings calls ------------------------------------------------------------------------------------

_CALL = {
    "welcome": _bank("""
    Operator: Good morning, and welcome to the {company} earnings call for the {quarter} quarter of {year}.
        All lines are muted, and a question-and-answer session will follow. Please go ahead, {person}.
    Operator: Hello everyone, and thank you for standing by. This is the {quarter}-quarter {year} conference
        call of {company}, and it is being recorded. The floor is yours, {person}.
    ~
    Operator: Ladies and gentlemen, thanks for dialing in to hear {company} discuss the {quarter} quarter of
        {year}. A replay will be on the website tonight. Over to our chief executive, {person}.
    """),
    "business": _bank("""
    {person}: Thank you, and good morning to all of you. Let me begin by thanking our {count} colleagues,
        whose work makes all of this possible. In {region} we opened a new site for {product}, and customers
        tell us that the service has never been better. It is early days, but I am pleased with the start.
    {person}: Thanks, operator. It is good to be back with you, even if the weather in {city} could be kinder.
        We spent much of the quarter on {product}, and the pilot with {count} customers in {region} is on
        track. Our priorities have not changed: serve customers well, keep costs in check, and invest.
    {person}: Good morning. I will keep this short, because I know how many calls you have today. Demand for
        {product} differed a lot from region to region; {region} was busy, others less so. We signed {count}
        new accounts, and our people in {city} moved into their new office without missing a day.
    {person}: Hello, and thanks for your time. Most of you know the story of our {product} by now. What is
        new is {region}, where we trained {count} dealers, and I want to thank the team in {city} for that.
        There is more to do, and we will be open with you about what works and what does not.
    ~
    {person}: I appreciate everyone joining us at this hour. We visited {count} clients since we last spoke,
        many of them in {region}, and the message about {product} was encouraging. Some of you met our team
        at the trade fair in {city}; if you did not, the coffee at the stand was excellent.
    {person}: Welcome. When I took this job I promised fewer slides, so there are none. Our {product} shipped
        to {count} locations, {region} included, and the plant in {city} passed its safety audit. Plenty
        remains on the list, and we will work through it step by step.
    """),
    "handover": _bank("""
    With that, {person2} will take you through the numbers. | Now to the figures, {person2}.
    ~ Our finance chief {person2} has the details.
    """),
    "thanks": _bank("{person2}: Thank you, {person}. | {person2}: Good morning. ~ {person2}: Happy to."),
    "rose": _bank("""
    Revenue rose {percent} to {revenue}, with {region2} our best market.
    We increased revenue by {percent} to {revenue}, helped by {region2}.
    ~ Sales grew {percent}, which takes us to {revenue} of revenue.
    """),
    "fell": _bank("""
    Revenue fell {percent} to {revenue}, with {region2} our weakest market.
    We saw revenue decline by {percent} to {revenue}, mainly because of {region2}.
    ~ Sales went down {percent}, which leaves us with {revenue} of revenue.
    """),
    "per_share": _bank("""
    On an adjusted basis we earned {per_share} per share, compared with {per_share2} a year ago.
    Adjusted earnings per share came in at {per_share}; in the same quarter of last year it was {per_share2}.
    ~ Our adjusted profit per share was {per_share}, against {per_share2} in the year-ago quarter.
    """),
    "cash": _bank("""
    Capital spending was {money}, and we closed the period with {money2} in cash.
    Inventories stood at {money}, and the tax rate was {percent2}.
    ~ Receivables amounted to {money}, while net debt ended at {money2}.
    """),
    "sees_revenue": _bank("""
    For the full year we now expect revenue of {guide_low} to {guide_high}.
    Looking ahead, our full-year guidance is for revenue between {guide_low} and {guide_high}.
    ~ As for the year as a whole, think of revenue somewhere from {guide_low} up to {guide_high}.
    """),
    "sees_per_share": _bank("""
    For the full year we now expect adjusted earnings per share of {guide_low} to {guide_high}.
    Looking ahead, our full-year guidance is for adjusted earnings between {guide_low} and {guide_high} a share.
    ~ As for the year as a whole, adjusted profit per share should land between {guide_low} and {guide_high}.
    """),
    "sees_nothing": _bank("""
    Visibility is limited, so we are not giving guidance for the year today.
    ~ It is too early to put numbers on the rest of the year.
    """),
    "buyback": _bank("""
    The board has also authorized a share repurchase of up to {returned}.
    We will also buy back up to {returned} of our own shares.
    ~ In addition, the directors approved repurchases of our stock of up to {returned}.
    """),
    "dividend": _bank("""
    The board has declared a quarterly dividend of {returned} per share.
    We will also pay a quarterly dividend of {returned} per share.
    ~ In addition, holders will get a quarterly dividend of {returned} a share.
    """),
    "question": _bank("""
    {person3}, {broker}: Good morning, and thanks for taking my question. Could you say a little more about
        pricing for {product}, and whether you see customers waiting before they place orders?
    {person3}, {broker}: Hi there. I would like to understand the mix in {region2}. Is that something we
        should expect to continue, or was it a matter of timing?
    {person3}, {broker}: Thank you. Can you help us think about hiring from here, and about how much of the
        spending on {product} is behind you?
    ~
    {person3}, {broker}: Hello, a quick one from me. How should we model working capital, and are rivals in
        {product} becoming more aggressive?
    {person3}, {broker}: Thanks for squeezing me in. What did you hear from distributors in {region2}, and is
        there anything unusual we ought to be aware of?
    """),
    "answer": _bank("""
    {person}: Sure. Prices have held up, and only about {pct2} percent of contracts come up for renewal this
        year. I would not read too much into a single quarter.
    {person2}: Good question. There was some timing in it, about {small} percentage points, but the trend is
        what we planned for. We will update you next time.
    {person}: We hired {count2} people last year and will hire fewer this year. Most of the heavy lifting is
        done, and the team can now focus on customers.
    ~
    {person2}: I would simply assume that it stays where it is. We carry about {count2} days less of backlog
        in some places, yet nothing that worries us.
    {person}: Nothing out of the ordinary. A bit over {pct2} percent of orders arrived late because of the
        holidays, that is all, and the competitors are who they have always been.
    """),
    "closing": _bank("""
    Operator: There are no further questions. This concludes the call, and you may now disconnect.
    Operator: That was our last question. Thank you all for joining, and have a pleasant day.
    ~ Operator: We have run out of time. Thanks for your interest, and goodbye.
    """),
}
_QUARTERS = {"first": "q1", "second": "q2", "third": "q3", "fourth": "q4"}


def _summarization(slots: _Slots, _label: None) -> dict[str, Any]:
    """A call in which two to four key facts are said, and one line of summary a fact."""
    rng, slots["currency"] = slots.rng, "$"
    revenue = float(slots.number(110, 950))
    slots["revenue"] = f"${revenue:,.0f} million"
    moved = rng.choice(("rose", "rose", "fell"))
    guidance = rng.choice(("sees_revenue", "sees_revenue", "sees_per_share", "sees_nothing"))
    returned = rng.choice(("buyback", "dividend", "", ""))

    low = revenue * rng.uniform(3.9, 4.2) / 1000
    unit = " billion"
    if guidance == "sees_per_share":
        low, unit = float(slots["per_share"].strip("$")) * rng.uniform(3.9, 4.2), ""
    slots["guide_low"], slots["guide_high"] = (
        f"${slots.number(low * more, low * more, 2)}{unit}" for more in (1, 1.06)
    )
    slots["returned"] = (
        f"${slots.number(20, 300)} million" if returned == "buyback" else f"${slots.number(0.1, 0.6, 2)}"
    )

    figures = [moved, "per_share", "cash"]
    rng.shuffle(figures)
    parts = [
        ["welcome"],
        ["business", "handover"],
        ["thanks", *figures, guidance, *filter(None, [returned])],
        ["question"],
        ["answer"],
        ["closing"],
    ]
    text = "\n".join(" ".join(slots.fill(slots.phrase(_CALL[name])) for name in part) for part in parts)
    lines = [
        f"{_QUARTERS[slots['quarter']]} adjusted earnings per share {slots['per_share']}",
        f"revenue {moved} {slots['percent']} to {slots['revenue']}",
    ]
    if guidance != "sees_nothing":
        what = "revenue" if guidance == "sees_revenue" else "adjusted earnings per share"
        lines.append(f"sees full year {what} of {slots['guide_low']} to {slots['guide_high']}")
    if returned == "buyback":
        lines.append(f"to repurchase shares for up to {slots['returned']}")
    elif returned == "dividend":
        lines.append(f"quarterly dividend of {slots['returned']} per share")
    return {"text": text, "target": "\n".join(lines)}


# Questions on annual reports -----------------------------------------------------------------------
# A statement, then its questions, each after the slot that answers it.

_INTRO = _bank("""
    {company} makes {product} and sells them in {region3}. | This is an extract of {company}'s annual report.
    ~ The annual report of {company}, a supplier of {product}, covers fiscal {year}.
    """)
_FACTS: list[tuple[Bank, dict[str, Bank]]] = []
for _line in _lines("""
    Revenue for fiscal {year} was {money}, compared with {money2} in the previous year. |
        In fiscal {year} revenue amounted to {money}; the year before it had been {money2}. ~
        The business generated revenue of {money} in fiscal {year}, after {money2} twelve months earlier.
    money? What was {company}'s revenue in fiscal {year}? | How much revenue was reported for fiscal {year}? ~
        How large was the revenue of {company} in fiscal {year}?
    money2? What was the revenue in the year before fiscal {year}? | How much was the prior-year revenue? ~
        How large was revenue twelve months before fiscal {year}?
    Net income came to {money}, and the effective tax rate was {percent}. |
        The company earned {money} after tax, at an effective tax rate of {percent}. ~
        At an effective tax rate of {percent}, the bottom line was net income of {money}.
    money? What was net income? | How much did {company} earn after tax? ~ How large was {company}'s net income?
    percent? What was the effective tax rate? ~ Which effective tax rate did {company} have?
    At year-end the company had {count} employees and used {count2} contractors. |
        The workforce was made up of {count} employees and {count2} contractors. ~
        Some {count} employees and {count2} contractors worked for the company.
    count? How many employees did {company} have? | What was the number of employees? ~
        How many employees worked for {company}?
    count2? How many contractors did {company} use? ~ How many contractors worked for {company}?
    Capital expenditures of {money} went mainly into a new plant for {product} in {city}. |
        The plant for {product} in {city} took up most of the capital expenditures of {money}. ~
        Most of the {money} of capital expenditures was for the site in {city}, where it makes {product}.
    money? How much were the capital expenditures? | What did {company} spend on capital expenditures? ~
        What was the amount of capital expenditures?
    city? In which city is the new plant? | Where is the plant for {product}? ~
        For the site in which city was most of the capital expenditures?
    The board proposes a dividend of {per_share} per share, payable on {date}. |
        A dividend of {per_share} per share will be paid on {date}, subject to approval. ~
        On {date}, shareholders are to be paid a dividend of {per_share} per share.
    per_share? What dividend per share is proposed? ~ How much dividend per share is to be paid?
    date? When will the dividend be paid? | On which date is the dividend payable? ~
        On what day are shareholders to be paid the dividend?
    Net debt stood at {money}, while cash and cash equivalents amounted to {money2}. |
        The company ended the year with net debt of {money} and cash of {money2}. ~
        Cash reached {money2} at the balance sheet date, and net debt {money}.
    money? What was the net debt? | How much net debt did {company} have? ~ How high was net debt?
    money2? How much cash did {company} have? ~ What amount of cash was there at the end of the year?
    Research and development expenses were {money}, or {percent} of sales. |
        The company spent {money} on research and development, which is {percent} of sales. ~
        Development of new products cost {money}, equal to {percent} of sales.
    money? How much did {company} spend on research and development? ~ What did developing new products cost?
    percent? What share of sales went into research and development? ~
        The development of new products equals what percentage of sales?
    On {date}, the company acquired {target} for {money}. |
        The acquisition of {target} closed on {date} at a price of {money}. ~
        {target} joined the group on {date} and cost {money}.
    target? Which company was acquired? | What is the name of the acquired business? ~ Which business was bought?
    money? How much was paid for {target}? | What was the price of {target}? ~ What did buying {target} cost?
    date? When was {target} acquired? ~ On which day did {target} become part of the group?
    {auditor} was elected as auditor, and {person} chairs the audit committee. |
        The audit committee is chaired by {person}, and the auditor is {auditor}. ~
        Under its chair {person}, the audit committee recommended {auditor} as auditor.
    auditor? Who is the auditor of {company}? | Which firm audits {company}? ~ Which auditor was recommended?
    person? Who chairs the audit committee? ~ Who is the chair of the audit committee?
    {region} accounted for {percent} of sales and {region2} for {percent2}. |
        By region, {percent} of sales came from {region} and {percent2} from {region2}. ~
        Customers in {region} bought {percent} of what was sold, those in {region2} {percent2}.
    percent? What share of sales came from {region}? ~ How much of what was sold did {region} buy?
    percent2? What share of sales came from {region2}? ~ How much of what was sold did {region2} buy?
    The lease of the headquarters in {city} runs until {later}. | The headquarters in {city} is leased until {later}. ~
        The company rents its headquarters in {city}; the contract ends in {later}.
    later? Until which year is the headquarters leased? ~ When does the contract for the headquarters end?
    city? Where is the headquarters of {company}? ~ In what city does {company} rent its headquarters?
    The {product} segment made an operating profit of {money}, whereas {product2} lost {money2}. |
        Operating profit in {product} was {money}; the {product2} segment had a loss of {money2}. ~
        While {product2} ran a deficit of {money2}, {product} contributed a profit of {money}.
    money? What was the operating profit of the {product} segment? ~ How much profit did {product} contribute?
    money2? How large was the loss of the {product2} segment? ~ What was the deficit in {product2}?
    {person} succeeded {person2} as chief executive on {date}. |
        On {date}, {person} took over as chief executive from {person2}. ~
        {person2} stepped down as chief executive on {date} and was replaced by {person}.
    person? Who is the new chief executive of {company}? ~ Who replaced the chief executive who stepped down?
    person2? Who was chief executive of {company} before? ~ Which chief executive stepped down?
    date? When did the chief executive change? ~ On what date did the chief executive step down?
    """):
    if _question := re.match(r"(\w+)\? (.*)", _line):
        _FACTS[-1][1][_question[1]] = _bank(_question[2])
    else:
        _FACTS.append((_bank(_line), {}))


def _qa(slots: _Slots, _label: None) -> dict[str, Any]:
    """An extract of two to four facts, in any order, and a question on one of them."""
    facts = slots.rng.sample(_FACTS, slots.rng.choice((2, 3, 3, 4)))
    asked = slots.rng.randrange(len(facts))
    sentences = [slots.fill(slots.phrase(_INTRO))]
    for i, (statement, questions) in enumerate(facts):
        values = slots.spawn()
        sentences.append(values.fill(slots.phrase(statement)))
        if i == asked:
            slot, phrasings = slots.rng.choice(list(questions.items()))
            question, answer = values.fill(slots.phrase(phrasings)), values[slot]
    return {"text": " ".join(map(_polish, sentences)), "question": _polish(question), "target": answer}


# News and price changes ----------------------------------------------------------------------------
# The expected move in percent, then the news. Lines come in pairs, good and bad news on one topic.

_EVENTS: list[tuple[float, Bank]] = []
for _line in _lines("""
    2.4 {company} {strength} raised its profit forecast for the year. |
        {company} {strength} increased its earnings outlook. ~ {company} lifted its profit guidance {strength}.
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
    1.1 {company} raised its dividend by {pct} percent. | The dividend of {company} goes up by {pct} percent. ~
        {company} is to pay its holders {pct} percent more.
    -1.1 {company} cut its dividend by {pct} percent. | The dividend of {company} goes down by {pct} percent. ~
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
    _EVENTS.append((float(_points), _bank(_phrases)))

_NO_NEWS = _bank("""
    {company} will hold its annual meeting in {city} on {date}. | {company} employs {count} people in {region}.
    {person} of {company} will speak at a conference on {date}. | {company} files its annual report on {date}.
    ~ {company} moves into a new head office on {date}. | {company} sells {product} in {region}.
    """)


def _news(slots: _Slots) -> tuple[str, float]:
    """News of one or two topics, and the move it leads one to expect, in percent.

    An event moves the price by its points, times pct/15 (within 0.3 and 2) where it names an amount or
    times its strength word's factor (0.5, 1, 1.7). Events add up; a line without news adds nothing.
    """
    rng = slots.rng
    bad = rng.randrange(2)
    lines, expected = [], 0.0
    for topic in rng.sample(range(len(_EVENTS) // 2), rng.choice((1, 1, 2))):
        second_disagrees = bool(lines) and rng.random() < 0.3
        points, bank = _EVENTS[2 * topic + (bad ^ second_disagrees)]
        values = slots.spawn()
        lines.append(values.fill(slots.phrase(bank)))
        if "pct" in values:
            points *= min(2.0, max(0.3, float(values["pct"]) / 15))
        elif "strength" in values:
            points *= _STRENGTHS[slots.held_out][values["strength"]]
        expected += points
    if rng.random() < 0.5:
        lines.insert(rng.randrange(len(lines) + 1), slots.fill(slots.phrase(_NO_NEWS)))
    return "\n".join(map(_polish, lines)), expected


def _regression(slots: _Slots, _label: None) -> dict[str, Any]:
    """News, and the move it leads one to expect plus Gaussian noise of `NOISE_SD`: no real market."""
    text, expected = _news(slots)
    return {"text": text, "target": round(expected + slots.rng.gauss(0.0, NOISE_SD), 2)}


# Records -------------------------------------------------------------------------------------------

_MAKERS = {"summarization": _summarization, "qa": _qa, "regression": _regression}
_LABELS = {"sentiment": tuple(_SENTIMENT), "headline": tuple(_HEADLINE)}
_MAX_TRIES = 200


def sample_records(task: str, seed: int = 0, sizes: tuple[int, int, int] | None = None) -> list[Record]:
    """The built-in sample of a task: the same records for the same task, seed and sizes.

    Args:
        task: one of the five built-in tasks.
        seed: another seed gives another sample, from the same phrasings and companies.
        sizes: the number of train, validation and test records (default: `SIZES[task]`).

    Returns:
        Records with `split`, `id`, `source`, `group` (the company) and `target` set; the labels of a
        classification task are balanced within 1 in each split, and no text (with its question) repeats.

    Raises:
        DataError: the task has no sample, or the templates cannot give as many different texts.
    """
    if task not in SIZES:
        raise DataError(
            f"There is no built-in sample for task {task!r}; there is one for: {', '.join(SIZES)}."
        )
    rng = random.Random(f"{task}-{seed}")
    records: list[Record] = []
    seen: set[tuple[str, str | None]] = set()
    for split, size in zip(_POOLS, sizes or SIZES[task], strict=True):
        names = _LABELS.get(task, (None,))
        labels = [names[i % len(names)] for i in range(size)]
        rng.shuffle(labels)
        for label in labels:
            for _ in range(_MAX_TRIES):
                slots = _Slots(rng, split)
                make = _MAKERS.get(task)
                fields = make(slots, None) if make else _classification(task, slots, label)
                fields["text"] = _polish(fields["text"])
                key = (fields["text"], fields.get("question"))
                if key not in seen:
                    break
            else:
                raise DataError(
                    f"The built-in {task} sample has no {size} different {split} texts; ask for fewer."
                )
            seen.add(key)
            name = f"sample-{task}-{len(records):05d}"
            records.append(
                Record(**fields, group=slots["company"], split=split, id=name, source="built-in sample")  # type: ignore[arg-type]
            )
    return records
