"""Published figures: each names its source and what keeps it from comparing exactly."""

from fintune.evaluation.published import PUBLISHED, published_for


def test_published_figures_name_their_source_and_what_differs():
    assert all(0 <= row.value <= 1 and row.source and row.differs for row in PUBLISHED)
    rows = published_for(["twitter_sentiment", "sample"])
    assert {row.dataset for row in rows} == {"twitter_financial_news"}
    best = max((row for row in rows if row.metric == "weighted_f1"), key=lambda row: row.value)
    assert best.value == 0.903 and "13B" in best.system
    assert published_for(["sample"]) == []
    assert {(row.system, row.metric, row.value) for row in published_for(["tatqa", "finqa"])} == {
        ("TagOp", "tatqa_exact_match", 0.501), ("TagOp", "tatqa_f1", 0.58), ("people", "tatqa_f1", 0.908),
        ("FinQANet, RoBERTa-large", "execution_accuracy", 0.6124), ("experts", "execution_accuracy", 0.9116),
    }  # fmt: skip
