"""Tables of text: what is between cells, and no quotation mark that swallows rows."""

import pytest

from fintune.data.raw.readers import csv_rows
from fintune.errors import DataError

ROWS = [f"Acme {i} rose,up" if i % 2 else f"Globex {i} fell,down" for i in range(40)]


def read(lines, delimiter=","):
    quotes = csv_rows.Quotes()
    content = [line + "\n" for line in ["text,target", *lines]]
    return [row for _, row in csv_rows.read(content, delimiter, "f.csv", quotes=quotes)][1:], quotes


def with_lines(**changes):
    lines = list(ROWS)
    for place, line in changes.items():
        lines[int(place[1:])] = line
    return lines


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (with_lines(_10='"Strong buy on Acme,up'), [12]),  # never closed
        (with_lines(_10='"Strong buy,up', _30='"Hold,down'), [12, 32]),  # closed by the next stray mark
        (with_lines(_10='"Strong buy,up', _30='Hold 5",down'), [12]),  # closed where a cell could end
        (with_lines(_10='"Strong buy,up', _11='Hold 5",down'), [12]),
        (with_lines(_0='"Strong buy,up', _30='Hold 5",down'), [2]),  # before any label is known
        (with_lines(_39='"Strong buy,up'), [41]),  # in the last row
        (with_lines(_10='"Strong" buy,up'), [12]),  # text after a closing mark
    ],
)
def test_a_mark_that_is_not_closed_swallows_no_row_and_is_counted(lines, bad):
    rows, quotes = read(lines)
    assert len(rows) == len(ROWS) and quotes.literal == bad
    assert rows[bad[0] - 2][1] in ("up", "down")
    assert [row for row in rows if row[0].startswith('"')] == [rows[line - 2] for line in bad]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (with_lines(_10='"Strong buy, says Acme,up'), 12),  # three cells by itself
        (with_lines(_10='"Strong, buy,up', _12='Hold, 5",down'), 12),  # closed where a cell could end
        (with_lines(_10='"He said "buy", and left",up'), 12),
        (with_lines(_10='up,"one', _11='and "two" more', _12='three"'), 12),
        (with_lines(_10='"one', _11='two","up'), 13),  # the second cell opens on the next line
    ],
)
def test_a_row_that_cannot_be_told_is_refused_by_the_line_of_the_mark(lines, line):
    with pytest.raises(DataError, match=rf"^f\.csv, line {line}: a quotation mark"):
        read(lines)


LONG = ["Sales rose, a lot", "and costs fell, too", "", 'He said ""fine"", and left', "1,250 units, or so"]


@pytest.mark.parametrize("lines", [LONG, LONG[:2], ["Sales rose.", "Costs, too"], ["x"] * 500, ["a, b"] * 20])
def test_a_cell_of_several_lines_is_one_cell(lines):
    text = "\n".join(lines)
    rows, quotes = read([*ROWS, *f'"{text}",up'.split("\n"), *ROWS])
    assert len(rows) == 2 * len(ROWS) + 1 and not quotes.literal
    assert rows[len(ROWS)] == [text.replace('""', '"'), "up"]
    assert quotes.longest == (len(lines), len(ROWS) + 2)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["text,target", "a,up"], (",", 0)),
        (["text|target", "Acme, Globex, and so on|up"], ("|", 0)),
        (["sep=;", "text;target", "a;up"], (";", 1)),
        (["sep=,", "text;target,n"], (",", 1)),
        (['"sales, net";"costs, net"', "1;2"], (";", 0)),
        (['"text | long",target', "a|b,up", "c,down"], (",", 0)),
        (["text", "Acme, Globex, and so on"], (",", 0)),
        (["text\ttarget", "Sales, costs; and | so on\tup"], ("\t", 0)),
    ],
)
def test_what_is_between_cells_is_found(lines, found):
    assert csv_rows.layout([line + "\n" for line in lines], ".csv") == found
