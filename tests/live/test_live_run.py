"""A whole live run on loopback: real feeds, a real model, and whatever can go wrong between them."""

import json
import os
import shutil
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feed_server import Reply, rss
from forked import Forked

from fintune.cli import main
from fintune.errors import ConfigError, DataError, ModelError
from fintune.live import page
from fintune.live.alerts import SECRET, Webhook
from fintune.live.config import load_live_config
from fintune.live.items import Item, Poll
from fintune.live.run import LiveRun, providers_of
from fintune.live.seen import Seen
from fintune.live.store import Store

START = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
TASKS = ["headline", "sentiment", "regression"]


class Clock:
    def __init__(self, moment=START):
        self.moment = moment

    def __call__(self):
        return self.moment

    def forward(self, **by):
        self.moment += timedelta(**by)


class Wire:
    """A provider of our own."""

    name = "wire"

    def __init__(self, *titles, fail=False):
        self.titles, self.fail = titles, fail

    def poll(self, cursor):
        if self.fail:
            raise KeyError("its own mistake")
        place = cursor.get("place", 0)
        items = [Item(id=title, source="Wire", title=title) for title in self.titles[place:]]
        return Poll(items, {"place": len(self.titles)})


@pytest.fixture
def config(server, tmp_path):
    def made(**changes):
        feeds = {"feeds": [f"{server.url}/feed"]}
        base = {"output": str(tmp_path / "live"), "tasks": TASKS, "allow_networks": ["127.0.0.0/8"]}
        return load_live_config(None, {**feeds, **base, **changes})

    return made


@pytest.fixture
def started(engine, config):
    """A function: changes → a run and its clock, in a store that stays open until the test ends."""
    stores = []

    def start(*, providers=None, hook=None, clock=None, **changes):
        for store in stores:
            store.__exit__()
        settings = config(**changes)
        stores[:] = [Store(settings.output).__enter__()]
        clock = clock or Clock()
        return LiveRun(
            engine, settings, stores[0], providers or providers_of(settings), hook=hook, clock=clock
        )

    yield start
    for store in stores:
        store.__exit__()


def titles(rows):
    return list(dict.fromkeys(row["title"] for row in rows))


def test_an_item_is_answered_as_fintune_predict_answers_it(server, started, engine):
    server.routes["/feed"] = Reply(rss("Acme raises guidance $ACM"))
    run = started()
    rows = {row["task"]: row for row in run.round()}
    expected = {task: engine.answer(task, "Acme raises guidance $ACM") for task in TASKS}
    assert rows["headline"]["prediction"] == expected["headline"].value
    shares = expected["headline"].probabilities
    assert rows["headline"]["confidence"] == pytest.approx(max(shares.values()), abs=1e-6)
    assert rows["regression"]["value"] == pytest.approx(expected["regression"].value, abs=1e-4)
    assert rows["regression"]["low"] <= rows["regression"]["high"]
    assert (rows["sentiment"]["symbols"], rows["sentiment"]["seen"]) == ("ACM", "2026-03-02T15:00:00+00:00")
    assert list(run.store.rows()) == list(rows.values())


def test_answers_are_kept_in_the_database_of_the_service_too_and_its_loss_stops_nothing(
    server, started, tmp_path
):
    pytest.importorskip("sqlalchemy", reason="the extra monitor is not installed")
    from fintune.monitoring.recorder import Recorder
    from fintune.monitoring.store import PREDICTIONS
    from fintune.monitoring.store import Store as Database

    server.routes["/feed"] = Reply(rss("Acme raises guidance"))
    database = Database.open(f"sqlite:///{tmp_path}/kept.db", keep=True)
    run = started()
    run.recorder = Recorder(store=database)
    rows = run.round()
    assert {task: seen[0].label for task, seen in database.observations(10).items() if seen[0].label} == {
        row["task"]: row["prediction"] for row in rows if row["prediction"]
    }
    with database.database.begin() as connection:
        PREDICTIONS.drop(connection)
    server.routes["/feed"] = Reply(rss("Acme lowers guidance"))
    run.clock.forward(hours=1)
    assert titles(run.round()) == ["Acme lowers guidance"]
    database.close()


def test_repetitions_exact_and_near_are_answered_once(server, started):
    long = "Acme Corporation raises its full year guidance after a strong second quarter in Europe"
    copies = [long, f"{long} - Wire", long.upper(), long.replace("second", "third")]
    server.routes["/feed"] = Reply(rss(*copies))
    run = started()
    assert len(titles(run.round())) == 2  # another quarter is another piece of news
    (state,) = run.states.values()
    assert (state.items, state.repeated) == (2, 2)


