"""Predictions in, HTML out: the parts of the page that Gradio has no component for.

Everything a model or a user wrote is escaped here. Knows nothing of Gradio or of the engine.
"""

from __future__ import annotations

from html import escape
from itertools import accumulate

from fintune.tasks.base import Prediction, RegressionTask

CSS = """
.gradio-container { width: 100%; max-width: 1100px !important; min-width: 0 !important;
  margin: 0 auto !important; }
.gradio-container .main, .gradio-container .wrap, .gradio-container .contain {
  min-width: 0; max-width: 100%; }
body.dark { --color-accent: var(--primary-400) !important; }
.block.hide-container .html-container { padding: 0 !important; }
.ft-header h1 { font-size: 1.6rem; font-weight: 700; margin: 0; }
.ft-header p, .ft-about { margin: .25rem 0 0; }
.ft-header code { overflow-wrap: anywhere; }
.ft-notice { margin: .25rem 0; padding: .6rem .8rem; border-left: 4px solid #d97706;
  border-radius: var(--radius-md); background: color-mix(in srgb, #f59e0b 14%, transparent); }
.ft-failure { border-color: #dc2626; background: color-mix(in srgb, #ef4444 14%, transparent); }
.ft-card { min-height: 6rem; padding: 1.5rem 0 .2rem; overflow-wrap: anywhere; }
.ft-card p { margin: 0 0 .4rem; }
.ft-card ul { margin: 0; padding-left: 1.2rem; list-style: disc; }
.ft-card li { margin: .25rem 0; }
.ft-empty { color: var(--body-text-color-subdued); }
.ft-number { font-size: 2rem; font-weight: 700; line-height: 1.2; }
.ft-spread { display: flex; align-items: flex-end; gap: 2px; height: 9rem; margin-top: 1rem; }
.ft-spread div { flex: 1 1 0; min-width: 0; height: 100%; display: flex; flex-direction: column;
  justify-content: flex-end; }
.ft-spread i { display: block; min-height: 2px; border-radius: 3px 3px 0 0;
  background: var(--color-accent); }
.ft-spread span { height: 1.4rem; line-height: 1.4rem; align-self: center; font-size: .7rem;
  white-space: nowrap; color: var(--body-text-color-subdued); }
@media (max-width: 640px) {
  .gradio-container .main { padding: 12px !important; }
  .tab-container button { padding: 0 5px !important; font-size: 13px !important; }
  .ft-spread.ft-many div:nth-child(even) span { visibility: hidden; }
}
"""


def notice(sentence: str) -> str:
    """A sentence the reader should not miss."""
    return f'<div class="ft-notice" role="note">{escape(sentence)}</div>'


def failure(sentence: str) -> str:
    """Why there is no answer."""
    return f'<div class="ft-notice ft-failure" role="alert">{escape(sentence)}</div>'


def empty(sentence: str) -> str:
    """What stands where an answer will be."""
    return f'<div class="ft-card ft-empty">{escape(sentence)}</div>'


def text_answer(answer: str) -> str:
    """A text as it was generated; lines that begin with a dash become bullet points."""
    parts: list[str] = []
    for line in filter(None, (line.strip() for line in answer.splitlines())):
        bullet = line[:1] in "-•*" and line.strip("-•* ")
        if not bullet:
            parts.append(f"<p>{escape(line)}</p>")
        elif parts and parts[-1].endswith("</ul>"):
            parts[-1] = f"{parts[-1].removesuffix('</ul>')}<li>{escape(line.lstrip('-•* '))}</li></ul>"
        else:
            parts.append(f"<ul><li>{escape(line.lstrip('-•* '))}</li></ul>")
    if not parts:
        return empty("The model gave an empty answer.")
    return f'<div class="ft-card ft-answer">{"".join(parts)}</div>'


def number(value: float, unit: str) -> str:
    """A predicted number with its unit; a percentage has its sign, as a change."""
    return f"{value:+.2f} %" if unit == "%" else f"{value:.2f} {unit}".rstrip()


def number_answer(task: RegressionTask, prediction: Prediction) -> str:
    """The expected number, a sentence about it, and a bar for the probability of each level."""
    value = number(float(prediction.value), task.unit)
    what = "change in price on the next trading day" if task.name == "regression" else "value"
    html = f'<div class="ft-number">{escape(value)}</div><p>Expected {what}: {escape(value)}.'
    if not prediction.probabilities:
        return f'<div class="ft-card ft-answer">{html}</p></div>'
    levels, shares = list(prediction.probabilities), list(prediction.probabilities.values())
    low, high = (f"{levels[i]} {task.unit}".rstrip() for i in central_range(shares))
    where = f"on {low}" if low == high else f"between {low} and {high}"
    html += (
        f" The model puts at least 80 % of its probability {escape(where)}; "
        f"the bars show the probability of each of its {len(levels)} levels.</p>"
    )
    top = max(shares)
    bars = "".join(
        f'<div title="{escape(level)}: {share:.1%}"><i style="height:{100 * share / top:.1f}%"></i>'
        f"<span>{escape(level)}</span></div>"
        for level, share in zip(levels, shares, strict=True)
    )
    many = " ft-many" if len(levels) > 7 else ""
    label = escape(", ".join(f"{level}: {share:.0%}" for level, share in prediction.probabilities.items()))
    spread = f'<div class="ft-spread{many}" role="img" aria-label="{label}">{bars}</div>'
    return f'<div class="ft-card ft-answer">{html}{spread}</div>'


def central_range(shares: list[float]) -> tuple[int, int]:
    """The first and last index of the middle of a distribution: at most a tenth is left out at either end."""
    total = list(accumulate(shares))
    low = next(i for i, mass in enumerate(total) if mass >= 0.1 * total[-1])
    high = next(i for i, mass in enumerate(total) if mass >= 0.9 * total[-1])
    return low, high
