"""Salience: what stays of a long text fits, is in order, and is what matters; memory and time are bounded."""

import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.config import Recipe
from fintune.errors import ConfigError
from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate
from fintune.tasks import Record, task_from_dict, task_set
from fintune.text import salience
from fintune.text.salience import Salience, features
from fintune.text.sentences import sentences

METHODS = ("lead", "score", "learnt", "bm25")
TOKENIZER = load_tokenizer("smollm2-135m-instruct")
RESULTS = "Revenue rose 8% to $4.2 billion, and diluted earnings per share were $1.31."
GUIDANCE = "For the full year we expect revenue of $17 billion to $18 billion."
TALK = [
    "Good morning and welcome to the call.",
    "Our people did wonderful work in every store.",
    "Let me say a word on our culture.",
    "The weather was kind to the gardens.",
    "We love to hear what guests tell us.",
    "A new office opened by the river.",
]
WORDS = st.sampled_from(
    ["sales", "rose", "fell", "$3.5 million", "4%", "Guidance", "we", "2021", "naïve", "…", "."]
)
DOCUMENTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=40).map("\n".join)


def tokens(text):
    return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def words(text):
    return len(text.split())


@given(
    DOCUMENTS | st.text(max_size=300),
    st.integers(-1, 60),
    st.sampled_from(METHODS),
    st.sampled_from([tokens, words, len]),
)
def test_the_budget_is_kept_the_order_too_and_nothing_is_made_up_or_repeated(document, budget, method, count):
    chosen = Salience(method).select(document, budget, count)
    assert chosen == Salience(method).select(document, budget, count)
    assert not chosen or count(chosen) <= budget
    whole = list(sentences(document, 1000))
    lines = chosen.split("\n") if chosen else []
    assert len(set(lines)) == len(lines)
    places = [whole.index(line) for line in lines]
    assert sorted(places) == places


@pytest.mark.parametrize("method", ["score", "learnt", "bm25"])
def test_results_and_guidance_stay_where_talk_goes(method):
    document = "\n".join([*TALK[:4], GUIDANCE, *TALK[4:], RESULTS])
    assert Salience(method).select(document, 50, tokens) == f"{GUIDANCE}\n{RESULTS}"


def test_lead_takes_the_first_sentences():
    assert Salience("lead").select("\n".join([*TALK, RESULTS]), 20, tokens) == "\n".join(TALK[:2])


def test_bm25_looks_for_the_question():
    document = "\n".join([*TALK, RESULTS])
    assert Salience("bm25").select(document, 12, tokens, "Which office opened?") == TALK[5]


def test_a_repetition_leaves_its_room_to_another_sentence():
    again = RESULTS.replace("Revenue", "Total revenue")
    other = RESULTS.replace("8%", "9%")
    assert Salience("score").select(f"{RESULTS}\n{other}", 60, tokens) == f"{RESULTS}\n{other}"
    chosen = Salience("score").select("\n".join([RESULTS, RESULTS, again, GUIDANCE]), 60, tokens)
    assert chosen in (f"{RESULTS}\n{GUIDANCE}", f"{again}\n{GUIDANCE}")


def test_learning_finds_what_references_speak_of():
    """Of texts whose references are about the weather alone, the weather is salient, not the results."""
    rng = random.Random(0)
    pairs = []
    for degrees in range(40):
        weather = f"It was {degrees} degrees with rain in the gardens."
        lines = [*TALK[:3], RESULTS, GUIDANCE, weather]
        rng.shuffle(lines)
        pairs.append(("\n".join(lines), f"{degrees} degrees with rain"))
    learnt = Salience("learnt").fit(pairs)
    document = "\n".join([RESULTS, GUIDANCE, "It was 99 degrees with rain in the gardens.", TALK[4]])
    assert learnt.select(document, 15, tokens) == "It was 99 degrees with rain in the gardens."
    assert learnt == Salience("learnt").fit(pairs)
    assert Salience(**learnt.to_dict()) == learnt
    assert Salience("score").fit(pairs) == Salience("score")


