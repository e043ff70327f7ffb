"""Numbers in texts: read as a person reads them, matched by value, and looked up in their source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.text.numbers import (
    figures,
    numeric_match,
    parse_figure,
    supported_numbers,
    tatqa_scores,
    unsupported_figures,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1.2 billion", 1.2e9),
        ("1,200 million", 1.2e9),
        ("$1.2bn.", 1.2e9),
        ("(12.6) million", -12.6e6),
        ("$(0.05)", -0.05),
        ("-$5.3", -5.3),
        ("−22.22%", -0.2222),
        ("(5%)", -0.05),
        ("5.5 percent", 0.055),
        ("1,496.5", 1496.5),
        ("12 million dollars", 12e6),
        (".5", 0.5),
        ("€ 3k", 3000),
    ],
)
def test_a_number_is_read_with_its_sign_scale_and_percent(text, value):
    assert parse_figure(text).value == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "q2", "12 apples", "2018 and 2019", "1.2.3", "COVID19", "net sales"])
def test_what_is_more_or_less_than_a_number_is_none(text):
    assert parse_figure(text) is None


def test_a_range_shares_the_unit_of_its_end_and_a_hyphen_is_no_minus():
    found = figures("Q2 sales of $1.2 to $1.4 billion, up 5-7%, in 2019-2020; EPS $0.32 - $0.36.")
    values = [round(f.value, 6) for f in found]
    assert values == [1.2e9, 1.4e9, 0.05, 0.07, 2019, 2020, 0.32, 0.36]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Net sales rose in 2009 to EUR 13.1 mn", [2009, 13.1e6]),
        ("between 2019 and 5.2%", [2019, 0.052]),
        ("from $2000 to $2100 million", [2e9, 2.1e9]),
        ("a Form 10-K, an 8-K and a 5-million share", [10, 8, 5e6]),
    ],
)
def test_a_year_takes_no_unit_and_a_form_is_no_thousands(text, values):
    assert [f.value for f in figures(text)] == pytest.approx(values)


@pytest.mark.parametrize("text", ["a{}b", "({}b", "5{}b", "{}5{}", "5 ({}"])
def test_runs_of_spaces_cost_no_time_to_speak_of(text):
    assert len(figures(text.replace("{}", " " * 20_000))) == text.count(
        "5"
    )  # hours, if each were tried with each


@given(st.integers(-(10**9), 10**9))
def test_thousands_separators_change_nothing(value):
    assert parse_figure(f"{value:,}").value == parse_figure(str(value)).value == value


@pytest.mark.parametrize(
    ("target", "prediction", "expected"),
    [
        ("$1.2 billion", "1,200 million", 1),
        ("12%", "0.12", 1),
        ("12%", "12", 0),  # the percent is missing
        ("4.1 million", "4.14 million", 1),  # within half a unit of the last place
        ("4.1 million", "4.16 million", 0),
        ("4.1 million", "4.1 thousand", 0),
        ("(12)", "-12", 1),
        ("12", "-12", 0),
        ("0.14464", "14.464%", 1),
        ("0.14464", "14.5%", 0),
        ("$12 million", "Net sales were $12 million.", 1),
        ("$12 million", "between 12 million and 13 million", 0),  # one number, not two
        ("12", "none", 0),
    ],
)
def test_a_number_answers_by_value_with_its_scale(target, prediction, expected):
    assert numeric_match(target, prediction) == expected


def test_a_target_that_is_no_number_is_not_judged_as_one():
    assert numeric_match("the board", "12") is None


@pytest.mark.parametrize(
    ("target", "prediction", "kind", "exact", "f1"),
    [
        ("-12.6 million", "(12.6) million", "arithmetic", 1, 1),
        ("-12.6 million", "-12.604 million", "arithmetic", 1, 1),  # two decimals count
        ("-12.6 million", "-12.6", "arithmetic", 0, 0),  # the scale counts
        ("-22.22%", "-0.2222", "arithmetic", 1, 1),  # a fraction may stand for a percentage
        ("-22.22%", "-22.22", "arithmetic", 0, 0),
        ("3", "three", "count", 0, 0),
        ("2019; 2018", "2018; 2019", "multi-span", 1, 1),  # spans in any order
        ("2019; 2018", "2019", "multi-span", 0, 2 / 3),
        ("the fixed-price type", "Fixed-price type", "span", 1, 1),
        ("$1,496.5 million", "1496.5 million", "span", 1, 1),
        ("annual basis", "on an annual basis", "span", 0, 0.8),
        ("annual basis", "", "span", 0, 0),
    ],
)
def test_tat_qas_rules(target, prediction, kind, exact, f1):
    assert tatqa_scores(target, prediction, kind) == pytest.approx((exact, f1))


SOURCE = "Sales were $1,200 million, up 5% to 7%. We lost (12) cents on each of two brands in 2021."


@pytest.mark.parametrize(
    ("summary", "counts"),
    [
        ("- sales of $1.2 billion\n- loss of 12 cents a share", (2, 2)),
        ("- sales up 5 to 7 percent in 2021", (3, 3)),
        ("- 2 brands", (1, 1)),  # spelt out in the source
        ("- sales of $1.25 billion, up 5%", (1, 2)),
        ("- q2 sales rose, the 25th time, 2.5x", (0, 0)),  # no number at all
    ],
)
def test_numbers_of_a_summary_are_looked_up_in_the_source(summary, counts):
    assert supported_numbers(summary, SOURCE) == counts


def test_unsupported_numbers_are_named():
    assert [f.value for f in unsupported_figures("up 6% to $1.2bn", SOURCE)] == [0.06]


@given(
    st.lists(
        st.sampled_from(["$3.5 million", "12%", "(7)", "2021", "rose", "to", "and", "1.2bn"]), min_size=1
    )
)
def test_a_text_supports_every_number_of_itself(words):
    text = " ".join(words)
    found, total = supported_numbers(text, text)
    assert found == total
