"""The live run: polls due sources, drops repeated items, answers, stores, shows and alerts, repeatedly.

The run continues whatever a source does: after a failure the pauses until the next poll grow, and an item
without an answer is stored with its error.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fintune.errors import ConfigError, FintuneError, ModelError
from fintune.inference.answers import answers
from fintune.inference.engine import Engine
from fintune.live.alerts import KEPT_DAYS, Webhook, alert_id, deliver, fired
from fintune.live.config import LiveConfig, networks
from fintune.live.feeds import Feed
from fintune.live.items import Item, Poll, Provider, ProviderError, SourceState, plain, utc
from fintune.live.seen import GENERATION, Seen
from fintune.live.store import Row, Store, days_ago
from fintune.live.view import View
from fintune.live.web import Limits, session
from fintune.tasks.base import Prediction, Record

if TYPE_CHECKING:
    from fintune.monitoring.recorder import Recorder

POLLED_AT_ONCE = 8
ANSWERED_AT_ONCE = 32
"""Items between two writes: the most that a killed run answers again."""
_LONGEST_BACK_OFF = 3600.0
_TICK_SECONDS = 1.0


def providers_of(config: LiveConfig) -> list[Provider]:
    """The providers of a configuration.

    Raises:
        ConfigError: your own provider cannot be created.
        MissingExtraError: feedparser or yfinance is not installed.
    """
    web = session(networks(config.allow_networks), config.proxy)
    limits = Limits(config.timeout, min(10.0, config.timeout), config.max_bytes)
    found: list[Provider] = [Feed(f.url, web, symbol=f.symbol, limits=limits) for f in config.feeds]
    if config.yahoo_news:
        from fintune.live.yahoo import YahooNews

        found.append(YahooNews(config.yahoo_news))
    for own in config.providers:
        module, _, name = own.type.partition(":")
        try:
            found.append(getattr(importlib.import_module(module), name)(**own.options))
        except FintuneError:
            raise
        except Exception as error:  # foreign code may raise anything
            raise ConfigError(f"The provider {own.type} cannot be created: {error}.") from error
    return found


class LiveRun:
    """One run over some providers, with one engine and one output folder."""

    def __init__(
        self,
        engine: Engine,
        config: LiveConfig,
        store: Store,
        providers: Sequence[Provider],
        *,
        hook: Webhook | None = None,
        view: View | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises ConfigError, DataError or ModelError: a task is unknown or cannot be answered."""
        self.engine, self.config, self.store = engine, config, store
        self.providers, self.hook, self.view, self.clock = list(providers), hook, view, clock
        self.recorder = recorder
        _check_tasks(engine, config)
        names = [provider.name for provider in self.providers]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two providers have the same name: {', '.join(sorted(names))}.")
        known = set(SourceState.__dataclass_fields__)
        self._kept = store.load_state()
        self.states = {
            provider.name: SourceState(
                **{k: v for k, v in self._kept.get(provider.name, {}).items() if k in known}
            )
            for provider in self.providers
        }
        for provider in self.providers:
            self.states[provider.name].title = str(provider)
        self.seen = Seen(config.near_duplicate)
        wanted = 2 * GENERATION * len(config.tasks)
        stored = {row["id"]: row["title"] for row in store.newest(wanted, ["id", "title"])}
        for id, title in reversed(stored.items()):
            self.seen.add(id, title)
        settled = store.settled_alerts() if hook else set()
        recent = store.rows(since=days_ago(clock(), KEPT_DAYS)) if hook else ()
        self._next_alert, self._alert_failures = 0.0, 0
        self.pending = [row for row in recent if row["alert"] and alert_id(row) not in settled]

    def round(self, *, everything: bool = False) -> list[Row]:
        """Poll due sources and process the results; return the new rows.

        Args:
            everything: poll before the due time too, unless a source asked to wait.
        """
        now = self.clock().timestamp()
        due = [p for p in self.providers if self._due(self.states[p.name], now, everything)]
        rows: list[Row] = []
        with ThreadPoolExecutor(POLLED_AT_ONCE) as pool:
            for provider, answer in zip(due, pool.map(self._ask, due), strict=True):
                rows += self._take(provider, answer)
        if due:
            states = {name: asdict(state) for name, state in self.states.items()}
            self.store.save_state({**self._kept, **states})  # another run's providers stay
        self._alert()
        return rows

    def forever(self) -> None:
        """Rounds until interrupted."""
        while True:
            self.round()
            if self.view:
                self.view.refresh(self.states.values(), len(self.pending))
            time.sleep(_TICK_SECONDS)

    @staticmethod
    def _due(state: SourceState, now: float, everything: bool) -> bool:
        return not state.gone and now >= (state.not_before if everything else state.next_poll)

    def _ask(self, provider: Provider) -> Poll | ProviderError:
        try:
            return provider.poll(dict(self.states[provider.name].cursor))
        except ProviderError as error:
            return error
        except Exception as error:  # a foreign provider must not end the run
            return ProviderError(f"{type(error).__name__}: {plain(error, 200)}")

    def _take(self, provider: Provider, answer: Poll | ProviderError) -> list[Row]:
        """Turn a provider's response into stored rows, and update its state."""
        state, now = self.states[provider.name], self.clock().timestamp()
        if isinstance(answer, ProviderError):
            state.failures += 1
            state.problem, state.gone = str(answer), answer.final
            # The pause doubles each time, with jitter so that many clients do not return together.
            pause = min(_LONGEST_BACK_OFF, self.config.interval * 2 ** min(state.failures - 1, 16))
            state.not_before = now + answer.retry_after
            state.next_poll = now + max(pause * random.uniform(0.5, 1), answer.retry_after)
            return []
        items = answer.items
        if not isinstance(provider, Feed):  # a feed's ids contain its address, which no other provider's may
            items = [replace(item, id=f"{provider.name}:{item.id}") for item in items]
        fresh, repeated = self.seen.fresh(items)
        rows: list[Row] = []
        for start in range(0, len(fresh), ANSWERED_AT_ONCE):
            part = list(self._answered(fresh[start : start + ANSWERED_AT_ONCE]))
            self.store.write(part)
            rows += part
            if self.hook:
                self.pending += [row for row in part if row["alert"]]
            if self.view:
                self.view.add(part)
        state.items += len(fresh)
        state.repeated += len(repeated)
        state.failures, state.not_before, state.problem = 0, 0.0, answer.problem
        state.cursor, state.last_answer = answer.cursor, utc(self.clock())
        state.next_poll = now + max(self.config.interval * random.uniform(1, 1.1), answer.wait_seconds)
        return rows

    def _answered(self, items: list[Item]) -> Iterator[Row]:
        texts = [_text(item, self.config.text) for item in items]
        records: list[Any] = [Record(text=text, id=item.id) for text, item in zip(texts, items, strict=True)]
        lines = {task: answers(self.engine, task, records, truncate=True) for task in self.config.tasks}
        seen = utc(self.clock())
        for place, item in enumerate(items):
            for task in self.config.tasks:
                self._record(task, texts[place], lines[task][place])
                row = _row(item, task, lines[task][place], seen)
                if not item.published or item.published >= days_ago(self.clock(), KEPT_DAYS):
                    row["alert"] = fired(self.config.alerts.rules, row)  # old news raises no alert
                yield row

    def _record(self, task: str, text: str, line: dict[str, Any]) -> None:
        """Record an answer like the service does, so that feedback and drift include it."""
        if self.recorder and "error" not in line:
            answer = Prediction(line["prediction"], line.get("probabilities"))
            adapter = self.engine.adapter
            model = adapter.resolve().name if adapter else self.engine.base_name  # the service's name for it
            self.recorder.record(task, text, answer, model=model)

    def _alert(self) -> None:
        now = self.clock().timestamp()
        if not (self.hook and self.pending) or now < self._next_alert:
            return
        oldest = days_ago(self.clock(), KEPT_DAYS)
        self.pending[:] = [row for row in self.pending if row["seen"] >= oldest]
        most = self.config.alerts.max_per_round
        arrived, why = deliver(self.store, self.hook, self.pending, self.clock(), most)
        # A receiver that is down gets pauses, each longer than the last.
        self._alert_failures = self._alert_failures + 1 if why else 0
        pause = min(_LONGEST_BACK_OFF, 15.0 * 2 ** min(self._alert_failures - 1, 16))
        self._next_alert = now + pause if why else 0.0
        if self.view:
            self.view.alerted(arrived, why)


