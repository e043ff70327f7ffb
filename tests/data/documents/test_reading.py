"""Documents of every kind into passages, and what is refused."""

import time

import pytest

from fintune.data.documents.passages import Block, passages
from fintune.data.documents.reading import documents, parse_document
from fintune.errors import DataError
from tests.data.documents.pdf_files import pdf

FILING = """<?xml version='1.0' encoding='ASCII'?>
<html xmlns:ix="http://www.xbrl.org/2013/inlineXBRL">
<head><title>acme</title><style>p {color: red}</style></head>
<body><div style="display:none"><ix:header><ix:hidden>HIDDEN FACT 4711</ix:hidden></ix:header></div>
<script>var secret = "SCRIPT";</script>
<table><tr><td>Item 1.</td><td><a href="#a">Business</a></td><td>1</td></tr>
<tr><td>Item 1A.</td><td>Risk Factors</td><td>2</td></tr>
<tr><td>Item 2.</td><td>Properties</td><td>2</td></tr>
<tr><td>Item 7.</td><td>Discussion</td><td>3</td></tr>
<tr><td>Item 8.</td><td>Statements</td><td>3</td></tr></table>
<p>Table of Contents</p><p>17</p><hr style="page-break-after:always"/>
<p>Table of Contents</p>
<div><span style="font-weight:700">Item 1. Business</span></div>
<div><b>Our Company</b></div>
<p>Acme makes <ix:nonNumeric name="x">anvils &amp; rockets</ix:nonNumeric>.</p><p>18</p>
<hr style="page-break-after:always"/><p>Table of Contents</p>
<div style="font-weight:bold">Item 7. Discussion</div>
<table>
<tr><td></td><td></td><td colspan="5">Year Ended</td></tr>
<tr><td></td><td></td><td colspan="2">Dec 31, 2025</td><td></td><td colspan="2">Dec 31, 2024</td></tr>
<tr><td>Revenue</td><td></td><td>$</td><td><ix:nonFraction>1,250</ix:nonFraction></td><td></td><td>$</td><td>900</td></tr>
<tr><td>Net loss</td><td></td><td colspan="2">(13</td><td>)</td><td colspan="2">7</td></tr>
<tr><td>Margin</td><td></td><td colspan="2">5.1</td><td>%</td><td colspan="2">4.0</td></tr>
</table><p>19</p></body></html>"""


def read(text, name="acme.html"):
    return parse_document(text.encode() if isinstance(text, str) else text, name)


def whole(document):
    return "\n".join(passage.text for passage in document.passages)


def test_a_filing_gives_its_items_printed_pages_and_tables_with_every_cell_beside_its_header():
    document = read(FILING)
    business, discussion = document.passages
    assert business.section == "Item 1. Business › Our Company" and business.page == "18"
    assert business.text.endswith("Acme makes anvils & rockets.")
    assert discussion.section == "Item 7. Discussion" and discussion.page == "19"
    assert discussion.text.splitlines()[1:] == [
        "Year Ended",
        "Revenue | Dec 31, 2025: $1,250 | Dec 31, 2024: $900",
        "Net loss | Dec 31, 2025: (13) | Dec 31, 2024: 7",
        "Margin | Dec 31, 2025: 5.1% | Dec 31, 2024: 4.0",
    ]


@pytest.mark.parametrize("hidden", ["HIDDEN", "SCRIPT", "color", "Table of Contents", "Properties"])
def test_what_a_reader_does_not_see_and_what_every_page_repeats_is_no_text(hidden):
    assert hidden not in whole(read(FILING))


def test_text_after_something_hidden_stays_and_a_table_of_one_column_is_text():
    document = read(
        "<html><body>a<script>x</script>b<p hidden>c</p>d<table><tr><td>• one</td></tr></table></body>"
    )
    assert whole(document).split() == ["ab", "d", "•", "one"]


