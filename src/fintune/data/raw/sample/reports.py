"""Extracts of annual reports, and questions on them."""

from __future__ import annotations

import re
from typing import Any

from fintune.data.raw.sample.slots import Bank, Slots, bank, lines_of, polish

# A statement, then its questions, each after the slot that answers it.

_INTRO = bank("""
    {company} makes {product} and sells them in {region3}. | This is an extract of {company}'s annual report.
    ~ The annual report of {company}, a supplier of {product}, covers fiscal {year}.
    """)
_FACTS: list[tuple[Bank, dict[str, Bank]]] = []
for _line in lines_of("""
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
    money? What was net income? | How much did {company} earn after tax? ~ How large was {company}'s net
        income?
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
    target? Which company was acquired? | What is the name of the acquired business? ~ Which business was
        bought?
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
    The lease of the headquarters in {city} runs until {later}. | The headquarters in {city} is leased
        until {later}. ~
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
        _FACTS[-1][1][_question[1]] = bank(_question[2])
    else:
        _FACTS.append((bank(_line), {}))


def report(slots: Slots) -> dict[str, Any]:
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
    return {"text": " ".join(map(polish, sentences)), "question": polish(question), "target": answer}