def run_live(model_path: Any, config: LiveConfig, *, once: bool) -> int:
    """Run `fintune live`; return the number of new items.

    Args:
        once: poll each source once, then stop.

    Raises:
        FintuneError: a setting is wrong, the folder is in use, or, with `once`, no source answered.
    """
    hook = None
    if config.alerts.webhook:
        hook = Webhook(config.alerts.webhook, session(networks(config.alerts.allow_networks), config.proxy))
    providers = providers_of(config)
    recorder = None
    if os.environ.get("FINTUNE_STORE"):
        from fintune.monitoring.recorder import Recorder

        recorder = Recorder.from_environment(model_path)
    engine = Engine.load(model_path)
    with Store(config.output) as store, View(config.tasks, live=not once) as view:
        run = LiveRun(engine, config, store, providers, hook=hook, view=view, recorder=recorder)
        try:
            if not once:
                run.forever()
            rows = run.round(everything=True)
        finally:
            if recorder:
                recorder.close()
        for line in problems(run.states.values()):
            view.note(line)
        if all(state.failures or state.gone for state in run.states.values()):
            raise FintuneError(f"No source answered: {'; '.join(problems(run.states.values()))}.")
    return len({row["id"] for row in rows})


def problems(states: Iterable[SourceState]) -> list[str]:
    """A line for each source with a problem."""
    return [f"{state.title}: {state.problem}" for state in states if state.problem]


