"""Which texts are about a question, and whether any is."""

from fintune.text.ranking import Ranking, bm25, content_words

TEXTS = [
    "Revenues of the Gaming segment were $11.3 billion.",
    "The company employs 36,000 people in 38 countries.",
    "Repurchased shares are held in treasury.",
]


def best(question):
    scores = Ranking(TEXTS).scores(question)
    return max(range(len(TEXTS)), key=scores.__getitem__)


def test_a_question_finds_its_text_in_other_forms_of_its_words():
    assert best("What was gaming revenue?") == 0
    assert best("How many people are employed?") == 1
    assert best("Did it repurchase any share?") == 2


def test_words_that_say_nothing_are_no_words_of_a_question():
    assert content_words("What does the company's report state about how much it has?") == ["compani"]


def test_coverage_is_one_where_all_is_found_and_nothing_where_nothing_is():
    ranking = Ranking(TEXTS)
    assert max(ranking.coverage("What was Gaming revenue?")) == 1.0
    assert ranking.coverage("Which vaccines were approved?") == [0.0, 0.0, 0.0]
    rare, common = Ranking(["alpha common", "common", "common"]), "alpha common"
    assert rare.coverage(common)[0] == 1.0 and rare.coverage(common)[1] < 0.5
    assert ranking.coverage("What is the?") == [0.0, 0.0, 0.0]


def test_a_query_without_a_shared_word_scores_nothing():
    assert bm25([["a"], ["b"]], ["c"]) == [0.0, 0.0]
