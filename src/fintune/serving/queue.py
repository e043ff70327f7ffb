"""A queue before the one thread that computes: batches of one task and model, and texts between them.

Callers are coroutines of an event loop. The queue's length is bounded; a request whose caller has gone, or
whose deadline has passed, is dropped. Texts advance one token between two batches. Knows engines and tasks,
nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fintune.errors import FintuneError
from fintune.inference.engine import Engine
from fintune.monitoring import tracing
from fintune.monitoring.metrics import METRICS
from fintune.serving.adapters import Models
from fintune.serving.errors import ApiError, lost, overloaded, stopping, timed_out
from fintune.serving.health import Health
from fintune.serving.one_model import OneModel
from fintune.serving.settings import Settings
from fintune.serving.writing import Group, Sampling, Writing
from fintune.tasks import Prediction, Record

log = logging.getLogger("fintune.serving")
Answer = Prediction | str
"""A prediction, or the sentence that says why there is none."""


@dataclass(eq=False)
class _Job:
    """One request to the model thread. Jobs of equal `key` are computed together."""

    key: tuple[str, ...]
    size: int
    work: Any
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Any]
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    label: str = ""
    """Of a text: the task's name, under which the metrics count its tokens."""
    trace: Any = field(default_factory=tracing.here)
    dropped: bool = False

    def send(self, event: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits
            self.dropped = True

    def given_up(self) -> bool:
        return self.dropped or time.monotonic() > self.deadline


@dataclass(frozen=True)
class Answered:
    """An answer, and what it took."""

    answer: Answer
    queue_seconds: float
    """From the request's arrival to the start of its batch."""
    prompt_tokens: int | None = None
    """None where there is no answer."""
    cached_tokens: int = 0
    """Of the prompt: those that were not computed again."""
    completion_tokens: int = 0


@dataclass(frozen=True)
class Done:
    """The end of a text: why it ended, its tokens and, once it is stored, the id of its prediction."""

    finish: str
    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float = 0.0
    cached_tokens: int = 0
    prediction: Prediction | None = None
    """Of a task that scores its answers."""
    prediction_id: str | None = None


class ModelThread:
    """The one thread that computes, and the queue before it."""

    def __init__(self, models: Models | OneModel, settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self._waiting: deque[_Job] = deque()
        self._size = 0
        self._groups: list[tuple[str, Group, list[_Job]]] = []
        self._rate = 10.0
        self._stop = False
        self._changed = threading.Condition()
        self._running: list[_Job] = []
        self.health = Health(settings.max_step, settings.max_failures, self._probe, self._lose_all)
        self._thread = threading.Thread(target=self._run, name="fintune-model", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._thread.is_alive() and not self._stop and not self.health.lost

    @property
    def length(self) -> int:
        """Records that wait."""
        return self._size

    def stop(self) -> None:
        """Finish what is there, then end the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if not self.health.lost:
            self._thread.join(self.settings.grace)
        self.health.stop()

    # For callers ------------------------------------------------------------------------------------

    async def predict(
        self, model: str, task: str, records: Sequence[Record], truncate: bool = False
    ) -> list[Answered]:
        """An answer for each record.

        Raises:
            ApiError: 503 at once when the queue is full, 504 when there is no answer in time.
        """
        job = self._submit(("task", model, task, str(truncate)), len(records), list(records))
        return await self._result(job)

    async def control(self, work: Callable[[], Any]) -> Any:
        """The result of a function that runs on the model thread."""
        return await self._result(self._submit(("control", str(id(work))), 0, work))

    async def write(
        self,
        model: str,
        prompt: Callable[[Engine], list[int]],
        sampling: Sampling,
        label: str = "text",
        record: Record | None = None,
    ) -> AsyncIterator[str | Done]:
        """Pieces of a text as they are written, then `Done`. A caller that stops listening stops the writing.

        Args:
            prompt: its token ids, computed on the model thread.
            label: what its tokens are counted under, those of a text that is given up, too.
            record: what the task of the name `label` is asked, whose format the text is kept to.

        Raises:
            ApiError: 400, the backend writes no texts a token at a time.
        """
        if self.models.texts == 0:
            raise ApiError(
                400,
                f"With the backend {self.settings.backend} this server answers tasks alone: ask "
                "/v1/tasks, or name a task that has labels.",
                code="not_supported",
                param="model",
            )
        job = self._submit(("write", model), 1, (prompt, sampling, record), label)
        try:
            while True:
                event = await self._event(job)
                yield event
                if isinstance(event, Done):
                    return
        finally:
            job.dropped = True

    async def _result(self, job: _Job) -> Any:
        try:
            return await self._event(job)
        finally:
            job.dropped = True

    async def _event(self, job: _Job) -> Any:
        left = job.deadline - time.monotonic()
        try:
            event = await asyncio.wait_for(job.events.get(), max(0.0, left))
        except TimeoutError:
            raise timed_out(self.settings.timeout) from None
        if isinstance(event, BaseException):
            raise event
        return event

    def _submit(self, key: tuple[str, ...], size: int, work: Any, label: str = "") -> _Job:
        deadline = time.monotonic() + self.settings.timeout
        job = _Job(key, size, work, asyncio.get_running_loop(), asyncio.Queue(), deadline, label=label)
        with self._changed:
            if not self.ready:
                raise stopping() if self._stop else lost()
            if self._size + size > self.settings.max_queue:
                self._forget_the_dropped()
            if self._size + size > self.settings.max_queue:
                raise overloaded(self._size / self._rate)
            self._waiting.append(job)
            self._size += size
            METRICS.set_queue(self._size)
            self._changed.notify()
        return job

    # The thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (jobs := self._next()) is not None:
                if jobs:
                    with self.health.step():
                        self._begin(jobs)
                for entry in list(self._groups):
                    with self.health.step():
                        self._advance(entry)
        except BaseException as error:  # a thread that ends in silence would leave everyone waiting
            self.health.lose("its thread has ended", error)

    def _probe(self) -> None:
        """A small forward pass."""
        engine, use_adapter = self.models.get(self.models.default)
        ids = engine.template.completion_ids("Sales rose.")
        with engine.backend.session(use_adapter):
            engine.backend.log_likelihoods([ids], [ids], 0)

    def _lose_all(self) -> None:
        """Answer everyone who waits: the model thread will not, and may not be able to."""
        with self._changed:
            jobs = [*self._running, *(job for _, _, group in self._groups for job in group), *self._waiting]
            self._waiting.clear()
            self._size = 0
        _fail(jobs, lost())

    def _failed(self, jobs: list[_Job], error: BaseException) -> None:
        _fail(jobs, error)
        if not isinstance(error, ApiError | FintuneError):
            self.health.failed()

    def _next(self) -> list[_Job] | None:
        """The jobs to compute now: the oldest and those like it. None to end; [] where only texts are on."""
        with self._changed:
            while True:
                self._forget_the_dropped()
                busy = sum(len(group.writings) for _, group, _ in self._groups)
                most = self.settings.max_batch
                room = (most if self.models.texts is None else min(most, self.models.texts)) - busy
                jobs: list[_Job] = []
                first = next((j for j in self._waiting if j.key[0] != "write" or room > 0), None)
                if first is not None:
                    limit = room if first.key[0] == "write" else self.settings.max_batch
                    count = 0
                    for job in self._waiting:
                        if job.key == first.key and (not jobs or count + job.size <= limit):
                            jobs.append(job)
                            count += job.size
                    spare = first.arrived + self.settings.max_wait - time.monotonic()
                    if count >= limit or spare <= 0 or busy or self._stop or first.key[0] == "control":
                        taken = {id(job) for job in jobs}
                        self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                        self._size -= count
                        METRICS.set_queue(self._size)
                        return jobs
                    self._changed.wait(spare)
                elif busy:
                    return []
                elif self._stop:
                    return None
                else:
                    self._changed.wait()

    def _forget_the_dropped(self) -> None:
        if any(job.given_up() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.given_up())
            self._size = sum(job.size for job in self._waiting)
            METRICS.set_queue(self._size)

    def _begin(self, jobs: list[_Job]) -> None:
        kind, *rest = jobs[0].key
        started = time.monotonic()
        for job in jobs:
            job.started = started
        self._running = jobs
        count = sum(job.size for job in jobs)
        try:
            if kind == "control":
                jobs[0].send(jobs[0].work())
            elif kind == "task":
                model, task, truncate = rest
                waited = round(started - jobs[0].arrived, 4)
                facts: dict[str, Any] = {"task": task, "model": model, "size": count, "waited": waited}
                with tracing.span("batch", within=jobs[0].trace, **facts):
                    self._answer(jobs, model, task, truncate == "True")
                taken = time.monotonic() - started
                self._rate += 0.2 * (count / max(taken, 1e-3) - self._rate)
                METRICS.observe_batch(task, count, taken)
            else:
                self._start_writing(jobs, rest[0])
            if kind != "control":
                self.health.worked()
        except BaseException as error:
            self._failed(jobs, error)
        self._running = []

    def _answer(self, jobs: list[_Job], model: str, task: str, truncate: bool) -> None:
        engine, use_adapter = self.models.get(model)
        records = [record for job in jobs for record in job.work]

        def go_on(done: int) -> None:
            self.health.beat()
            if all(job.given_up() for job in jobs):
                raise _NobodyWaitsError

        hits, misses = engine.backend.lookups()
        try:
            replies = engine.replies(
                task,
                records,
                use_adapter=use_adapter,
                batch_size=self.settings.max_batch,
                truncate=truncate,
                on_done=go_on,
            )
        except _NobodyWaitsError:
            return
        more_hits, more_misses = engine.backend.lookups()
        METRICS.observe_cache(True, more_hits - hits)
        METRICS.observe_cache(False, more_misses - misses)
        computed = more_misses - misses  # the first records, for which the shared beginning was computed
        answers = []
        waited = [job.started - job.arrived for job in jobs for _ in range(job.size)]
        for reply, seconds in zip(replies, waited, strict=True):
            answer, cached = reply.answer, 0
            if isinstance(answer, str):
                answer = answer.replace("pass --truncate", "send truncate: true")
            elif computed:
                computed -= 1
            else:
                cached = reply.shared_tokens
            answers.append(Answered(answer, seconds, reply.prompt_tokens, cached, reply.completion_tokens))
        for job in jobs:
            job.send(answers[: job.size])
            del answers[: job.size]

    def _start_writing(self, jobs: list[_Job], model: str) -> None:
        from fintune.inference.formats import allowed_tokens

        engine, use_adapter = self.models.get(model)
        begun: list[_Job] = []
        writings: list[Writing] = []
        for job in jobs:
            make_prompt, sampling, record = job.work
            try:
                writing = Writing(make_prompt(engine), sampling, job.send, job.given_up)
                if record and (wanted := engine.tasks[job.label].text_format):
                    writing.allowed = allowed_tokens(wanted, engine.tokenizer, [record])
                    writing.source_numbers = wanted.source_numbers
                writings.append(writing)
                begun.append(job)
            except (ApiError, FintuneError) as error:
                job.send(error)
        if not begun:
            return
        METRICS.batch.labels("text").observe(len(begun))
        for job, writing in zip(begun, writings, strict=True):
            job.work = writing
        self._groups.append((model, Group(engine, use_adapter, writings), begun))

    def _advance(self, entry: tuple[str, Group, list[_Job]]) -> None:
        model, group, jobs = entry
        try:
            # Another model may have answered since the last step, and this one been loaded anew.
            group.engine, group.use_adapter = self.models.get(model)
            more = group.step()
        except BaseException as error:
            self._groups.remove(entry)
            with contextlib.suppress(BaseException):  # after a fault of the device this fails too
                group.end()
            self._failed(jobs, error)
            return
        self.health.worked()
        for job in [job for job in jobs if job.work.finish]:
            jobs.remove(job)
            writing: Writing = job.work
            METRICS.observe_tokens(job.label, len(writing.prompt), completion=len(writing.ids))
            waited = job.started - job.arrived
            job.send(Done(writing.finish or "stop", len(writing.prompt), len(writing.ids), waited))
        if not more:
            self._groups.remove(entry)


class _NobodyWaitsError(Exception):
    pass


def _fail(jobs: list[_Job], error: BaseException) -> None:
    """Tell every caller; what is no mistake of theirs is logged, and its details stay here."""
    if not isinstance(error, ApiError | FintuneError):
        log.error("the model failed", exc_info=error)
        error = ApiError(500, "The model failed: see the server's log.", "server_error", "internal_error")
    for job in jobs:
        job.send(error)
