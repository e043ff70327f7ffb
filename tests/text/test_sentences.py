"""Sentences: where a text is cut, and that no part of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.text.sentences import bullet_lines, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He said “no”. She left.", ["He said “no”.", "She left."]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("The U.S. Treasury and J. Smith agreed. 2024 was good.",
         ["The U.S. Treasury and J. Smith agreed.", "2024 was good."]),
        ("up 3.5 percent. but lower case goes on", ["up 3.5 percent. but lower case goes on"]),
        ("one line\n\nanother line", ["one line", "another line"]),
        ("  \n ", []),
    ],
)  # fmt: skip
def test_text_is_split_into_sentences(text, expected):
    assert list(sentences(text)) == expected


def test_a_bullet_is_taken_off_and_the_minus_of_a_figure_is_none():
    text = " - revenue up\n•  costs flat\n* * star\n-5 % growth\n- -3 % in Asia\n\n-\n**bold** words\na - b"
    assert bullet_lines(text) == [
        "revenue up",
        "costs flat",
        "* star",
        "-5 % growth",
        "-3 % in Asia",
        "**bold** words",
        "a - b",
    ]


@given(st.text(alphabet="ab .\nAB!", max_size=200), st.integers(1, 30))
def test_no_sentence_is_too_long_and_no_character_but_space_is_lost(text, longest):
    found = list(sentences(text, longest))
    assert all(0 < len(sentence) <= longest and sentence == sentence.strip() for sentence in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_a_text_in_parts_is_split_as_the_parts_are():
    assert list(sentences(["One. Two.\n", "Three.\n"])) == ["One.", "Two.", "Three."]
