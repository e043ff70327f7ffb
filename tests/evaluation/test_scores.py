"""The further metrics: against scikit-learn, SciPy and cases worked by hand."""

import math

import pytest

from fintune.evaluation.scores import Scored
from fintune.metrics.reliability import aurc, expected_calibration_error
from fintune.metrics.strategy import strategy
from fintune.tasks import Prediction, Record, known_tasks

TASKS = known_tasks()


def _metrics(name, targets, predictions, **fields):
    records = [
        Record(
            text=fields.get("texts", ["t"] * len(targets))[i],
            target=t,
            time=fields.get("times", [""] * 99)[i],
        )
        for i, t in enumerate(targets)
    ]
    scored = Scored.of(TASKS[name], records, predictions)
    return scored.metrics(), scored.details()


def _label(label, p):
    rest = (1 - p) / 2
    shares = {name: p if name == label else rest for name in ("positive", "negative", "neutral")}
    return Prediction(label, shares)


def test_labels_get_mcc_calibration_and_figures_by_class():
    from sklearn.metrics import classification_report, matthews_corrcoef

    targets = ["positive", "positive", "negative", "neutral", "neutral", "negative"]
    answers = ["positive", "neutral", "negative", "neutral", "neutral", "positive"]
    sure = [0.9, 0.5, 0.8, 0.7, 0.6, 0.4]
    predictions = [_label(label, p) for label, p in zip(answers, sure, strict=True)]
    metrics, details = _metrics("sentiment", targets, predictions)
    right = [t == a for t, a in zip(targets, answers, strict=True)]
    assert metrics["mcc"] == pytest.approx(matthews_corrcoef(targets, answers))
    assert metrics["ece"] == expected_calibration_error(sure, right)
    assert metrics["aurc"] == aurc(sure, right) and metrics["missing_rate"] == 0
    assert metrics["brier"] == pytest.approx(
        sum((1 - p) ** 2 + (1 - p) ** 2 / 2 if ok else p**2 + ((1 + p) / 2) ** 2 + ((1 - p) / 2) ** 2
            for p, ok in zip(sure, right, strict=True)) / 6
    )  # fmt: skip
    report = classification_report(targets, answers, output_dict=True, zero_division=0)
    for label, row in details["per_class"].items():
        assert row["precision"] == report[label]["precision"] and row["recall"] == report[label]["recall"]
        assert row["f1"] == pytest.approx(report[label]["f1-score"]) and row["n"] == report[label]["support"]


def test_answers_without_probabilities_have_no_calibration_and_strange_ones_are_missing():
    metrics, details = _metrics(
        "sentiment", ["positive", "negative"], [Prediction("positive"), Prediction("?")]
    )
    assert metrics["missing_rate"] == 0.5 and math.isnan(metrics["ece"]) and math.isnan(metrics["brier"])
    assert "reliability" not in details


def test_numbers_get_rank_direction_and_interval():
    from scipy.stats import spearmanr

    targets = [1.0, -2.0, 0.0, 3.0]
    predictions = [Prediction(v, interval=(-1.0, 1.0)) for v in (0.5, 0.1, -0.2, 0.0)]
    metrics, _ = _metrics("regression", targets, predictions)
    assert metrics["spearman"] == pytest.approx(spearmanr(targets, [0.5, 0.1, -0.2, 0.0]).statistic)
    assert metrics["directional_accuracy"] == pytest.approx(
        1 / 3
    )  # no move is left out, a forecast of 0 is wrong
    assert metrics["interval_coverage"] == 0.5 and metrics["mean_interval_width"] == 2


def test_one_forecast_for_all_has_no_rank_correlation():
    metrics, _ = _metrics("regression", [1.0, 2.0], [Prediction(1.5)] * 2)
    assert math.isnan(metrics["spearman"]) and math.isnan(metrics["interval_coverage"])


def test_summaries_are_faithful_by_the_share_of_their_numbers():
    metrics, _ = _metrics(
        "summarization",
        ["- sales rose 5%", "- loss"],
        [Prediction("- sales rose 5% to $2 billion and 3 million"), Prediction("- loss of 7")],
        texts=["Sales rose 5 percent to $2,000 million.", "We lost 7."],
    )
    assert metrics["number_faithfulness"] == 3 / 4  # over all numbers, not the mean of texts


def test_qa_is_judged_by_value_where_the_target_is_a_number():
    metrics, _ = _metrics(
        "qa", ["$1.2 billion", "the board", "4"], [Prediction(a) for a in ("1,200 million", "the board", "")]
    )
    assert metrics["numeric_exact_match"] == 0.5 and metrics["missing_rate"] == pytest.approx(1 / 3)
    assert "tatqa_f1" not in metrics


def test_a_perfect_forecast_earns_half_the_spread_less_two_costs_a_day():
    dates = ["2015-10-01"] * 3 + ["2015-10-02"] * 3 + ["2015-10-05"] * 2
    moves = [1.0, 0.0, -2.0, 3.0, 0.0, -1.0, 9.0, -9.0]
    got = strategy(dates, moves, moves, cost_bps=10)
    assert got["gross"] == pytest.approx([1.5, 3.5, 3.5])  # the third day has two stocks: no trade
    assert got["net"] == pytest.approx([1.3, 3.1, 3.1])
    assert got["days"] == 2 and got["label"] == "illustration, not advice"
    assert strategy(dates, moves, [0.0] * 8) == {} and strategy([""] * 8, moves, moves) == {}
    assert strategy(dates, moves, [-m for m in moves])["gross"][-1] == pytest.approx(-3.5)
