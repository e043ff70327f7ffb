"""Tables as lines: every figure beside its header, nothing of the table lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.data.documents.tables import cell_text, table_lines


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        (
            [
                ["", "", "Years ended May 31,", ""],
                ["", "2019", "2018", "2017"],
                ["Sales", "$  4.1", "", "3.9"],
                ["Costs", "", "1", ""],
            ],
            ["Years ended May 31,", "Sales | 2019: $4.1 | 2017: 3.9", "Costs | 2018: 1"],
        ),
        (
            [["", "30 June 2019", "Change"], ["", "€m", "%"], ["Costs:", "", ""], ["Rent", "(12)", "2 %"]],
            ["Costs:", "Rent | 30 June 2019 €m: (12) | Change %: 2%"],
        ),
        (
            [["(in millions)", "", ""], ["As of", "2019", "2018"], ["Cash", "$130", "91"], ["", "7", "8"]],
            ["(in millions)", "As of", "Cash | 2019: $130 | 2018: 91", "2019: 7 | 2018: 8"],
        ),
        (
            [
                ["", "Three months", "", "Nine months", ""],
                ["", "2019", "2018", "2019", "2018"],
                ["Sales", "1", "2", "3", "4"],
            ],
            [
                "Sales | Three months 2019: 1 | Three months 2018: 2 "
                "| Nine months 2019: 3 | Nine months 2018: 4"
            ],
        ),
        ([["Name", "Office"], ["A. Ash", "Chair"]], ["Name", "A. Ash | Office: Chair"]),
        ([["Cash", "5", "6"], ["Debt", "7", "8"]], ["Cash | 5 | 6", "Debt | 7 | 8"]),
    ],
)
def test_a_cell_stands_beside_its_header_and_units_stay(table, lines):
    assert table_lines(table) == lines


def test_the_number_of_headers_may_be_given():
    assert table_lines([["", "5"], ["6", "7"]], headers=1) == ["6 | 5: 7"]


CELLS = st.sampled_from(["", "Sales", "2019", "$ 4.1", "( 12 )", "(in millions)", "7 %", "—", "Year ended"])


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=7)))
def test_no_cell_is_lost(table):
    text = "\n".join(table_lines(table))
    for row in table:
        for cell in map(cell_text, row):
            assert cell in text


@given(st.text("$€( ).,%5x", max_size=12))
def test_a_cell_keeps_its_signs_and_figures(text):
    assert re.sub(r"\s", "", cell_text(text)) == re.sub(r"\s", "", text)