def test_a_source_is_polled_when_its_time_has_come_and_not_before(server, started):
    server.routes["/feed"] = Reply(rss("One"))
    run = started(interval=300)
    run.round()
    run.clock.forward(seconds=299)
    run.round()
    assert len(server.seen) == 1
    run.clock.forward(seconds=35)
    run.round()
    assert len(server.seen) == 2


def test_an_outage_is_waited_out_with_growing_pauses_and_loses_nothing(server, started):
    server.routes["/feed"] = Reply(rss("Before"))
    run = started(interval=60)
    run.round()
    server.routes["/feed"] = Reply(b"down", status=503)
    pauses = []
    for _ in range(4):
        (state,) = run.states.values()
        run.clock.moment = datetime.fromtimestamp(state.next_poll + 1, UTC)
        run.round()
        pauses.append(state.next_poll - run.clock().timestamp())
    assert [30 * 2**i <= pause <= 60 * 2**i for i, pause in enumerate(pauses)] == [True] * 4
    assert (state.failures, state.problem) == (4, "HTTP 503")
    server.routes["/feed"] = Reply(rss("During the outage", "Before"))
    run.clock.forward(hours=1)
    assert titles(run.round()) == ["During the outage"]
    assert (state.failures, state.problem) == (0, "")


def test_retry_after_holds_even_when_asked_to_poll_everything(server, started):
    server.routes["/feed"] = Reply(status=429, headers={"Retry-After": "7200"})
    run = started(interval=60)
    run.round(everything=True)
    run.clock.forward(seconds=7000)
    run.round(everything=True)
    assert len(server.seen) == 1
    run.clock.forward(seconds=300)
    run.round(everything=True)
    assert len(server.seen) == 2


def test_a_new_process_goes_on_where_the_last_one_ended(server, started):
    def answer(method, path, headers, body):
        return Reply(status=304) if "if-none-match" in headers else Reply(rss("One"), headers={"ETag": "x"})

    server.routes["/feed"] = answer
    assert titles(started().round()) == ["One"]
    clock = Clock()
    clock.forward(hours=2)
    again = started(clock=clock)
    assert again.round() == []
    assert server.seen[-1][2]["if-none-match"] == "x"


@pytest.mark.parametrize("moved", [1, 2])
def test_a_day_that_a_killed_process_has_moved_aside_comes_back(tmp_path, monkeypatch, moved):
    """The day's files are joined in a new folder, which takes the old one's place; killed at each rename."""
    rows = [{"id": str(i), "seen": "2026-03-02T15:00:00+00:00", "task": "headline"} for i in range(3)]
    with Store(tmp_path) as store:
        for row in rows:
            store.write([row])
    real, calls = os.replace, []

    def killed(*given):
        calls.append(given)
        if len(calls) > moved:
            os._exit(9)
        real(*given)

    if (child := os.fork()) == 0:
        os.replace = killed
        shutil.rmtree = lambda *_, **__: None
        Store(tmp_path).__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    with Store(tmp_path) as store:
        assert sorted(row["id"] for row in store.rows()) == ["0", "1", "2"]
    assert [path.name for path in store.answers.iterdir()] == ["day=2026-03-02"]


def test_a_line_that_a_crash_has_cut_swallows_no_other(tmp_path):
    with Store(tmp_path) as store:
        store.log_alert({"alert": "a.headline", "time": "now", "delivered": True})
        path = tmp_path / "alerts.jsonl"
        path.write_bytes(path.read_bytes() + b'{"alert": "b.headline", "ti')
        store.log_alert({"alert": 'own "c".headline', "time": "now", "refused": "HTTP 400\u2028"})
        assert store.settled_alerts() == {"a.headline", "b.headline", 'own "c".headline'}
        path.write_bytes(b'{"alert": "a.headline", "ti{"alert": "b.headline", "time": "now"}\n{"alert": "c')
        assert store.settled_alerts() == {"a.headline", "b.headline"}  # as an earlier version glued them


