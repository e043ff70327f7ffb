"""Real filings: an annual report with inline XBRL, an 8-K and an earnings release."""

import os
import re
import sys
from pathlib import Path

import pytest

from fintune.data.documents.reading import documents
from fintune.inference.documents import FOUND
from fintune.text.ranking import Ranking

FOLDER = Path(os.environ.get("FINTUNE_DATA_DIR", "")) / "filings"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not os.environ.get("FINTUNE_DATA_DIR") or not FOLDER.is_dir(),
    reason="FINTUNE_DATA_DIR is not set, or holds no filings",
)


@pytest.fixture(scope="module")
def questions():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import filing_questions
    finally:
        sys.path.pop(0)
    return filing_questions


@pytest.fixture(scope="module")
def filings(questions):
    return {name: documents(FOLDER / name)[0] for name in questions.ANSWERED}


def test_an_annual_report_has_its_items_printed_pages_and_linear_tables(filings, questions):
    report = filings[questions.NVDA]
    items = dict.fromkeys(
        re.match(r"Item \d+[A-C]?", p.section)[0] for p in report.passages if "Item" in p.section
    )
    assert list(items)[:4] == ["Item 1", "Item 1A", "Item 1B", "Item 1C"] and list(items)[-1] == "Item 16"
    row = "Revenue | Jan 26, 2025: $130,497 | Jan 28, 2024: $60,922 | Change: Up 114%"
    (summary,) = [p for p in report.passages if row in p.text]
    assert (summary.section[:7], summary.page) == ("Item 7.", "38")
    text = "\n".join(p.text for p in report.passages)
    assert "us-gaap" not in text and "font-family" not in text and 50_000 < report.words < 65_000


def test_an_8_k_and_its_exhibit_have_their_tables(filings, questions):
    votes = "\n".join(p.text for p in filings[questions.ORACLE].passages)
    assert "Safra A. Catz | Votes For: 2,241,298,667 | Votes Withheld: 81,013,676" in votes
    release = "\n".join(p.text for p in filings[questions.BUCKLE].passages)
    assert "NET INCOME | Thirteen Weeks Ended November 2, 2024: $44,172" in release


def test_questions_find_their_passages_and_strange_ones_are_told_apart(filings, questions):
    right = wrong = refused = 0
    for name, document in filings.items():
        ranking = Ranking([f"{p.section}\n{p.text}" for p in document.passages])
        for question, pattern in questions.ANSWERED[name]:
            scores = ranking.scores(question)
            best = sorted(range(len(scores)), key=lambda i: -scores[i])[:10]
            right += any(re.search(pattern, document.passages[i].text) for i in best)
            wrong += max(ranking.coverage(question)) < FOUND
        refused += sum(max(ranking.coverage(q)) < FOUND for q in questions.UNANSWERED[name])
    assert right >= 31 and wrong == 0 and refused >= 17  # of 39, 39 and 20
