"""Token F1 and ROUGE: as published for ASCII, and by the words of Unicode for other scripts."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from fintune.text.answers import ROUGE, answer_scores, normalize_answer, rouge

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)


@given(ASCII, ASCII)
def test_ascii_text_is_scored_as_published(target, answer):
    published = RougeScorer(list(ROUGE), use_stemmer=True).score(target, answer)
    assert rouge(target, answer) == {name: published[name].fmeasure for name in ROUGE}
    bare = "".join(c for c in target.lower() if c not in string.punctuation)
    assert normalize_answer(target) == " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@pytest.mark.parametrize(
    ("target", "answer", "shared", "f1", "rouge1"),
    [
        ("净利润增长5%", "收入下降了5%", 1, 2 * 1 / 12, 2 * 1 / 12),
        ("กำไรเพิ่ม 5", "ขาดทุน 5", 1, None, None),
        ("прибыль выросла на 5%", "выручка упала на 5%", 2, 0.5, 0.5),
        ("Müllers Gewinn für 2025", "Müllers Verlust für 2025", 3, 0.75, 0.75),
        ("मुनाफा 5 प्रतिशत बढ़ा", "घाटा 5 प्रतिशत घटा", 2, 0.5, 0.5),
        ("ارتفعت المبيعات 5%", "انخفضت المبيعات 5%", 2, 2 / 3, 2 / 3),
        ("トヨタの利益は５％増", "トヨタの利益は5%増", 9, 1.0, 1.0),
    ],
)
def test_other_scripts_share_what_they_share(target, answer, shared, f1, rouge1):
    exact, score = answer_scores(target, answer)
    found = rouge(target, answer)["rouge1"]
    assert exact == float(f1 == 1.0)
    if f1 is None:
        assert 0 < score < 0.4 and 0 < found < 0.4
    else:
        assert (score, found) == (pytest.approx(f1), pytest.approx(rouge1))
    assert answer_scores(target, target) == (1.0, 1.0) and rouge(target, target)["rougeL"] == 1.0


def test_punctuation_of_any_script_is_none_of_an_answer():
    assert answer_scores("«Газпром»", "Газпром。") == (1.0, 1.0)
    assert answer_scores("利润，增长。", "利润增长") == (1.0, 1.0)
    assert answer_scores("the company’s sales", "company's sales") == (1.0, 1.0)