def test_a_cell_that_spans_rows_stands_in_each_of_them():
    html = """<html><table><tr><th>Region</th><th>Year</th><th>Sales</th></tr><tr><td rowspan="2">North</td>
    <td>2025</td><td>10</td></tr><tr><td>2024</td><td>8</td></tr></table></html>"""
    assert "North | Year: 2024 | Sales: 8" in whole(read(html))


def test_a_long_table_keeps_its_captions_and_the_last_title_in_every_passage():
    rows = [f"Line {i} of the report | 2025: {i},000 | 2024: {i},100" for i in range(40)]
    block = Block("\n".join(["Expenses", *rows]), captions=("(in millions)",))
    found = passages([block], "x", paged=False, words=60)
    assert len(found) > 3 and all(p.text.startswith("(in millions)\nExpenses\n") for p in found)
    assert sum(p.text.count(" of the report") for p in found) == 40


def test_no_passage_ends_in_a_title_and_no_word_is_lost():
    blocks = [
        b for i in range(30) for b in (Block(f"Title number {i}", level=2), Block("word " * (5 * i % 70)))
    ]
    blocks = [block for block in blocks if block.text.strip()]
    found = passages(blocks, "x", paged=False)
    assert sum(p.words for p in found) == sum(len(b.text.split()) for b in blocks)
    assert not any(p.text.splitlines()[-1].startswith("Title") for p in found[:-1])
    assert max(p.words for p in found) <= 80


def test_a_whole_submission_is_its_documents_of_text_and_says_what_was_not_read():
    text = "".join(
        f"<DOCUMENT>\n<TYPE>{kind}\n<SEQUENCE>1\n<FILENAME>{name}\n<TEXT>\n{body}\n</TEXT>\n</DOCUMENT>\n"
        for kind, name, body in [
            ("8-K", "a.htm", "<html><p>The board met.</p></html>"),
            ("EX-99.1", "b.htm", "<html><p>Sales rose.</p></html>"),
            ("GRAPHIC", "c.jpg", "begin 644 c.jpg"),
        ]
    )
    document = read(f"<SEC-DOCUMENT>x\n{text}", "0001.txt")
    assert [(p.document, p.text) for p in document.passages] == [
        ("0001.txt 8-K", "The board met."),
        ("0001.txt EX-99.1", "Sales rose."),
    ]
    assert document.left_out.startswith("1 of the filing's 3 files")


def test_markdown_and_text_have_titles_tables_and_pages():
    document = read(
        "# Results\n\nIntro.\n\n## Sales\n\n| | 2025 | 2024 |\n|---|--:|--:|\n| Sales | 5 | 4 |\n", "a.md"
    )
    assert document.passages[-1].text.endswith("Sales | 2025: 5 | 2024: 4")
    paged = read("ITEM 1. BUSINESS\nWe sell\nanvils.\n\n1\n\fItem 7. Discussion\nSales rose.\n\n2\n", "a.txt")
    assert [(p.section, p.page, p.text.splitlines()[-1]) for p in paged.passages] == [
        ("ITEM 1. BUSINESS", "1", "anvils."),
        ("Item 7. Discussion", "2", "Sales rose."),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Ertrag 5 € – gut".encode("cp1252"), "Ertrag 5 € – gut"),
        ("Ertrag 5 € – gut".encode("utf-16"), "Ertrag 5 € – gut"),
        ('<html><meta charset="iso-8859-5"><p>Прибыль</p></html>'.encode("iso-8859-5"), "Прибыль"),
        (b"\xef\xbb\xbfcaf\xc3\xa9 \x07bell", "café bell"),
    ],
)
def test_encodings_are_found(content, expected):
    assert whole(read(content)) == expected


PAGE_1 = [
    (72, 740, "ACME CORPORATION"),
    (72, 700, "Revenue grew because the company sold more anvils in the north and because prices rose"),
    (72, 688, "in the second half of the year."),
    (300, 650, "2025"),
    (400, 650, "2024"),
    (72, 636, "Revenue"),
    (300, 636, "$ 120.5"),
    (400, 636, "$ 100.0"),
    (72, 622, "Net income"),
    (300, 622, "12.3"),
    (400, 622, "(4.5)"),
    (300, 40, "Page 1 of 3"),
]


