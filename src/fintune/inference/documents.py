"""Answers from documents: selects what the model reads, and cites where the answer comes from.

A question is answered from the passages that BM25 ranks highest, best first; any other task from the most
salient sentences of all passages. If everything fits, everything is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fintune.data.documents.passages import Document, Passage
from fintune.data.documents.reading import read_document
from fintune.data.raw.readers.row_files import RowFile
from fintune.errors import DataError
from fintune.inference.answer_files import Line, Output
from fintune.inference.answers import as_dict, write_answers
from fintune.inference.engine import Engine
from fintune.inference.grounding import Span, answer_spans, bullet_sources
from fintune.tasks import Prediction, Record, Task
from fintune.text.numbers import unsupported_figures
from fintune.text.ranking import Ranking
from fintune.text.salience import Salience
from fintune.text.sentences import bullet_lines

FOUND = 0.35
"""The share of the question's words, weighted by rarity, that a passage must contain (docs/documents.md)."""
NOT_FOUND = "not in this document"
SEARCHED = 60
"""The most passages that are ranked."""
TOKENS_A_PASSAGE = 340
"""The share of the model's context per passage read: 3 of 1,024. More passages distract a small model."""


@dataclass(frozen=True)
class Question:
    """A question about documents, with their passages by rank. Needs no model."""

    documents: tuple[Document, ...]
    question: str | None
    ranked: tuple[int, ...] = ()
    """Indices of the passages, best first; () if no passage is about the question."""

    @property
    def passages(self) -> list[Passage]:
        return [passage for document in self.documents for passage in document.passages]


@dataclass(frozen=True)
class Reading:
    """The part of the documents that the model reads."""

    asked: Question
    record: Record
    pieces: tuple[tuple[Span, Passage], ...]
    """Where in the record's text each passage, or sentence of one, stands."""


@dataclass(frozen=True)
class Source:
    """A passage that supports an answer, and the place in it."""

    passage: Passage
    spans: tuple[Span, ...]
    bullet: int | None = None
    """The line of the summary that it supports, from 1."""


@dataclass(frozen=True)
class DocumentAnswer:
    """An answer, its sources, and how much was read."""

    asked: Question
    prediction: Prediction | None
    """None if no passage is about the question."""
    sources: tuple[Source, ...] = ()
    text: str = ""
    """What the model read."""
    passages_read: int = 0

    @property
    def words(self) -> int:
        return sum(document.words for document in self.asked.documents)

    @property
    def words_read(self) -> int:
        return len(self.text.split())

    @property
    def unsupported(self) -> list[str]:
        """The answer's figures that do not occur in what was read."""
        said = str(self.prediction.value) if self.prediction else ""
        return list(dict.fromkeys(f"{each.figure:g}" for each in unsupported_figures(said, self.text)))

    @property
    def extent(self) -> str:
        """How much of the documents was searched and read, as a sentence."""
        what = (
            self.asked.documents[0].name
            if len(self.asked.documents) == 1
            else f"{len(self.asked.documents)} documents"
        )
        total, count = f"{self.words:,} words", len(self.asked.passages)
        if self.prediction is None:
            return f"Searched: all {count:,} passages of {what} ({total})."
        if self.words_read >= self.words:
            return f"Read: all of {what} ({total})."
        share = f"{self.words_read:,} of {total}, {self.words_read / self.words:.1%}"
        how = "the best for the question" if self.asked.question else "the sentences that say most"
        where = f"in {self.passages_read:,} of {count:,} passages"
        return f"Read: {share} of {what}, {where}: {how}. All were searched."

    def to_dict(self, task: str) -> dict[str, Any]:
        """The answer as a JSON object."""
        head = as_dict(task, self.prediction) if self.prediction else {"task": task, "error": NOT_FOUND}
        sources = []
        for source in self.sources:
            passage = source.passage
            own = {"document": passage.document, "section": passage.section, "page": passage.page}
            found = {"text": passage.text, "spans": [list(span) for span in source.spans]}
            sources.append({**own, **found} | ({"bullet": source.bullet} if source.bullet else {}))
        return {
            **head,
            **({"unsupported": self.unsupported} if self.unsupported else {}),
            "sources": sources,
            "read": {
                "documents": [document.name for document in self.asked.documents],
                "words": self.words_read,
                "of_words": self.words,
                "passages": self.passages_read,
                "of_passages": len(self.asked.passages),
                "left_out": [document.left_out for document in self.asked.documents if document.left_out],
            },
        }