def test_a_million_characters_take_linear_time_and_little_memory():
    rng = random.Random(0)
    figures = ["sales", "$3.5", "million", "5%", "quarter", "of", "the", "grew"]
    vocabulary = figures * 50 + [f"word{i}" for i in range(2000)]

    lines = [" ".join(rng.choices(vocabulary, k=14)) + ".\n" for _ in range(10_000)]
    assert len("".join(lines)) > 1_000_000
    seconds = []
    for part in (lines[:2_000], lines):
        begun = time.process_time()
        assert 400 < words(Salience("score").select(part, 500, words)) <= 500
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 5 * 2 * seconds[0]
    tracemalloc.start()
    try:
        Salience("score").select(lines, 500, words)
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()


def test_what_is_known_of_a_sentence_is_its_words_pairs_kinds_of_figures_and_place():
    assert features("In 2021, EPS grew 4.5% (20 basis points) to $1.31 on 2,000 tons.", 4) == [
        "<at 2>", "in", "<year>", "eps", "grew", "<percent>", "to", "<money>", "on", "<number>", "tons",
        "in <year>", "<year> eps", "eps grew", "grew <percent>", "<percent> <percent>", "<percent> to",
        "to <money>", "<money> on", "on <number>", "<number> tons",
    ]  # fmt: skip


# In a prompt ----------------------------------------------------------------------------------------


def summarization(way=None):
    raw = {"data": {"tasks": {"summarization": {"salience": way}}}} if way else {}
    return task_set(Recipe.model_validate(raw))["summarization"]


CALL = Record(
    "\n".join([*TALK * 20, *(f"{line} {i}." for i in range(40) for line in TALK[:2]), RESULTS]),
    "- Sales rose",
)


def test_a_prompt_holds_the_salient_sentences_of_a_text_that_does_not_fit():
    template = PromptTemplate(TOKENIZER, 256)
    task = summarization("score")
    example = template.example(task, CALL)
    assert example.truncated and len(example) <= 256
    assert RESULTS in TOKENIZER.decode(example.prompt_ids)
    again = task_from_dict(task.to_dict())
    assert template.example(again, CALL) == example
    short = Record(RESULTS, "- Sales rose")
    assert template.example(task, short) == template.example(summarization("none"), short)


def test_an_adapter_of_before_keeps_cutting_the_end_off():
    fields = summarization("none").to_dict()
    assert "salience" not in fields
    prompt = TOKENIZER.decode(PromptTemplate(TOKENIZER, 256).example(task_from_dict(fields), CALL).prompt_ids)
    assert TALK[0] in prompt and RESULTS not in prompt


def test_a_recipe_or_an_adapter_with_the_former_graph_reads_as_score_and_says_so_once(caplog):
    salience._say_no_graph.cache_clear()
    trained = summarization("score").to_dict() | {"salience": {"method": "graph"}}
    for task in (summarization("graph"), task_from_dict(trained)):
        assert task.salience == Salience("score")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("salience: graph was removed; score") and "is used instead" in line


@given(DOCUMENTS, st.integers(120, 300), st.sampled_from(METHODS))
def test_a_prompt_of_salient_sentences_is_never_too_long(document, max_length, method):
    record = Record(f"Sales. {document}", "- Sales rose")
    assert len(PromptTemplate(TOKENIZER, max_length).example(summarization(method), record)) <= max_length


def test_a_text_without_a_sentence_that_fits_is_cut():
    example = PromptTemplate(TOKENIZER, 100).example(
        summarization("score"), Record("sales " * 900, "- Sales")
    )
    assert example.truncated and 90 <= len(example) <= 100


def test_summaries_are_learnt_from_by_default_and_labels_cannot_be():
    assert summarization().salience == Salience("learnt")
    tasks = task_set(Recipe())
    assert all(task.salience is None for task in tasks if task.type != "summarization")
    recipe = Recipe.model_validate({"data": {"tasks": {"qa": {"salience": "learnt"}}}})
    with pytest.raises(ConfigError, match=r"data\.tasks\.qa\.salience is learnt, which needs summaries"):
        task_set(recipe)
