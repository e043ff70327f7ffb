"""Sentiment statements and headlines, by label."""

from __future__ import annotations

from typing import Any

from fintune.data.raw.sample.slots import Slots, bank

# «main // subordinate» may also be said as «subordinate, main».

SENTIMENT = {
    "positive": bank("""
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
    "negative": bank("""
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
    "neutral": bank("""
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
HEADLINE = {
    "bullish": bank("""
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
    "bearish": bank("""
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
    "neutral": bank("""
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
    "sentiment": bank(
        "according to a stock exchange release, | as announced this morning, ~ in a statement,"
    ),
    "headline": bank("BRIEF - | Market wrap: | UPDATE: ~ JUST IN: | Newsflash:"),
}
_TRAILERS = {
    "sentiment": bank("The shares are listed in {city2}. | The release is dated {date2}. ~ News of {date2}."),
    "headline": bank("#stocks | (last trade {price2}) | - {city2} ~ #markets | (previous close {price2})"),
}


def statement(task: str, slots: Slots, label: str) -> dict[str, Any]:
    """One statement or headline of a label, sometimes with a lead-in or a trailer."""
    phrase = slots.phrase({"sentiment": SENTIMENT, "headline": HEADLINE}[task][label])
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
