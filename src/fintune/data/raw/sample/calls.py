"""Earnings calls, and a line of summary for each fact said in one."""

from __future__ import annotations

from typing import Any

from fintune.data.raw.sample.slots import Slots, bank

_CALL = {
    "welcome": bank("""
    Operator: Good morning, and welcome to the {company} earnings call for the {quarter} quarter of {year}.
        All lines are muted, and a question-and-answer session will follow. Please go ahead, {person}.
    Operator: Hello everyone, and thank you for standing by. This is the {quarter}-quarter {year} conference
        call of {company}, and it is being recorded. The floor is yours, {person}.
    ~
    Operator: Ladies and gentlemen, thanks for dialing in to hear {company} discuss the {quarter} quarter of
        {year}. A replay will be on the website tonight. Over to our chief executive, {person}.
    """),
    "business": bank("""
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
    "handover": bank("""
    With that, {person2} will take you through the numbers. | Now to the figures, {person2}.
    ~ Our finance chief {person2} has the details.
    """),
    "thanks": bank("{person2}: Thank you, {person}. | {person2}: Good morning. ~ {person2}: Happy to."),
    "rose": bank("""
    Revenue rose {percent} to {revenue}, with {region2} our best market.
    We increased revenue by {percent} to {revenue}, helped by {region2}.
    ~ Sales grew {percent}, which takes us to {revenue} of revenue.
    """),
    "fell": bank("""
    Revenue fell {percent} to {revenue}, with {region2} our weakest market.
    We saw revenue decline by {percent} to {revenue}, mainly because of {region2}.
    ~ Sales went down {percent}, which leaves us with {revenue} of revenue.
    """),
    "per_share": bank("""
    On an adjusted basis we earned {per_share} per share, compared with {per_share2} a year ago.
    Adjusted earnings per share came in at {per_share}; in the same quarter of last year it was {per_share2}.
    ~ Our adjusted profit per share was {per_share}, against {per_share2} in the year-ago quarter.
    """),
    "cash": bank("""
    Capital spending was {money}, and we closed the period with {money2} in cash.
    Inventories stood at {money}, and the tax rate was {percent2}.
    ~ Receivables amounted to {money}, while net debt ended at {money2}.
    """),
    "sees_revenue": bank("""
    For the full year we now expect revenue of {guide_low} to {guide_high}.
    Looking ahead, our full-year guidance is for revenue between {guide_low} and {guide_high}.
    ~ As for the year as a whole, think of revenue somewhere from {guide_low} up to {guide_high}.
    """),
    "sees_per_share": bank("""
    For the full year we now expect adjusted earnings per share of {guide_low} to {guide_high}.
    Looking ahead, our full-year guidance is for adjusted earnings between {guide_low} and {guide_high} a
        share.
    ~ As for the year as a whole, adjusted profit per share should land between {guide_low} and {guide_high}.
    """),
    "sees_nothing": bank("""
    Visibility is limited, so we are not giving guidance for the year today.
    ~ It is too early to put numbers on the rest of the year.
    """),
    "buyback": bank("""
    The board has also authorized a share repurchase of up to {returned}.
    We will also buy back up to {returned} of our own shares.
    ~ In addition, the directors approved repurchases of our stock of up to {returned}.
    """),
    "dividend": bank("""
    The board has declared a quarterly dividend of {returned} per share.
    We will also pay a quarterly dividend of {returned} per share.
    ~ In addition, holders will get a quarterly dividend of {returned} a share.
    """),
    "question": bank("""
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
    "answer": bank("""
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
    "closing": bank("""
    Operator: There are no further questions. This concludes the call, and you may now disconnect.
    Operator: That was our last question. Thank you all for joining, and have a pleasant day.
    ~ Operator: We have run out of time. Thanks for your interest, and goodbye.
    """),
}
_QUARTERS = {"first": "q1", "second": "q2", "third": "q3", "fourth": "q4"}


def call(slots: Slots) -> dict[str, Any]:
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
    summary = [
        f"{_QUARTERS[slots['quarter']]} adjusted earnings per share {slots['per_share']}",
        f"revenue {moved} {slots['percent']} to {slots['revenue']}",
    ]
    if guidance != "sees_nothing":
        what = "revenue" if guidance == "sees_revenue" else "adjusted earnings per share"
        summary.append(f"sees full year {what} of {slots['guide_low']} to {slots['guide_high']}")
    if returned == "buyback":
        summary.append(f"to repurchase shares for up to {slots['returned']}")
    elif returned == "dividend":
        summary.append(f"quarterly dividend of {slots['returned']} per share")
    return {"text": text, "target": "\n".join(summary)}
