"""The compare tab: the untuned base's and the adapter's answers to one text, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fintune.demo import render, texts
from fintune.demo.task_tab import MODEL, ask, unanswerable
from fintune.inference.engine import Engine
from fintune.tasks.base import Prediction, Record, Task


def add(gr: Any, engine: Engine, examples: Mapping[str, Sequence[Record]]) -> None:
    """Fill the open tab; without an adapter there is nothing to compare.

    Args:
        examples: task → example texts.
    """
    if not engine.adapter:
        sentence = "There is no adapter to compare the base model with: train one, and start the demo again."
        gr.HTML(render.missing(sentence, "fintune train"))
        return
    tasks = {texts.title(task): task for task in engine.tasks if not task.obstacle()}
    first = next(iter(tasks))
    gr.HTML('<p class="ft-about">What did the training change? One text, asked of both.</p>')
    choice = gr.Radio(list(tasks), value=first, label="Task", elem_id="compare-task")
    text = gr.Textbox(
        label="Text",
        lines=4,
        max_lines=12,
        placeholder="Paste a text here, or take an example.",
        elem_id="compare-text",
    )
    question = gr.Textbox(
        label="Question", visible="question" in tasks[first].inputs, elem_id="compare-question"
    )
    with gr.Row():
        example = gr.Button("Next example", elem_id="compare-example", min_width=120)
        button = gr.Button("Compare", variant="primary", elem_id="compare-run", min_width=120)
    note = gr.HTML(visible=False, elem_id="compare-note")
    empty = render.empty("The answer will appear here.")
    with gr.Row():
        answers = []
        for key, label in (("base", "Untuned base"), ("tuned", "With the adapter")):
            with gr.Column(min_width=300):
                place = {"label": label, "show_label": True, "container": True}
                answers.append(gr.HTML(empty, elem_id=f"compare-{key}", **place))
    outputs = [*answers, note]
    shown = gr.State(-1)
    private: dict[str, Any] = {"api_visibility": "private"}

    def compare(name: str, text: str, question: str) -> Iterator[tuple[Any, Any, Any]]:
        """Both answers, one after the other as each is ready."""
        task = tasks[name]
        record = Record(text, question=question if "question" in task.inputs else None)
        if wanted := unanswerable(text, record.question):
            yield empty, empty, gr.update(value=render.notice(wanted), visible=True)
            return
        try:
            without, _ = ask(engine, task, record, use_adapter=False)
            left = render.answer(task, record, without)
            yield left, render.empty("The adapter is answering …"), gr.update(visible=False)
            with_it, remark = ask(engine, task, record)
        except Exception as error:
            why = render.unanswered(error, "The comparison failed")
            yield empty, empty, gr.update(value=why, visible=True)
            return
        verdict = " ".join(filter(None, (difference(task, without, with_it), remark)))
        right = render.answer(task, record, with_it).replace('id="ft-', 'id="ft-tuned-')
        right = right.replace('href="#ft-', 'href="#ft-tuned-')  # the left side has the same ids
        yield left, right, gr.update(value=render.remark(verdict), visible=True)

    def next_example(name: str, index: int) -> tuple[Any, ...]:
        records = examples[tasks[name].name]
        if not records:
            said = render.notice("This task has no examples: paste a text of your own.")
            return "", "", -1, empty, empty, gr.update(value=said, visible=True)
        index = (index + 1) % len(records)
        record = records[index]
        return record.text, record.question or "", index, empty, empty, gr.update(visible=False)

    def choose(name: str) -> tuple[Any, ...]:
        asked = gr.update(value="", visible="question" in tasks[name].inputs)
        return "", asked, -1, empty, empty, gr.update(visible=False)

    choice.input(choose, choice, [text, question, shown, *outputs], queue=False, **private)
    example.click(next_example, [choice, shown], [text, question, shown, *outputs], queue=False, **private)
    gr.on(
        [button.click, question.submit],
        compare,
        [choice, text, question],
        outputs,
        show_progress_on=answers,
        scroll_to_output=True,
        **private,
        **MODEL,
    )


def difference(task: Task, base: Prediction, tuned: Prediction) -> str:
    """The difference in one sentence."""
    if task.numeric:
        change = float(tuned.value) - float(base.value)
        unit = "percentage points" if getattr(task, "unit", "") == "%" else getattr(task, "unit", "")
        if not round(change, 2):
            return "Both gave the same number."
        than = "higher" if change > 0 else "lower"
        return " ".join(f"The adapter's number is {abs(change):.2f} {unit} {than} than the base's.".split())
    if str(base.value).strip() != str(tuned.value).strip():
        if not tuned.probabilities:
            return "Their texts differ."
        return f"They disagree: {base.value} without the adapter, {tuned.value} with it."
    if not (base.probabilities and tuned.probabilities):
        return "Both gave the same text."
    was, now = base.confidence, tuned.confidence
    if was is None or now is None:
        return f"They agree: {tuned.value}."
    return f"They agree: {tuned.value}. Its probability was {was:.0%} and is {now:.0%} with the adapter."