def ask(task: Task, documents: Sequence[Document], question: str | None) -> Question:
    """Rank the passages, for a task that takes a question."""
    asked = Question(tuple(documents), question if "question" in task.inputs else None)
    if not asked.question:
        return asked
    ranking = Ranking([f"{passage.section}\n{passage.text}" for passage in asked.passages])
    if max(ranking.coverage(asked.question), default=0.0) < FOUND:
        return asked
    scores = ranking.scores(asked.question)
    order = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: -scores[i])
    return replace(asked, ranked=tuple(order[:SEARCHED]))


def read(engine: Engine, task: Task, asked: Question) -> Reading | DocumentAnswer:
    """As much as fits the model's context; if no passage is about the question, the answer that says so.

    Raises:
        DataError: the task refuses the question, or the question alone does not fit.
    """
    if asked.question and not asked.ranked:
        return DocumentAnswer(asked, None)
    budget = engine.completion_budget(task)
    engine.prompt(task, Record("…", question=asked.question), truncate=False, budget=budget)
    room = engine.template.max_length - budget
    whole = joined(asked, range(len(asked.passages)))
    if len(whole.record.text) <= 8 * room and _fits(engine, task, whole, room):
        return whole
    if not asked.question:
        return _salient(engine, task, asked, room)
    most = max(3, engine.template.max_length // TOKENS_A_PASSAGE)
    return joined(asked, fitting(engine, task, asked, asked.ranked[:most]))


def fitting(engine: Engine, task: Task, asked: Question, places: Sequence[int]) -> list[int]:
    """As many of these passages as fit the prompt together, the first ones first."""
    room = engine.template.max_length - engine.completion_budget(task)
    empty = engine.template.prompt_text(task, Record("", question=asked.question))
    left = room - engine.template.count_tokens(empty)
    chosen: list[int] = []
    for place in places:
        tokens = engine.template.count_tokens(asked.passages[place].text + "\n")
        if tokens <= left:
            chosen.append(place)
            left -= tokens
    while len(chosen) > 1 and not _fits(engine, task, joined(asked, chosen), room):
        chosen.pop()  # joined, they may have more tokens than separately
    return chosen or [places[0]]  # a passage that is too long is truncated


def _fits(engine: Engine, task: Task, reading: Reading, room: int) -> bool:
    return engine.template.count_tokens(engine.template.prompt_text(task, reading.record)) <= room


def joined(asked: Question, places: Sequence[int]) -> Reading:
    """Passages one after the other."""
    passages = asked.passages
    return _reading(asked, ((passages[i].text, passages[i]) for i in places))


def _reading(asked: Question, parts: Iterator[tuple[str, Passage]] | Any) -> Reading:
    texts, pieces, start = [], [], 0
    for text, passage in parts:
        texts.append(text)
        pieces.append(((start, start + len(text)), passage))
        start += len(text) + 1
    return Reading(asked, Record("\n".join(texts), question=asked.question), tuple(pieces))


def _salient(engine: Engine, task: Task, asked: Question, room: int) -> Reading:
    """The sentences chosen to represent all passages."""
    salience = task.salience or Salience("score")
    template, passages = engine.template, asked.passages
    left = room - template.count_tokens(template.prompt_text(task, Record("")))
    while True:
        text = salience.select((p.text for p in passages), left, template.count_tokens)
        reading = _reading(asked, _placed(text.split("\n"), passages))
        if not text or _fits(engine, task, reading, room):
            return reading
        left -= max(1, left // 20)


def _placed(lines: Sequence[str], passages: Sequence[Passage]) -> Iterator[tuple[str, Passage]]:
    """Each chosen sentence with its passage; both are in the documents' order."""
    place = start = 0
    for line in lines:
        while (found := passages[place].text.find(line, start)) < 0 and place + 1 < len(passages):
            place, start = place + 1, 0
        start = max(found, 0) + len(line)
        yield line, passages[place]


def answer(
    engine: Engine, name: str, documents: Sequence[Document], question: str | None = None
) -> DocumentAnswer:
    """One task's answer from documents, with its sources.

    Raises:
        DataError: there is no such task, or it refuses the question.
    """
    task = engine.tasks[name]
    found = read(engine, task, ask(task, documents, question))
    if isinstance(found, DocumentAnswer):
        return found
    return cited(task, found, engine.predict(name, [found.record])[0])


def cited(task: Task, reading: Reading, prediction: Prediction) -> DocumentAnswer:
    """A prediction with the passages that support it."""
    if task.grounded == "bullets":
        sources = list(_of_bullets(reading, str(prediction.value)))
    elif task.grounded == "passage":
        sources = _of_answer(reading, str(prediction.value))
    else:
        sources = []
    passages = len({id(passage) for _, passage in reading.pieces})
    return DocumentAnswer(reading.asked, prediction, tuple(sources), reading.record.text, passages)


def _of_answer(reading: Reading, said: str) -> list[Source]:
    """The passage that contains most of the answer, on ties the higher ranked; unmarked if none does."""
    rank = {id(reading.asked.passages[place]): k for k, place in enumerate(reading.asked.ranked)}
    pieces = sorted((p for _, p in reading.pieces), key=lambda p: rank.get(id(p), len(rank)))
    found = [(answer_spans(passage.text, said), passage) for passage in pieces]
    best = max(found, key=lambda each: sum(end - start for start, end in each[0]), default=None)
    return [Source(best[1], tuple(best[0]))] if best else []


def _of_bullets(reading: Reading, summary: str) -> Iterator[Source]:
    """For each line of a summary, the passages whose sentences support it."""
    text = reading.record.text
    for number, spans in enumerate(bullet_sources(text, bullet_lines(summary)), 1):
        marks: dict[int, tuple[Passage, list[Span]]] = {}
        for start, end in spans:
            passage = next((p for (first, last), p in reading.pieces if first <= start < last), None)
            if passage and (place := passage.text.find(text[start:end])) >= 0:
                marks.setdefault(id(passage), (passage, []))[1].append((place, place + end - start))
        for passage, found in marks.values():
            yield Source(passage, tuple(found), number)


# `fintune predict` ----------------------------------------------------------------------------------


def predict_files(
    engine: Engine,
    name: str,
    files: Sequence[RowFile],
    output: Output | None,
    question: str | None = None,
) -> int:
    """An answer for each file; return the number of answers without errors.

    Raises:
        DataError: there is no such task.
    """
    task = engine.tasks[name]

    def line(file: RowFile) -> list[Line]:
        try:
            given = answer(engine, name, [read_document(file.place)], question).to_dict(name)
        except DataError as error:
            given = {"task": name, "error": str(error)}
        return [{"id": file.name, **given}]

    asked = {"model": [str(engine.adapter), engine.base_name, engine.backend_name], "question": question}
    return write_answers(lambda done: map(line, files[done:]), task, files, output, asked)


def shown(given: DocumentAnswer) -> None:
    """Print an answer for people: its sources with the supporting text marked, and how much was read."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.print(
        Text(str(given.prediction.value) if given.prediction else NOT_FOUND.capitalize() + ".", "bold")
    )
    for source in given.sources:
        number = f"{source.bullet}. " if source.bullet else ""
        console.print(Text(f"\n{number}{source.passage.place}", "cyan"))
        passage = Text()
        place = 0
        for start, end in sorted(source.spans):
            passage.append(source.passage.text[place:start])
            passage.append(f"«{source.passage.text[start:end]}»", "bold reverse")
            place = max(place, end)
        console.print(Padding(passage.append(source.passage.text[place:]), (0, 0, 0, 4)))
    if given.prediction and not any(source.spans for source in given.sources):
        console.print("\nThe passages that were read do not contain the words of this answer.")
    if given.unsupported:
        console.print(f"\nNot in what was read: {', '.join(given.unsupported)}.", style="bold red")
    console.print(f"\n{given.extent}")
    for document in given.asked.documents:
        if document.left_out:
            console.print(document.left_out)
    if given.prediction and given.prediction.token_probability is not None:
        console.print(f"Mean probability of the answer's tokens: {given.prediction.token_probability:.2f}")