def test_one_id_from_two_sources_is_two_items(server, started):
    server.routes["/feed"] = Reply(rss("Acme profit rises"))
    other = rss("Globex files for bankruptcy").replace(
        b">Globex files for bankruptcy</guid>", b">Acme profit rises</guid>"
    )
    server.routes["/other"] = Reply(other)
    feeds = [f"{server.url}/feed", f"{server.url}/other"]
    assert len({row["id"] for row in started(feeds=feeds).round()}) == 2
    wires = [Wire("Initech opens a plant"), Wire("Initech opens a plant")]
    wires[1].name, wires[1].poll = (
        "evil",
        lambda _: Poll([Item("Initech opens a plant", "Evil", "Buy gold now")]),
    )
    run = started(providers=wires[::-1])
    assert {row["title"] for row in run.round()} == {"Initech opens a plant", "Buy gold now"}


def test_a_process_killed_between_answer_and_cursor_repeats_nothing(server, started, monkeypatch):
    server.routes["/feed"] = Reply(rss("One", "Two"), headers={"ETag": "x"})
    run = started()

    def killed(states):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.store, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        run.round()
    again = started()
    assert again.round() == []
    assert "if-none-match" not in server.seen[-1][2]
    assert sorted(titles(again.store.rows())) == ["One", "Two"]


def test_one_bad_source_does_not_keep_the_others_from_coming(server, started, config):
    broken = Wire(fail=True)
    broken.name = "broken"
    run = started(providers=[broken, Wire("Acme wins an order")])
    assert titles(run.round()) == ["Acme wins an order"]
    assert "KeyError" in run.states["broken"].problem


def test_two_processes_do_not_write_to_one_folder(started, config, server):
    server.routes["/feed"] = Reply(rss("One"))
    started()
    with pytest.raises(DataError, match="Another fintune live"), Store(config().output):
        pass


def test_alerts_wait_for_a_receiver_that_is_down_and_arrive_once(server, started, web, monkeypatch):
    monkeypatch.setenv(SECRET, "a secret of our own")
    server.routes["/feed"] = Reply(rss("Acme falls", "Bolt falls"))
    server.routes["/hook"] = Reply(status=500)
    rules = [{"task": "sentiment", "label": label, "probability": 0} for label in ("positive", "negative")]
    rules.append({"task": "sentiment", "label": "neutral", "probability": 0})
    settings = {"tasks": ["sentiment"], "alerts.rules": rules}
    hook = Webhook(f"{server.url}/hook", web, sleep=lambda seconds: None)
    run = started(hook=hook, **settings)
    run.round()
    assert len(run.pending) == 2
    server.routes["/hook"] = Reply(status=200)
    clock = Clock()
    clock.forward(minutes=5)
    again = started(hook=hook, clock=clock, **settings)  # a new process knows what is still to be sent
    sent = len(server.seen)
    again.round()
    again.round()
    delivered = [json.loads(body) for _, path, _, body in server.seen[sent:] if path == "/hook"]
    assert sorted(alert["title"] for alert in delivered) == ["Acme falls", "Bolt falls"]
    assert started(hook=hook, clock=clock, **settings).pending == []


def test_old_news_alarms_nobody(server, started, web, monkeypatch):
    monkeypatch.setenv(SECRET, "a secret of our own")
    server.routes["/feed"] = Reply(rss("Acme falls", date="Thu, 26 Feb 2026 15:00:00 GMT"))
    rules = [{"task": "regression", "move": 1e-9}]
    hook = Webhook(f"{server.url}/hook", web)
    run = started(hook=hook, tasks=["regression"], **{"alerts.rules": rules})
    assert len(run.round()) == 1
    assert run.pending == []


def test_days_that_are_over_become_one_file(server, started, config):
    run = started(providers=[Wire("One")])
    run.round()
    started(providers=[Wire("One", "Two")], clock=Clock(START + timedelta(hours=1))).round()
    day = Path(config().output) / "answers" / "day=2026-03-02"
    before = [row["title"] for row in run.store.rows()]
    assert len(list(day.glob("*.parquet"))) == 2
    started()
    assert len(list(day.glob("*.parquet"))) == 1
    assert [row["title"] for row in run.store.rows()] == before


