"""Earnings calls, with one summary line per fact."""

from __future__ import annotations

from typing import Any

from fintune.data.raw.sample.slots import Slots, banks

_CALL = banks("call")
_QUARTERS = {"first": "q1", "second": "q2", "third": "q3", "fourth": "q4"}


def call(slots: Slots) -> dict[str, Any]:
    """A call with two to four key facts, and one summary line per fact."""
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
