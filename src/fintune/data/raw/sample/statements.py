"""Sentiment statements and headlines, by label."""

from __future__ import annotations

from typing import Any

from fintune.data.raw.sample.slots import Slots, banks

# «main // subordinate» may also be written as «subordinate, main».
SENTIMENT, HEADLINE = banks("sentiment"), banks("headline")
# Lead-ins and trailers do not depend on the label; they only vary the text.
_LEADS, _TRAILERS = banks("leads"), banks("trailers")


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
