"""Where an answer comes from: spans are passages of the text, and the right ones."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fintune.inference.grounding import answer_spans, bullet_sources, sentence_spans
from fintune.text.sentences import bullet_lines

CALL = (
    "Operator: Good morning. Revenue came to $519 million, up 20.9 percent. We visited 12 clients.\n"
    "Adjusted profit per share was $2.59. For the year we expect between $10.17 and $10.77 per share."
)


def found(text, spans):
    return [text[start:end] for start, end in spans]


def test_each_bullet_has_the_sentences_of_its_figures():
    lines = bullet_lines(
        "- revenue of $519 million, adjusted eps $2.59\n- outlook $10.17 to $10.77\n-\n- we like cats"
    )
    assert lines == [
        "revenue of $519 million, adjusted eps $2.59",
        "outlook $10.17 to $10.77",
        "we like cats",
    ]
    first, second, third = (found(CALL, spans) for spans in bullet_sources(CALL, lines))
    assert first == ["Revenue came to $519 million, up 20.9 percent.", "Adjusted profit per share was $2.59."]
    assert second == ["For the year we expect between $10.17 and $10.77 per share."]
    assert third == []


def test_a_figure_is_found_by_its_value_however_it_is_written():
    text = "We sold more. Revenue was 1,200 million. Costs were flat."
    assert found(text, bullet_sources(text, ["sales 1.2 billion"])[0]) == ["Revenue was 1,200 million."]


def test_an_answer_is_found_whatever_its_case_and_spacing_with_its_currency():
    assert found(CALL, answer_spans(CALL, "$519  MILLION.")) == ["$519 million"]
    assert found(CALL, answer_spans(CALL, "20.9 percent")) == ["20.9 percent"]


def test_of_a_rephrased_answer_the_runs_it_shares_with_the_text_are_found():
    assert found(CALL, answer_spans(CALL, "It was $2.59 in all")) == ["was $2.59"]
    assert answer_spans(CALL, "nothing of the kind") == []
    assert answer_spans(CALL, " - ") == [] and answer_spans("", "12") == []


@given(st.text(alphabet="ab .!?1\n$%", max_size=60), st.text(alphabet="ab .1\n-", max_size=20))
def test_spans_are_in_order_and_within_the_text(text, answer):
    for spans in (
        sentence_spans(text),
        answer_spans(text, answer),
        *bullet_sources(text, bullet_lines(answer)),
    ):
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
