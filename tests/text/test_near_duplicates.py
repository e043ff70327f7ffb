"""Near duplicates against brute force: every figure is a Jaccard index, and hardly one is missed."""

import functools
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.errors import ConfigError
from fintune.text import near_duplicates
from fintune.text.near_duplicates import Index, pairs, shingles, similarity, words

WORDS = "profit sales rose fell quarter net loss bank oil cut raises outlook beat 3.1 12 2014 mn EUR".split()
texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


@functools.cache
def grams(text):
    found = text.casefold().split()
    triples = {tuple(found[i : i + 3]) for i in range(len(found) - 2)}
    return triples or ({tuple(found)} if found else set())


def jaccard(a, b):
    """The definition, on sets of word triples (or of the whole text where it is shorter)."""
    a, b = grams(a), grams(b)
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


@given(texts, texts)
def test_similarity_is_the_jaccard_index_of_word_triples(a, b):
    assert similarity(shingles(a), shingles(b)) == jaccard(a, b)


@given(st.lists(texts, max_size=12), texts)
def test_a_match_is_the_most_similar_text_and_an_exact_one_is_never_missed(held_out, text):
    index = Index(threshold=0.5)
    for number, other in enumerate(held_out):
        index.add(number, other)
    match = index.query(text)
    similarities = [jaccard(text, other) for other in held_out]
    if match is None:
        assert 1.0 not in similarities
    else:
        assert match.similarity == similarities[match.id] >= 0.5
    if 1.0 in similarities:
        assert match == (similarities.index(1.0), 1.0)


def edited(rng, text):
    """The text with a few words dropped, added at an end or changed."""
    found = text.split()
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(3)
        if kind == 0:
            del found[rng.randrange(len(found))]
        elif kind == 1:
            found.insert(rng.choice((0, len(found))), rng.choice(WORDS))
        else:
            found[rng.randrange(len(found))] = rng.choice(WORDS)
    return " ".join(found)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_of_pairs_above_the_threshold_at_most_one_in_two_hundred_is_missed(threshold):
    rng = random.Random(0)
    originals = [" ".join(rng.choices(WORDS, k=rng.randint(8, 60))) for _ in range(400)]
    index = Index(threshold)
    for number, text in enumerate(originals):
        index.add(number, text)
    wanted = found = 0
    for text in (edited(rng, original) for original in originals):
        best = max(jaccard(text, original) for original in originals)
        match = index.query(text)
        if best >= threshold:
            wanted += 1
            found += match is not None and match.similarity == best
        else:
            assert match is None
    assert wanted > 50
    assert found >= wanted * 0.995


def test_bands_keep_the_promise_on_missed_pairs():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        count, rows = near_duplicates.bands(threshold)
        assert (1 - threshold**rows) ** count < near_duplicates.MISSED
        assert count * rows <= near_duplicates.PERMUTATIONS


def test_case_spacing_punctuation_and_width_do_not_count_but_numbers_do():
    assert (
        words("EUR13.1mn,  Profit-UP!")
        == words("eur 13.1 mn profit up")
        == ["eur", "13.1", "mn", "profit", "up"]
    )
    index = Index()
    index.add("a", "Net sales rose to EUR 13.1 mn from EUR 8.7 mn in 2007.")
    assert index.query("net sales rose to EUR13.1mn from EUR8.7mn (in 2007)").similarity == 1.0
    assert index.query("Net sales rose to EUR 14.2 mn from EUR 9.8 mn in 2008.") is None


def test_links_do_not_count_but_a_link_alone_is_a_text():
    index = Index()
    index.add("news", "Acme raises its outlook for the year [link]")
    index.add("link", "https://t.co/abc")
    assert index.query("https://t.co/Xy12 Acme raises its outlook for the year") == ("news", 1.0)
    assert index.query("https://t.co/abc") == ("link", 1.0)
    assert index.query("https://t.co/other") is None


def test_texts_without_words_or_spaces_are_compared_too():
    index = Index()
    for id, text in (
        ("chinese", "公司第三季度净利润同比增长百分之二十创历史新高"),
        ("emoji", "🚀🚀"),
        ("empty", "  "),
    ):
        index.add(id, text)
    assert len(index) == 2
    assert index.query("公司第三季度净利润同比增长百分之二十创历史新高。").id == "chinese"
    assert index.query("公司第三季度净利润同比增长百分之二十创历史最高").id == "chinese"
    assert index.query("🚀 🚀").id == "emoji"
    assert index.query("") is None


def test_pairs_names_each_text_that_repeats_an_earlier_one():
    base = "The company said its operating profit rose in the third quarter of the year on higher sales"
    items = [("a", base), ("b", "Something else entirely, about oil"), ("c", f"{base} abroad"), ("d", base)]
    found = list(pairs(items))
    assert [(pair.id, pair.earlier) for pair in found] == [("c", "a"), ("d", "a")]
    assert found[0].similarity == jaccard(base, f"{base} abroad")
    assert found[1].similarity == 1.0


def test_answers_do_not_depend_on_the_order_of_queries():
    rng = random.Random(1)
    originals = [" ".join(rng.choices(WORDS, k=12)) for _ in range(200)]
    index = Index(0.5)
    for number, text in enumerate(originals):
        index.add(number, text)
    queries = [edited(rng, text) for text in originals]
    forward = list(map(index.query, queries))
    assert list(map(index.query, queries[::-1]))[::-1] == forward
    assert len({id(match) for match in itertools.compress(forward, forward)}) > 20


@pytest.mark.parametrize("threshold", [0.0, 1.01, float("nan")])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(ConfigError, match=r"threshold must be from 0\.3 to 1"):
        Index(threshold)


def test_what_many_texts_share_does_not_make_them_near_duplicates_and_a_repetition_is_still_one():
    rng = random.Random(3)
    instruction = " ".join(rng.sample([f"word{i}" for i in range(60)], 40))
    texts = [f"{instruction}\n\n{' '.join(rng.choices(WORDS, k=9))} by unit {i}" for i in range(400)]
    common = near_duplicates.frame(texts)
    index, plain = Index(frame=common), Index()
    for i, text in enumerate(texts[:200]):
        index.add(i, text)
        plain.add(i, text)
    assert sum(plain.query(text) is not None for text in texts[200:]) > 150  # for their instruction alone
    assert not any(index.query(text) for text in texts[200:])
    assert index.query(texts[7] + " !") == (7, 1.0)
    other = " ".join(f"other{i}" for i in range(40)) + "\n\n" + texts[7].split("\n\n")[1]
    assert index.query(other) is None  # the same input under another instruction
    assert [pair.id for pair in pairs(enumerate([*texts, texts[7]]), frame=common)] == [400]
