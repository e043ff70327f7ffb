"""Foreign text in Markdown stays text, whatever renders it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fintune.text.markdown import cell

HOSTILE = [
    "![x](https://evil.example/pixel.png)",
    "[click](javascript:alert(1))",
    "![x][y]",
    "<img src=x onerror=alert(1)>",
    "<https://evil.example>",
    "<script>alert(1)</script>",
    "\\| new | cells |",
    "\\![x](y)",
    "`code` | **bold**",
    "a\n\n[x]: https://evil.example",
    "&lt;img src=x&gt;",
]


def rendered(text):
    """The tags of a table with a foreign cell, and the cell's text."""
    reader = MarkdownIt("gfm-like", {"linkify": False})
    page = reader.render(f"| a | b |\n|---|---|\n| {cell(text)} | end |\n\n- {cell(text)}\n")
    return page


def tags(page):
    return [part.split(">")[0] for part in page.split("<")[1:]]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_foreign_becomes_markup(text):
    assert tags(rendered(text)) == tags(rendered("plain"))


@given(st.text(alphabet="\\\\`*[]()!|<>&;:#/ahtpw.\\n ", max_size=40))
def test_no_text_at_all_does(text):
    found = {tag.strip("/ ").split()[0] for tag in tags(rendered(f"x{text}"))}
    assert not found & {"a", "img", "script", "strong", "em", "code"}
    assert rendered(f"x{text}").count("<td>") == 2


def test_an_address_is_no_link_and_reads_as_one():
    written = cell("see https://evil.example and WWW.evil.example")
    assert "://" not in written and "WWW." not in written
    assert "https://evil.example and WWW.evil.example" in rendered(
        "see https://evil.example and WWW.evil.example"
    )
