"""The queue before the one thread that computes: batches of one task and model, and texts between them.

Callers are coroutines of an event loop, and take turns (`shares`). The queue's length is bounded. A request
whose caller has gone or whose deadline has passed is dropped, even between its records or prompt passes.
Texts advance one token, or one pass of their prompts, between two batches. Other threads tokenize. Knows
engines and tasks, not HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from fintune.errors import FintuneError
from fintune.inference.engine import Engine, Reply
from fintune.monitoring import tracing
from fintune.monitoring.metrics import METRICS
from fintune.serving.adapters import Models
from fintune.serving.errors import ApiError, crowded, lost, overloaded, stopping, timed_out
from fintune.serving.health import Health
from fintune.serving.jobs import (
    FAILED,
    Answered,
    Ask,
    Done,
    Failed,
    Job,
    Piece,
    fail,
    log_failure,
    server_error,
)
from fintune.serving.one_model import OneModel
from fintune.serving.settings import Settings
from fintune.serving.shares import CALLER, Limiter, Line
from fintune.serving.writing import Group, Sampling, Writing, padded_tokens, spelled
from fintune.tasks import Record

T = TypeVar("T")
TOKENIZERS = 2
"""Threads that tokenize; each caller uses one at a time."""


class ModelThread:
    """The one thread that computes, and its queue."""

    def __init__(self, models: Models | OneModel, settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self.limiter = Limiter()
        self._line: Line[Job] = Line()
        self._tokenizers = ThreadPoolExecutor(TOKENIZERS, "fintune-tokens")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._groups: list[tuple[str, Group, list[Job]]] = []
        self._rate = 10.0
        self._stop = False
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self.health = Health(settings.max_step, settings.max_failures, self._probe, self._lose_all)
        self._thread = threading.Thread(target=self._run, name="fintune-model", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._thread.is_alive() and not self._stop and not self.health.lost

    @property
    def length(self) -> int:
        """Records that wait."""
        return self._line.size

    def stop(self) -> None:
        """Finish what has begun, then end the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if not self.health.lost:
            self._thread.join(self.settings.grace)
        self.health.stop()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    # For callers ------------------------------------------------------------------------------------

    async def predict(
        self, model: str, task: str, records: Sequence[Record], truncate: bool = False
    ) -> list[Answered]:
        """An answer for each record.

        Raises:
            ApiError: 429 over the caller's limits or share of the queue, 503 at once if the queue is full,
                504 if there is no answer in time.
        """
        caller = CALLER.get()
        self.limiter.check(caller, "records", len(records))

        def anything(row: int, sofar: Sequence[int]) -> None:
            """Allow any token."""

        def made(engine: Engine) -> tuple[Ask, list[int]]:
            from fintune.inference.formats import allowed_tokens

            ask = Ask(list(records), engine, engine.prompts(task, records, truncate))
            chosen = engine.tasks[task]
            if wanted := chosen.text_format if chosen.decoding == "text" else None:
                ask.allowed = [
                    anything
                    if isinstance(prompt, str)
                    else allowed_tokens(wanted, engine.tokenizer, [record]) or anything
                    for record, prompt in zip(records, ask.prompts, strict=True)
                ]
            return ask, [engine.cost(task, prompt) for prompt in ask.prompts]

        deadline = time.monotonic() + self.settings.timeout
        ask, costs = await self.apart(model, made, deadline)
        self.limiter.check(caller, "tokens", sum(len(each) for each in ask.prompts if isinstance(each, list)))
        job = self._submit(("task", model, task, str(truncate)), costs, ask, deadline)
        job.said = lambda: [text for each in records for text in (each.text, each.question or "")]
        return await self._result(job)

    async def control(self, work: Callable[[], T]) -> T:
        """Run a function on the model thread and return its result."""
        return await self._result(self._submit(("control", str(id(work))), [], work))

    async def apart(self, model: str, work: Callable[[Engine], T], deadline: float | None = None) -> T:
        """Run work that needs an engine's tokenizer and tasks but not its weights, outside the model thread,
        one at a time per caller."""
        deadline = deadline or time.monotonic() + self.settings.timeout
        engine = self.models.ready(model) or (await self.control(lambda: self.models.get(model)))[0]
        lock = self._locks.setdefault(CALLER.get().name, asyncio.Lock())
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())), lock:
                return await asyncio.get_running_loop().run_in_executor(self._tokenizers, work, engine)
        except TimeoutError:
            raise timed_out(self.settings.timeout) from None
        except (ApiError, FintuneError):
            raise
        except Exception as error:  # a plug-in's task may raise anything
            log_failure(error)
            raise server_error() from None

    async def write(
        self,
        model: str,
        prompt: Callable[[Engine], list[int]],
        sampling: Sampling,
        label: str = "text",
        record: Record | None = None,
    ) -> AsyncIterator[str | Done]:
        """A text's pieces as they are generated, then `Done`. If the caller stops listening, writing stops.

        Args:
            prompt: makes the token ids outside the model thread; afterwards `sampling` is complete.
            label: the name under which its tokens are counted, also if the text is given up.
            record: the input of the task named `label`, whose format the text follows.

        Raises:
            ApiError: 400 if the backend cannot write token by token; others as in `predict`.
        """
        (text,) = await self.texts(model, [(prompt, sampling)], label, record)
        async with contextlib.aclosing(text):  # type: ignore[type-var]
            async for piece in text:
                yield piece

    async def texts(
        self,
        model: str,
        asked: Sequence[tuple[Callable[[Engine], list[int]], Sampling]],
        label: str = "text",
        record: Record | None = None,
    ) -> list[AsyncIterator[str | Done]]:
        """Several texts that begin together, each as in `write`; none begins if one is refused."""
        if self.models.texts == 0:
            raise ApiError(
                400,
                f"With the backend {self.settings.backend} this server only answers tasks: use "
                "/v1/tasks, or name a task that has labels.",
                code="not_supported",
                param="model",
            )
        caller = CALLER.get()
        self.limiter.check(caller, "records", len(asked))
        said: list[str] = []

        def made(engine: Engine) -> list[Writing]:
            from fintune.inference.formats import allowed_tokens

            writings, tokenizer = [], engine.tokenizer
            for prompt, sampling in asked:
                writing = Writing(prompt(engine), sampling, lambda piece: None, lambda: False)
                writing.spell = functools.partial(spelled, tokenizer)
                sampling.check_bias(len(tokenizer))
                if sampling.grammar:
                    writing.allowed = sampling.grammar.allowed(tokenizer)
                if record and (wanted := engine.tasks[label].text_format):
                    writing.allowed = allowed_tokens(wanted, tokenizer, [record])
                    writing.source_numbers = wanted.source_numbers
                said.append(tokenizer.decode(writing.prompt))
                writings.append(writing)
            return writings

        deadline = time.monotonic() + self.settings.timeout
        writings = await self.apart(model, made, deadline)
        self.limiter.check(caller, "tokens", sum(len(each.prompt) for each in writings))
        jobs: list[Job] = []
        try:
            for each in writings:
                jobs.append(self._submit(("write", model), [len(each.prompt)], each, deadline, label))
                jobs[-1].said = lambda: said
        except BaseException:
            for job in jobs:
                job.dropped = True
            raise
        return [self._written(job) for job in jobs]

    async def _written(self, job: Job) -> AsyncIterator[str | Done]:
        try:
            while True:
                event = await self._event(job)
                yield event
                if isinstance(event, Done):
                    return
        finally:
            job.dropped = True

    async def _result(self, job: Job) -> Any:
        try:
            return await self._event(job)
        finally:
            job.dropped = True

    async def _event(self, job: Job) -> Any:
        left = job.deadline - time.monotonic()
        try:
            event = await asyncio.wait_for(job.events.get(), max(0.0, left))
        except TimeoutError:
            raise timed_out(self.settings.timeout) from None
        if isinstance(event, BaseException):
            raise event
        return event

    def _submit(
        self,
        key: tuple[str, ...],
        costs: list[int],
        work: Any,
        deadline: float | None = None,
        label: str = "",
    ) -> Job:
        deadline = deadline or time.monotonic() + self.settings.timeout
        job = Job(key, costs, work, asyncio.get_running_loop(), asyncio.Queue(), deadline, label=label)
        with self._changed:
            if not self.ready:
                raise stopping() if self._stop else lost()
            self._make_room(job)
            self._line.add(job)
            METRICS.queue.set(self._line.size)
            self._changed.notify()
        return job

    def _make_room(self, job: Job) -> None:
        """Admit a job; others may have to give way.

        Raises:
            ApiError: 503 if the queue is full, 429 if the caller's share of it is.
        """
        line, room = self._line, self.settings.max_queue
        if line.size + job.size <= room:
            return
        self._forget_the_dropped()
        found = line.over(job.owner, job.size, room) if job.size else (room, [])
        if found is None:
            seconds = line.size / self._rate
            owners = len(line.owners() | {job.owner})
            raise crowded(room // owners, room, seconds) if owners > 1 else overloaded(seconds)
        share, victims = found
        for victim in victims:
            victim.dropped = True
            victim.send(crowded(share, room, line.size / self._rate))
        self._forget_the_dropped()

    # The thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                if batch:
                    with self.health.step():
                        self._begin(batch)
                for entry in list(self._groups):
                    with self.health.step():
                        self._advance(entry)
        except BaseException as error:  # if the thread ended silently, everyone would wait forever
            self.health.lose("its thread has ended", error)

    def _probe(self) -> None:
        """A small forward pass."""
        engine, use_adapter = self.models.get(self.models.default)
        ids = engine.template.completion_ids("Sales rose.")
        with engine.backend.session(use_adapter):
            engine.backend.log_likelihoods([ids], [ids], 0)

    def _lose_all(self) -> None:
        """Answer every waiting caller, because the model thread may never do it."""
        with self._changed:
            writing = [job for _, _, group in self._groups for job in group]
            jobs = list(dict.fromkeys([*self._running, *writing, *self._line.keep(lambda job: False)]))
        fail(jobs, lost())

    def _failed(self, jobs: list[Job], error: BaseException) -> None:
        fail(jobs, error)
        if not isinstance(error, ApiError | FintuneError):
            self.health.failed()

    def _next(self) -> list[Piece] | None:
        """The next work: of the caller whose turn it is, with similar records. None to end; [] if only texts
        are active."""
        with self._changed:
            while True:
                self._forget_the_dropped()
                busy = sum(len(group.writings) for _, group, _ in self._groups)
                # A text without room waits until there is some: no later text passes it.
                first = self._line.first()
                if first and first.key[0] == "write" and not self._fits([], first):
                    first = self._line.first(lambda job: job.key[0] != "write")
                if first is not None:
                    waiting = sum(job.size for job in self._line.jobs if job.key == first.key)
                    spare = first.arrived + self.settings.max_wait - time.monotonic()
                    now = busy or self._stop or first.key[0] == "control"
                    if now or waiting >= self.settings.max_batch or spare <= 0:
                        return self._take(first)
                    self._changed.wait(spare)
                elif busy:
                    return []
                elif self._stop:
                    return None
                else:
                    self._changed.wait()

    def _take(self, first: Job) -> list[Piece]:
        """A batch of records (or texts) with one key, by turns, as many as can be computed together."""
        line, batch = self._line, list[Piece]()
        if first.key[0] == "control":
            line.keep(lambda job: job is not first)
            return [(first, 0)]
        tokens = 0
        for job in line.like(first.key):
            cost = job.costs[job.taken]
            if first.key[0] == "write":
                full = not self._fits([each for each, _ in batch], job)
            else:
                full = tokens + cost > self.settings.max_batch_tokens
            if batch and (full or len(batch) == self.settings.max_batch):
                break
            batch.append((job, job.taken))
            job.taken += 1
            tokens += cost
            line.charge(job.owner, cost)
        line.keep(lambda job: job.size > 0 or job.key[0] == "control")
        line.size = sum(job.size for job in line.jobs)
        METRICS.queue.set(line.size)
        return batch

    def _fits(self, begun: list[Job], job: Job) -> bool:
        """Whether a text may begin beside the running ones, within their limits of number and tokens."""
        running = [group.writings for _, group, _ in self._groups]
        texts = sum(map(len, running)) + len(begun)
        most = self.settings.max_batch
        if texts >= (most if self.models.texts is None else min(most, self.models.texts)):
            return False
        own = padded_tokens([each.work for each in [*begun, job]])
        return texts == 0 or own + sum(map(padded_tokens, running)) <= self.settings.max_text_tokens

    def _forget_the_dropped(self) -> None:
        if self._line.keep(lambda job: not job.given_up()):
            METRICS.queue.set(self._line.size)

    def _begin(self, batch: list[Piece]) -> None:
        jobs = list(dict.fromkeys(job for job, _ in batch))
        kind, *rest = jobs[0].key
        started = time.monotonic()
        for job in jobs:
            job.started = job.started or started
        self._running = jobs
        try:
            if kind == "control":
                jobs[0].send(jobs[0].work())
            elif kind == "task":
                model, task, truncate = rest
                waited = round(started - jobs[0].arrived, 4)
                facts: dict[str, Any] = {"task": task, "model": model, "size": len(batch), "waited": waited}
                with tracing.span("batch", within=jobs[0].trace, **facts):
                    self._answer(batch, model, task, truncate == "True")
                taken = time.monotonic() - started
                self._rate += 0.2 * (len(batch) / max(taken, 1e-3) - self._rate)
                METRICS.observe_batch(task, len(batch), taken)
            else:
                self._start_writing(jobs, rest[0])
        except BaseException as error:
            self._failed(jobs, error)
        self._running = []

    def _answer(self, batch: list[Piece], model: str, task: str, truncate: bool) -> None:
        engine, use_adapter = self.models.get(model)
        hits, misses = engine.backend.lookups()
        started = time.monotonic()
        replies = self._replies(batch, engine, use_adapter, task, truncate)
        more_hits, more_misses = engine.backend.lookups()
        METRICS.observe_cache(True, more_hits - hits)
        METRICS.observe_cache(False, more_misses - misses)
        computed = more_misses - misses  # the first records, which computed the shared prefix
        for (job, place), reply in zip(batch, replies, strict=True):
            answer, cached = reply.answer, 0
            if isinstance(answer, Failed):
                pass
            elif isinstance(answer, str):
                answer = answer.replace("pass --truncate", "send truncate: true")
            elif computed:
                computed -= 1
            else:
                cached = reply.shared_tokens
            job.work.answers[place] = Answered(
                answer, started - job.arrived, reply.prompt_tokens, cached, reply.completion_tokens
            )
            self._spend(job, reply.completion_tokens)
            answers = job.work.answers
            if None not in answers:
                failed = all(isinstance(each.answer, Failed) for each in answers)
                job.send(server_error() if failed else answers)
        if all(isinstance(reply.answer, Failed) for reply in replies):
            self.health.failed()
        else:
            self.health.worked()

    def _replies(
        self, batch: list[Piece], engine: Engine, use_adapter: bool, task: str, truncate: bool
    ) -> list[Reply]:
        """The replies to a batch. If it fails, halves are retried, so that only the culprit fails."""

        def go_on(done: int) -> None:
            self.health.beat()
            if all(job.given_up() for job, _ in batch):
                raise _NobodyWaitsError

        same = all(job.work.engine is engine for job, _ in batch)  # else it was reloaded meanwhile
        allowed = batch[0][0].work.allowed
        try:
            replies = engine.replies(
                task,
                [job.work.records[place] for job, place in batch],
                use_adapter=use_adapter,
                batch_size=self.settings.max_batch,
                truncate=truncate,
                on_done=go_on,
                prompts=[job.work.prompts[place] for job, place in batch] if same else None,
                allowed=[job.work.allowed[place] for job, place in batch] if same and allowed else None,
            )
        except _NobodyWaitsError:
            return [Reply("Nobody waits for it.")] * len(batch)
        except (ApiError, FintuneError):
            raise
        except Exception as error:
            if len(batch) == 1:
                log_failure(error, [batch[0][0]])
                return [Reply(FAILED)]
            half = len(batch) // 2
            return [
                reply
                for part in (batch[:half], batch[half:])
                for reply in self._replies(part, engine, use_adapter, task, truncate)
            ]
        return replies

    def _spend(self, job: Job, tokens: int) -> None:
        """Charge a caller for the generated tokens."""
        if not tokens:
            return
        self.limiter.spend(job.owner, job.caller.tokens, tokens, "tokens")
        with self._changed:
            self._line.charge(job.owner, tokens)

    def _start_writing(self, jobs: list[Job], model: str) -> None:
        engine, use_adapter = self.models.get(model)
        for job in jobs:
            job.work.emit, job.work.given_up = job.send, job.given_up
        METRICS.batch.labels("text").observe(len(jobs))
        self._groups.append((model, Group(engine, use_adapter, [job.work for job in jobs]), jobs))

    def _advance(self, entry: tuple[str, Group, list[Job]]) -> None:
        model, group, jobs = entry
        try:
            # Since the last step another model may have answered and this one been reloaded.
            group.engine, group.use_adapter = self.models.get(model)
            more = group.step()
        except BaseException as error:
            self._groups.remove(entry)
            with contextlib.suppress(BaseException):  # after a device fault this fails too
                group.end()
            if (
                not isinstance(error, Exception)
                or isinstance(error, ApiError | FintuneError)
                or len(jobs) < 2
            ):
                self._failed(jobs, error)
                return
            half = len(jobs) // 2  # retry the halves, which continue where they were, to find the culprit
            for part in (jobs[:half], jobs[half:]):
                try:
                    self._start_writing(part, model)
                except BaseException as again:
                    self._failed(part, again)
            return
        self.health.worked()
        for job in [job for job in jobs if job.work.finish]:
            jobs.remove(job)
            writing: Writing = job.work
            if writing.failed:
                self._failed([job], writing.failed)
                continue
            METRICS.observe_tokens(job.label, len(writing.prompt), completion=len(writing.ids))
            self._spend(job, len(writing.ids))
            waited = job.started - job.arrived
            job.send(Done(writing.finish or "stop", len(writing.prompt), len(writing.ids), waited))
        if not more:
            self._groups.remove(entry)


class _NobodyWaitsError(Exception):
    pass
