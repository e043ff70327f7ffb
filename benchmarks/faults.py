"""64 clients of a real server while everything around it fails: nothing answered may be lost or wrong.

    python benchmarks/faults.py [--quick | --minutes 10] [--json PATH] [--seed N] [--faults NAME …]

`fintune serve` on a small random base, with adapters, keys and a store, is asked for labels and greedy texts.
The faults of `FAULTS` and `COMMANDS` come in turn, each time in another order. Every answer is compared with
what the same server said when nothing else ran: texts word for word, numbers to 1e-5. Requests are

- answered: with 200, and as expected;
- wrong: with 200, and anything else;
- refused: with 429 or 503 and `Retry-After`, or because the adapter that is asked for cannot be used;
- cut: by a server that this script had killed or stopped;
- lost: whatever else becomes of one.

A full disk is a limit on the size of files (RLIMIT_FSIZE), which needs no root.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import psutil
from harness import parser, save

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "live")]
from adapter_folders import (  # noqa: E402
    CONFIG,
    WEIGHTS,
    changed,
    make_random_adapter,
    make_tiny_base,
)
from feed_server import Reply, Server, rss  # noqa: E402
from forked import Forked, fintune  # noqa: E402

CLIENTS, TIMEOUT = 64, 120.0
TASKS = {name: {"dataset": "sample", "max_train": 8, "max_validation": 2, "max_test": 2} for name in
         ("sentiment", "headline", "qa")}  # fmt: skip
RECIPE: dict[str, Any] = {
    "multi_task": {"task_weights": dict.fromkeys(TASKS, 1.0)},  # no public data, wherever there is some
    "lora_config": {"r": 4, "lora_alpha": 8},
    "training": {"bf16": False, "max_length": 256, "max_steps": 3, "warmup_steps": 0, "learning_rate": 0.05},
    "evaluation": {"formats": {"qa": {"max_new_tokens": 8}}},
}


def alike(a: Any, b: Any) -> bool:
    """Whether two answers say the same; what names one request, not its answer, is left out."""
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = ({k: v for k, v in x.items() if k not in ("prediction_id", "id", "created")} for x in (a, b))
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return abs(a - b) <= 1e-5 if isinstance(a, float) and isinstance(b, float) else bool(a == b)


class World:
    """A server with its folders, the clients' counts, and what was found wrong."""

    def __init__(self, folder: Path, seed: int, hold: float, trained: bool) -> None:
        """Args: trained: its two adapters are trained, as `average` wants; random ones are there sooner."""
        from fintune.data.raw.sample import sample_records
        from fintune.serving import keys

        self.folder, self.random, self.hold = folder, random.Random(seed), hold
        self.base = make_tiny_base(folder / "base")
        raw = {**RECIPE, "data": {"prepared_dir": str(folder / "prepared"), "tasks": TASKS}}
        recipe = {**raw, "base_model": {"name": str(self.base)}}
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        self.teams = folder / "teams"
        for seed, name in enumerate("ab", 1):
            if not trained:
                make_random_adapter(self.base, self.teams / name, seed, **raw)
                continue
            command = ["train", "--config", str(folder / "recipe.yaml"), "--set", f"training.seed={seed}"]
            code, said = finish(Forked(fintune, [*command, "--output_dir", str(self.teams / name)]))
            assert code == 0, said
        self.keys = [keys.create(folder / "keys.json", f"team{i}") for i in range(5)]
        self.greedy = self.keys.pop()
        self.titles = sorted({record.text for record in sample_records("headline")})[:24]
        self.counts: Counter[tuple[str, str]] = Counter()
        self.fault, self.told = "none", list[str]()
        self.downs: list[list[float]] = []
        """When the server was not there, by this script's doing: [from, until, whether by kill -9].

        Stopped by SIGTERM it has still to answer what came before.
        """
        self.memory: list[float] = []
        self.expected: list[tuple[str, dict[str, Any], Any]] = []
        self.log: deque[str] = deque(maxlen=40)
        self.server: subprocess.Popen[str] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.sqlite = folder / "store.sqlite"
        self.runs = runs(self)

    def start(self, store: str = "") -> None:
        """Start the server; returns when it answers."""
        command = [sys.executable, "-m", "fintune.cli", "serve", "--port", str(self.port)]
        command += ["--model_path", str(self.teams / "a"), "--adapters", str(self.teams)]
        command += ["--keys", str(self.folder / "keys.json"), "--max_adapters", "6"]
        kept = {"FINTUNE_STORE": store or f"sqlite:///{self.sqlite}", "FINTUNE_KEEP_PREDICTIONS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(command, env={**os.environ, **kept}, cwd=self.folder, **pipes)
        threading.Thread(target=lambda s: self.log.extend(s), args=(self.server.stderr,), daemon=True).start()
        for line in self.server.stdout or ():
            if re.search(r"is at http", line):
                return
        raise SystemExit("the server did not start:\n" + "".join(self.log))

    async def restart(self, kill: bool, store: str = "") -> None:
        """End the server, by kill -9 or by SIGTERM, and start it again."""
        assert self.server is not None
        self.downs.append([time.monotonic(), float("inf"), kill])
        self.server.kill() if kill else self.server.terminate()
        await asyncio.to_thread(self.server.wait)
        await asyncio.to_thread(self.start, store)
        self.downs[-1][1] = time.monotonic() + 0.5

    def resident(self) -> float:
        assert self.server is not None
        return float(psutil.Process(self.server.pid).memory_info().rss / 2**20)

    def wrong(self, what: str) -> None:
        """Note what a fault has broken."""
        self.counts[self.fault, "wrong"] += 1
        self.told.append(f"{self.fault}: {what}")

    async def ask(self, http: Any, path: str, body: Any, key: str) -> Any:
        """The response, or None where there was none; what is neither an answer nor a refusal is counted."""
        import httpx

        begun, fault = time.monotonic(), "greedy caller" if key == self.greedy else self.fault
        try:
            headers = {"Authorization": f"Bearer {key}"}
            response = await http.post(self.url + path, json=body, headers=headers)
        except httpx.TransportError as error:
            now = time.monotonic()
            never = isinstance(error, httpx.ConnectError)  # began before, and came too late to be taken
            cut = any(
                (now if kill or never else begun) >= since and begun <= until
                for since, until, kill in self.downs
            )
            self.counts[fault, "cut" if cut else "lost"] += 1
            if not cut:
                self.told.append(f"{fault}: {path} got {error!r}")
            return None
        told = response.status_code in (429, 503) and "retry-after" in response.headers
        if told or (body.get("model") not in ("a", "b") and '"model_error"' in response.text):
            self.counts[fault, "refused"] += 1
        elif response.status_code >= 500:
            self.counts[fault, "lost"] += 1
            self.told.append(f"{fault}: {path} got {response.status_code} {response.text[:300]}")
        return response

    async def quiet(self, http: Any) -> None:
        """What the server answers when it has nothing else to do."""
        bodies: list[tuple[str, dict[str, Any]]] = []
        for i, text in enumerate(self.titles):
            model = "ab"[i % 2]
            bodies.append(
                (f"/v1/tasks/{('sentiment', 'headline')[i // 2 % 2]}", {"text": text, "model": model})
            )
        for model in "ab":
            inputs = [{"text": text} for text in self.titles[:8]]
            bodies.append(("/v1/tasks/headline", {"inputs": inputs, "model": model}))
            question = {"text": " ".join(self.titles[:3]), "question": "What rose?", "model": model}
            bodies.append(("/v1/tasks/qa", question))
            prompt = {"prompt": " ".join(self.titles[3:6]), "max_tokens": 12, "model": model}
            bodies.append(("/v1/completions", prompt))
        for path, body in bodies:
            response = await http.post(
                self.url + path, json=body, headers={"Authorization": f"Bearer {self.keys[0]}"}
            )
            assert response.status_code == 200, response.text
            self.expected.append((path, body, response.json()))

    async def client(self, http: Any, number: int, end: asyncio.Event) -> None:
        """Ask, compare, and ask again."""
        own = random.Random(number)
        while not end.is_set():
            path, body, expected = own.choice(self.expected)
            fault = self.fault
            response = await self.ask(http, path, body, self.keys[number % len(self.keys)])
            if response is None or response.status_code in (429, 503):
                await asyncio.sleep(float(response.headers.get("retry-after", 1)) if response else 0.5)
            elif response.status_code < 500:
                same = response.status_code == 200 and alike(response.json(), expected)
                self.counts[fault, "answered" if same else "wrong"] += 1
                if not same:
                    self.told.append(f"{fault}: {path} {body} got {response.text[:300]}")


# Faults around the server ---------------------------------------------------------------------------


async def hostile_adapter(world: World, http: Any) -> None:
    """Another team's folder that asks for more than an adapter may, or is damaged, and is asked for."""

    def wide(state: Any) -> Any:
        return {name: value.repeat(2, 1) if "lora_A" in name else value for name, value in state.items()}

    kinds: list[dict[str, Any]] = [
        {"config": {"init_lora_weights": "pissa_niter_4"}},
        {"config": {"layer_replication": [[0, 2], [0, 2]]}},
        {"config": {"r": 10**9}},
        {"config": {"modules_to_save": ["lm_head"]}},
        {"weights": wide},
        {"manifest": {"weights_sha256": "0" * 64}},
    ]
    for kind in [*kinds, {}]:
        folder = changed(world.teams / "a", world.folder / "aside", **kind)
        if not kind:  # damage anywhere
            file = folder / world.random.choice([CONFIG, WEIGHTS])
            content = file.read_bytes()
            file.write_bytes(content[: world.random.randrange(len(content))])
        hostile = folder.rename(world.teams / "hostile")
        response = await world.ask(
            http, "/v1/tasks/headline", {"text": "Up.", "model": "hostile"}, world.keys[0]
        )
        if response is not None and response.status_code < 400:
            world.wrong(f"a hostile adapter {kind} answered")
        shutil.rmtree(hostile)


async def locked_database(world: World, http: Any) -> None:
    """Another process keeps the store's file locked."""
    other = sqlite3.connect(world.sqlite, isolation_level=None, timeout=30)
    other.execute("BEGIN EXCLUSIVE")
    await asyncio.sleep(world.hold)
    other.execute("ROLLBACK")
    other.close()


async def silent_database(world: World, http: Any) -> None:
    """A PostgreSQL that accepts connections and says nothing, from a server's start to its end."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        await world.restart(False, f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x")
        await asyncio.sleep(world.hold)
        await world.restart(False)


async def full_disk(world: World, http: Any) -> None:
    """No file of the server can grow; and a command meets the same."""
    assert world.server is not None
    process = psutil.Process(world.server.pid)
    process.rlimit(psutil.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    out = world.folder / "full"
    arguments = [*world.runs["average"][:-1], str(out)]
    code, said = await asyncio.to_thread(finish, Forked(limited, arguments))
    if code == 0 or "Traceback" in said or out.exists():
        world.wrong(f"average on a full disk ended with {code}: {said[-500:]}")
    await asyncio.sleep(world.hold)
    process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def raw(world: World, path: str, body: Any) -> bytes:
    """A request as bytes, for clients that behave badly."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.keys[1]}\r\n"
    return (
        f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )


async def slow_readers(world: World, http: Any) -> None:
    """Clients that ask for streams and do not read them, and clients that send a byte now and then."""
    body = {"prompt": world.titles[0], "max_tokens": 400, "stream": True, "temperature": 1.0}
    request = raw(world, "/v1/completions", body)
    opened = [await asyncio.open_connection("127.0.0.1", world.port, limit=1) for _ in range(16)]
    for i, (_, writer) in enumerate(opened):
        writer.write(request if i % 2 else request[:40])
    await asyncio.sleep(world.hold)
    for _, writer in opened:
        writer.close()


async def vanishing_clients(world: World, http: Any) -> None:
    """Clients that ask for much, and go."""
    end = time.monotonic() + world.hold
    chat = {"messages": [{"role": "user", "content": " ".join(world.titles) * 3}], "max_tokens": 400}
    while time.monotonic() < end:
        request = raw(world, "/v1/chat/completions", chat)
        for _ in range(4):
            _, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(request)
            await asyncio.sleep(world.random.uniform(0, 0.1))
            writer.transport.abort()
        await asyncio.sleep(0.2)


async def greedy_key(world: World, http: Any) -> None:
    """One key with 8 connections, each with 128 texts a request."""
    end = time.monotonic() + world.hold
    body = {"inputs": [{"text": text} for text in world.titles * 6][:128], "model": "b"}

    async def ask() -> None:
        while time.monotonic() < end:
            await world.ask(http, "/v1/tasks/sentiment", body, world.greedy)

    await asyncio.gather(*(ask() for _ in range(8)))


async def killed_server(world: World, http: Any) -> None:
    """kill -9, and a start on the same port with the same store."""
    await world.restart(True)


# Commands that are killed ---------------------------------------------------------------------------


def runs(world: World) -> dict[str, list[str]]:
    """The commands that are killed; the last argument of each is the folder it writes."""
    teams = world.teams
    return {
        "train": ["train", "--config", f"{world.folder / 'recipe.yaml'}", "--overwrite", "--output_dir",
                  f"{teams / 'trained'}"],
        "average": ["average", f"{teams / 'a'}", f"{teams / 'b'}", "--output_dir", f"{teams / 'mean'}"],
        "export": ["export", "--model_path", f"{teams / 'a'}", "--output_dir", f"{world.folder / 'merged'}"],
        "live": ["live", "--once", "--model_path", f"{teams / 'a'}", "--allow_network", "127.0.0.0/8",
                 "--tasks", "headline", "--feed", "URL", "--output", f"{world.folder / 'live'}"],
    }  # fmt: skip


def limited(arguments: list[str]) -> int:
    """A command that can write no file of more than 20 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return int(fintune(arguments) or 0)


def finish(process: Forked) -> tuple[int, str]:
    """The exit code of a command, and what it wrote."""
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reading.start()
    said += list(process.stdout)
    code = process.wait(TIMEOUT)
    reading.join(5)
    return code, "".join(said)


def content(out: Path) -> Any:
    """What a folder holds, to be compared: live answers, or the hash of its weights; None without any."""
    if out.name == "live":
        from fintune.live.store import Store

        rows = Store(out).rows(columns=["title", "prediction", "confidence"])
        return sorted((row["title"], row["prediction"], round(row["confidence"], 4)) for row in rows)
    found = sorted(out.glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in found] or None


async def killed(world: World, http: Any, name: str, expected: dict[str, Any]) -> None:
    """kill -9 at a random moment, often just after it began to write; then a check, and the same again."""
    *_, target = world.runs[name]
    out = Path(target)
    if name != "train" or world.random.random() < 0.5:
        shutil.rmtree(out, ignore_errors=True)
    process, begun = Forked(fintune, world.runs[name]), time.monotonic()
    drain = asyncio.create_task(asyncio.to_thread(finish, process))
    before = set(out.parent.glob(f".{out.name}*"))
    moment = begun + world.random.uniform(0, expected[f"{name} seconds"])
    on_writing = world.random.random() < 0.6
    while process.poll() is None and (on_writing or time.monotonic() < moment):
        if on_writing and (set(out.parent.glob(f".{out.name}*")) - before or out.exists()):
            await asyncio.sleep(world.random.uniform(0, 0.5))
            break
        await asyncio.sleep(0.005)
    process.kill()
    await drain
    if out.parent == world.teams:
        await served(world, http, out.name, expected)
    found = content(out)
    if name == "export" and out.exists() and found != expected[name]:
        world.wrong(f"{out} is neither whole nor gone: {found}")
    if name == "live" and not set(found) <= set(expected[name]):
        world.wrong(f"live answers differ: {set(found) - set(expected[name])}")
    if name in ("average", "export"):
        shutil.rmtree(out, ignore_errors=True)
    code, said = await asyncio.to_thread(finish, Forked(fintune, world.runs[name]))
    if code or content(out) != expected[name]:
        world.wrong(f"{name} again ended with {code}, or wrote something else: {said[-1000:]}")
    if out.parent == world.teams:
        await served(world, http, out.name, expected)


async def served(world: World, http: Any, model: str, expected: dict[str, Any]) -> None:
    """The running server answers with the adapter as it should be, or refuses it in a sentence."""
    body = {"text": world.titles[0], "model": model}
    response = await world.ask(http, "/v1/tasks/headline", body, world.keys[0])
    if response is None or response.status_code >= 400:
        return
    if model not in expected:
        expected[model] = response.json()
    elif not alike(response.json(), expected[model]):
        world.wrong(f"the adapter {model} answered {response.text}")


async def first_runs(world: World, http: Any, chosen: list[str]) -> dict[str, Any]:
    """What the commands write when nobody kills them, and how long they take."""
    expected: dict[str, Any] = {}
    for name, command in world.runs.items():
        if name not in chosen:
            continue
        begun = time.monotonic()
        code, said = await asyncio.to_thread(finish, Forked(fintune, command))
        if code:
            raise SystemExit(f"{name} ended with {code}:\n{said[-3000:]}")
        expected[name] = content(Path(command[-1]))
        expected[f"{name} seconds"] = time.monotonic() - begun
        if Path(command[-1]).parent == world.teams:
            await served(world, http, Path(command[-1]).name, expected)
    return expected


FAULTS = {
    each.__name__: each
    for each in (hostile_adapter, locked_database, silent_database, full_disk, slow_readers,
                 vanishing_clients, greedy_key, killed_server)
}  # fmt: skip
COMMANDS = ("train", "average", "export", "live")
OUTCOMES = ("answered", "refused", "cut", "lost", "wrong")


async def run(world: World, seconds: float, chosen: list[str]) -> None:
    """Clients all the time, and fault after fault until the time is over; each at least once."""
    import httpx

    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200, keepalive_expiry=2)
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT) as http:
        await world.quiet(http)
        expected = await first_runs(world, http, chosen)
        end = asyncio.Event()
        clients = [asyncio.create_task(world.client(http, i, end)) for i in range(CLIENTS)]
        await asyncio.sleep(world.hold)
        world.memory.append(world.resident())
        until, first = time.monotonic() + seconds, True
        while first or time.monotonic() < until:
            for name in world.random.sample(chosen, len(chosen)):
                if not first and time.monotonic() >= until:
                    break
                await asyncio.sleep(world.random.uniform(0, 1))
                world.fault, begun = name, time.monotonic()
                if name in FAULTS:
                    await FAULTS[name](world, http)
                else:
                    await killed(world, http, name, expected)
                world.memory.append(world.resident())
                shown = {
                    what: world.counts[name, what] for what in ("answered", "refused", "cut", "lost", "wrong")
                }
                print(f"{name:18} {time.monotonic() - begun:5.1f} s  {shown}", flush=True)
            first = False
        world.fault = "after"
        await asyncio.sleep(world.hold)
        end.set()
        await asyncio.gather(*clients)
        world.memory.append(world.resident())


def main() -> int:
    flags = parser(__doc__ or "", "each fault once", measure=1, data=False)
    flags.add_argument("--minutes", type=float, default=10, help="(default: 10)")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--faults", nargs="+", choices=[*FAULTS, *COMMANDS], default=[*FAULTS, *COMMANDS])
    args = flags.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Server() as news:
        world = World(Path(folder), args.seed, 2 if args.quick else 8, "average" in args.faults)
        news.routes["/feed"] = Reply(rss(*world.titles))
        world.runs["live"][-3] = f"{news.url}/feed"
        os.chdir(folder)
        world.start()
        try:
            asyncio.run(run(world, 0 if args.quick else 60 * args.minutes, args.faults))
        finally:
            assert world.server is not None
            world.server.kill()
            world.server.wait()
        os.chdir(Path(__file__).parent)
    flat: dict[str, float] = {
        what: sum(n for (_, kind), n in world.counts.items() if kind == what) for what in OUTCOMES
    }
    memory = {"begin_mib": world.memory[0], "end_mib": world.memory[-1], "max_mib": max(world.memory)}
    flat |= {name: round(value, 1) for name, value in memory.items()}
    flat |= {"seconds": round(time.monotonic() - begun, 1)}
    flat |= {f"{fault}_{what}": n for (fault, what), n in sorted(world.counts.items())}
    print("\n".join(world.told[:20]))
    print("  ".join(f"{name} {value:g}" for name, value in list(flat.items())[:9]))
    save(args.json, flat)
    return int(flat["lost"] + flat["wrong"] > 0 or not flat["answered"])


if __name__ == "__main__":
    sys.exit(main())