def test_a_pdf_gives_paragraphs_tables_by_their_columns_and_the_files_own_pages():
    rest = [
        [(72, 740, "ACME CORPORATION"), (72, 700, f"Text {n}."), (300, 40, f"Page {n} of 3")] for n in (2, 3)
    ]
    document = parse_document(pdf(PAGE_1, *rest), "acme.pdf")
    assert document.passages[0].page == "1"
    assert whole(document).splitlines() == [
        " ".join(text for _, y, text in PAGE_1 if y in (700, 688)),
        "Revenue | 2025: $120.5 | 2024: $100.0",
        "Net income | 2025: 12.3 | 2024: (4.5)",
        "Text 2.",
        "Text 3.",
    ]


def test_words_that_a_pdf_has_in_pieces_or_divided_at_a_lines_end_are_read_whole():
    """As browsers print them: kerned letters are objects of their own, whose boxes overlap."""
    page = [
        (72, 700, "V"), (78, 700, "ictor"), (103, 700, "Ashdown speaks of the quarter and of the com-"),
        (72, 688, "pany, whose year-"), (155, 688, "end was good."),
    ]  # fmt: skip
    assert whole(parse_document(pdf(page), "call.pdf")) == (
        "Victor Ashdown speaks of the quarter and of the com-pany, whose year-end was good."
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pdf([]), "has no text, only pictures of it: run OCR"),
        (pdf(PAGE_1)[:200], "cannot be read as a PDF"),
        (
            pdf(
                PAGE_1,
                trailer=b"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O(%s)/U(%s)>>/ID[(a)(b)]"
                % (b"o" * 32, b"u" * 32),
            ),
            "has a password",
        ),
        (b"PK\x03\x04\0\0", "is neither text nor a PDF"),
        (b"  \n", "holds no text"),
        (b"<html><script>x</script></html>", "holds no text"),
        (b"x" * 1001, "is larger than 0 MB"),
        (b"<html>" + b"<div>" * 5000 + b"x", "cannot be read: its elements are nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(content, why):
    with pytest.raises(DataError, match=f"^acme {why}"):
        parse_document(content, "acme", limit=1000 if content.startswith(b"xxx") else 10**6)


@pytest.mark.parametrize(
    "content",
    [
        "<html><table><tr>" + "<td>1" * 30_000,
        "<html><table>" + "<tr>" + "<td rowspan=99 colspan=99>1" * 50 + "<tr><td>1" * 500,
        "<html><td>" + "(" * 500_000,
        "<html><table><tr><td>a<td>" + "($" * 100_000 + "<tr><td>a<td>1</table>",
        "<DOCUMENT>\n<TYPE>\n" * 40_000,
        "<!-- -->" * 50_000,
        "# " + " #" * 200_000,
        "\n" * 100_000 + "x",
        "| " * 200_000,
        "<html>" + "<table><tr><td>" * 600 + "x",
        "<!DOCTYPE html [<!ENTITY a 'bbbbbbbbbb'><!ENTITY b '&a;&a;&a;&a;&a;&a;'>]><html><p>&b;</p></html>",
    ],
    ids=range(11),
)
def test_hostile_files_cost_seconds_at_most(content):
    begun = time.process_time()
    try:
        document = read(content)
        assert all(len(passage.text) < 2000 or passage.words < 100 for passage in document.passages)
        assert "bbbbbbbbbb" not in whole(document)
    except DataError:
        pass
    assert time.process_time() - begun < 20  # quadratic work on these takes many minutes


def test_a_folder_gives_its_documents_by_name(tmp_path):
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.png").write_bytes(b"x")
    assert [whole(d) for d in documents(tmp_path)] == ["one", "two"]
    with pytest.raises(DataError, match=r"does not exist"):
        documents(tmp_path / "none")
