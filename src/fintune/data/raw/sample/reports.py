"""Extracts of annual reports, and questions on them."""

from __future__ import annotations

import re
from typing import Any

from fintune.data.raw.sample.slots import Bank, Slots, bank, lines_of, phrases, polish

_INTRO = bank(phrases()["report"]["intro"])
# A statement, then its questions, each after the slot that answers it.
_FACTS: list[tuple[Bank, dict[str, Bank]]] = []
for _line in lines_of(phrases()["report"]["facts"]):
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