def test_memory_of_what_was_seen_is_bounded_but_what_a_feed_shows_stays():
    seen = Seen(0.8, generation=10)
    kept = Item(id="kept", source="", title="A standing notice of the exchange")
    for i in range(100):
        new, _ = seen.fresh([kept, Item(id=str(i), source="", title=f"Item number {i} of many others")])
        assert [item.id for item in new if item.id == "kept"] == (["kept"] if i == 0 else [])
    assert "5" not in seen
    assert len(seen._ids[0]) <= 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feeds": ["ftp://a.example/x"]}, "not a web address"),
        ({"feeds": ["https://a.example/x"] * 2}, "twice"),
        ({"feeds": []}, "nothing to poll"),
        ({"interval": 1}, "interval"),
        ({"allow_networks": ["10.0.0.0/99"]}, "10.0.0.0/99"),
        ({"alerts.rules": [{"task": "headline"}]}, "either a label"),
        ({"alerts.hook": "x"}, "alerts.hook is not a known key"),
        ({"providers": [{"type": "absent.module:Wire"}]}, "absent"),
    ],
)
def test_a_wrong_setting_is_one_sentence(config, changes, says):
    with pytest.raises(ConfigError, match=says):
        providers_of(config(**changes))


def test_the_shipped_example_is_valid_and_every_key_of_it_counts():
    path = Path(__file__).parents[2] / "configs" / "live.yaml"
    config = load_live_config(path, {"alerts.webhook": "https://hooks.example/x", "interval": 60})
    assert (config.interval, config.alerts.webhook) == (60, "https://hooks.example/x")
    assert [rule.label for rule in config.alerts.rules] == ["bearish", "bullish"]
    assert len(providers_of(config)) == 2


def test_tasks_and_rules_the_model_does_not_know_are_refused_before_polling(engine, started):
    for changes, error, says in (
        ({"tasks": ["sentimnt"]}, DataError, "sentimnt"),
        ({"tasks": ["qa"]}, ConfigError, "question"),
        ({"alerts.rules": [{"task": "headline", "label": "bad"}]}, ConfigError, "bullish"),
        ({"tasks": ["headline"], "alerts.rules": [{"task": "qa", "move": 1}]}, ConfigError, "--tasks"),
    ):
        with pytest.raises(error, match=says):
            started(**changes)
    levels, engine.tasks["regression"].levels = engine.tasks["regression"].levels, []
    try:
        with pytest.raises(ModelError, match="--model_path"):
            started(tasks=["regression"])
    finally:
        engine.tasks["regression"].levels = levels


def test_the_page_has_items_newest_first_with_all_their_answers(server, started, config):
    assert page.rows(config().output) == []
    run = started(providers=[Wire("First news", "Second news")])
    run.round()
    found = page.rows(config().output, limit=1)
    assert [item["title"] for item in found] == ["Second news"]
    assert set(found[0]["answers"]) == set(TASKS)
    assert set(found[0]["answers"]["headline"]) == {"label", "confidence"}
    assert page.sources(config().output)[0]["items"] == 2
    assert page.scorecard(config().output) is None


@pytest.fixture
def tiny_default(tiny_base, tmp_path, monkeypatch):
    """A working folder whose default recipe names the tiny base."""
    (tmp_path / "configs").mkdir()
    recipe = f"base_model: {{name: {tiny_base}}}\ntraining: {{max_length: 128, bf16: false}}\n"
    (tmp_path / "configs" / "default.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)


def test_the_command_polls_once_and_says_what_it_found(server, tiny_default, capsys):
    server.routes["/feed"] = Reply(rss("Acme wins [bold]an order[/bold]"))
    command = ["live", "--once", "--feed", f"{server.url}/feed", "--output", "out", "--tasks", "headline"]
    assert main(command) == 1
    assert "private network" in capsys.readouterr().err
    assert main([*command, "--allow_network", "127.0.0.0/8"]) == 0
    assert "Acme wins [bold]an order[/bold] | headline " in capsys.readouterr().out
    assert [item["title"] for item in page.rows("out")] == ["Acme wins [bold]an order[/bold]"]


def heeding(command):
    # A shell's background jobs ignore the signal, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return main(command)


def test_a_run_goes_on_until_interrupted_and_leaves_a_whole_folder(server, tiny_default):
    server.routes["/feed"] = Reply(rss("First news"))
    command = ["live", "--feed", f"{server.url}/feed", "--output", "out"]
    command += ["--tasks", "headline", "--interval", "5", "--allow-network", "127.0.0.0/8"]
    process = Forked(heeding, command)
    try:
        for title in ("First news", "Second news"):
            deadline = time.monotonic() + 60
            while title not in [item["title"] for item in page.rows("out")]:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            server.routes["/feed"] = Reply(rss("Second news", "First news"))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert "Traceback" not in process.stderr.read()
    assert [item["title"] for item in page.rows("out")] == ["Second news", "First news"]
    assert page.sources("out")[0]["failures"] == 0
