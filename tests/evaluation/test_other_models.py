"""Classifiers of the hub on our label tasks: their labels become ours, or the reason is said."""

import pytest

from fintune.errors import ConfigError
from fintune.evaluation.other_models import OtherModel, label_columns
from fintune.tasks import Record, known_tasks
from fintune.tasks.types import ClassificationTask

TASKS = known_tasks()


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
    words = "rose grew fell shrank met said".split()
    records = [Record(text=f"the company {words[i % 6]} sales in {words[i % 5]}") for i in range(20)]
    records.append(Record(text="sales " * 50))  # longer than its positions
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


def test_a_control_token_in_a_text_is_text_to_another_model(classifier):
    tokenizer = OtherModel.load(str(classifier)).tokenizer
    assert tokenizer.pad_token_id not in tokenizer("sales [PAD] rose")["input_ids"]


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
