"""Figures that others published on the same data, kept apart from what was measured here.

They are copied from the named sources, not reproduced; `differs` says how each differs from our measurement.
"""

from __future__ import annotations

from collections.abc import Iterable

from fintune.evaluation.results import Published

_FINGPT = "FinGPT's README"
_FINLORA = "FinLoRA's README"
_SAME = "the same test examples as ours; one run, no interval"
_SPLIT = {
    "financial_phrasebank": _SAME,
    "twitter_financial_news": _SAME,
    "fiqa_sentiment": "FiQA as three labels, on a split of theirs; ours keeps the official test",
}
_MIXED = "235 sentences that mix the challenge's train and test; ours keeps the official test"
_DATASETS = ("financial_phrasebank", "fiqa_sentiment", "twitter_financial_news")

_F1 = {
    "FinGPT v3.3, Llama-2-13B LoRA": (0.882, 0.874, 0.903),
    "FinGPT v3.1, ChatGLM2-6B LoRA": (0.855, 0.850, 0.875),
    "FinGPT, Llama-2 QLoRA": (0.777, 0.752, 0.828),
    "GPT-4, zero-shot": (0.833, 0.630, 0.808),
    "FinBERT": (0.880, 0.596, 0.733),
    "BloombergGPT 50B": (0.511, 0.751, None),
}
"""Weighted F1 in FinGPT's table."""
_ACCURACY_AND_F1 = {
    "FinLoRA, Llama-3.1-8B LoRA": ((0.8564, 0.922), (0.8128, 0.884), (0.8802, 0.932)),
    "FinLoRA, Llama-3.1-8B QLoRA": ((0.8416, 0.909), (0.7830, 0.874), (0.8384, 0.910)),
    "FinLoRA, Llama-3.1-8B DoRA": ((0.8193, 0.901), (0.7872, 0.874), (0.5909, 0.702)),
    "GPT-4o, zero-shot": ((0.8113, 0.818), (0.7234, 0.773), (0.7332, 0.740)),
}
"""Accuracy and F1 in FinLoRA's table; F1 exceeds accuracy, so it is not a plain weighted F1."""


_SAME_EXAMPLES = {"twitter_sentiment": "twitter_financial_news"}
"""A dataset with other label names → the dataset with the same examples."""


def _row(dataset: str, system: str, metric: str, value: float, source: str, differs: str) -> Published:
    return Published(
        dataset=dataset, system=system, metric=metric, value=value, source=source, differs=differs
    )


def _table() -> list[Published]:
    rows = []
    for system, values in _F1.items():
        for dataset, value in zip(_DATASETS, values, strict=True):
            if value is not None:
                rows.append(_row(dataset, system, "weighted_f1", value, _FINGPT, _SPLIT[dataset]))
    for system, pairs in _ACCURACY_AND_F1.items():
        for dataset, (accuracy, f1) in zip(_DATASETS, pairs, strict=True):
            differs = _MIXED if dataset == "fiqa_sentiment" else _SAME
            rows.append(_row(dataset, system, "accuracy", accuracy, _FINLORA, differs))
            undefined = f"{differs}; the source does not say how F1 is averaged"
            rows.append(_row(dataset, system, "f1_as_published", f1, _FINLORA, undefined))
    paper = "FinBERT (Araci, 2019), table of FiQA results"
    split = "ten-fold cross-validation on the training data, not the official test"
    rows.append(_row("fiqa_sa", "FinBERT", "mse", 0.07, paper, split))
    rows.append(_row("fiqa_sa", "FinBERT", "r2", 0.55, paper, split))
    paper = "TAT-QA (Zhu et al., 2021)"
    split = (
        "the official test part, the scale predicted separately; ours reads it from the answer, and tests "
        "a part of the development part if nothing else is available"
    )
    rows.append(_row("tatqa", "TagOp", "tatqa_exact_match", 0.501, paper, split))
    rows.append(_row("tatqa", "TagOp", "tatqa_f1", 0.580, paper, split))
    rows.append(_row("tatqa", "people", "tatqa_f1", 0.908, paper, "people, on the official test part"))
    paper = "FinQA (Chen et al., 2021)"
    measure = "execution accuracy: a program is written and computed; ours writes the number itself"
    rows.append(_row("finqa", "FinQANet, RoBERTa-large", "execution_accuracy", 0.6124, paper, measure))
    rows.append(_row("finqa", "experts", "execution_accuracy", 0.9116, paper, "experts, by the same measure"))
    return rows


PUBLISHED = tuple(_table())


def published_for(datasets: Iterable[str]) -> list[Published]:
    """The published figures on these datasets; [] if there are none."""
    wanted = {_SAME_EXAMPLES.get(dataset, dataset) for dataset in datasets}
    return [row for row in PUBLISHED if row.dataset in wanted]