def _check_tasks(engine: Engine, config: LiveConfig) -> None:
    for name in config.tasks:
        task = engine.tasks[name]
        if "question" in task.inputs:
            raise ConfigError(f"--tasks has {name}, which needs a question: leave it out.")
        if why := task.obstacle():
            raise ModelError(
                f"--tasks has {name}, which this model cannot answer: give --model_path another. {why}"
            )
    for rule in config.alerts.rules:
        if rule.task not in config.tasks:
            if "rules" in config.alerts.model_fields_set:
                raise ConfigError(
                    f"alerts.rules names the task {rule.task}, which is not among --tasks "
                    f"{','.join(config.tasks)}: add it there, or remove the rule."
                )
            continue
        task = engine.tasks[rule.task]
        if rule.label and task.one_of and rule.label not in task.one_of:
            raise ConfigError(
                f"alerts.rules names the label {rule.label!r}, which {rule.task} does not have: "
                f"its labels are {', '.join(task.one_of)}."
            )


def _text(item: Item, what: str) -> str:
    if what == "title" or not item.summary:
        return item.title
    return item.summary if item.summary.startswith(item.title) else f"{item.title}. {item.summary}"


def _row(item: Item, task: str, line: dict[str, Any], seen: str) -> Row:
    """An answer as a row of the store."""
    value = line.get("prediction")
    shares = line.get("probabilities")
    number = value if isinstance(value, float) else None
    bounds = line.get("interval")
    return {
        "id": item.id,
        "seen": seen,
        "published": item.published,
        "source": item.source,
        "symbols": " ".join(item.symbols),
        "title": item.title,
        "summary": item.summary,
        "link": item.link,
        "task": task,
        "prediction": None if value is None or number is not None else str(value),
        "value": number,
        "confidence": shares.get(value) if shares and number is None else None,
        "low": float(bounds[0]) if bounds else None,
        "high": float(bounds[1]) if bounds else None,
        "probabilities": json.dumps(shares, ensure_ascii=False) if shares else None,
        "alert": "",
        "error": line.get("error"),
    }
