"""Headlines a second over HTTP beside a naive server: FastAPI and `pipeline`, as people write it.

    python benchmarks/serving.py [--quick] [--json PATH] [--seconds S] [--clients 1 8 64 256] [--soak S]

Both servers run the same base model in the same dtype in turn, each alone in a process of its own, asked by
the same clients with the same headlines: every client sends its next request when it has the answer to the
last, and none once the time is over. Answers a second are all answers by the time until the last of them;
p50, p95 and p99 are of the answered requests, in milliseconds; refusals are counted apart. The naive server
(naive_server.py) has the model write the label (greedy, at most 4 tokens); fintune scores the three labels.
`throughput_vs_naive_64` is the ratio of answers a second at 64 clients.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import parser, save

from fintune.allocator import library, preload

TIMEOUT = 180.0


def headlines() -> list[str]:
    """Headlines of the built-in sample."""
    from fintune.data.raw.sample import sample_records

    return [record.text for record in sample_records("headline")]


async def ask(url: str, clients: int, seconds: float, texts: list[str]) -> dict[str, float]:
    """Let so many clients ask for so long; figures of what was answered."""
    import httpx

    taken: list[float] = []
    other = 0
    end = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def client(http: Any, i: int) -> None:
        nonlocal other
        while time.perf_counter() < end:
            begun = time.perf_counter()
            try:
                response = await http.post(url, json={"text": texts[i % len(texts)]})
            except httpx.TransportError:
                other += 1
                continue
            if response.status_code == 200:
                taken.append(time.perf_counter() - begun)
            else:
                other += 1
                await asyncio.sleep(float(response.headers.get("retry-after", 1)))
            i += clients

    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT) as http:
        begun = time.perf_counter()
        await asyncio.gather(*(client(http, i) for i in range(clients)))
        drained = time.perf_counter() - begun
    cuts = statistics.quantiles(taken, n=100) if len(taken) > 1 else [float("nan")] * 99
    figures = {"per_s": len(taken) / drained, "refused": float(other), "whole_s": drained}
    return figures | {f"p{p}_ms": 1000 * cuts[p - 1] for p in (50, 95, 99)}


def start(system: str) -> tuple[subprocess.Popen[str], str]:
    """A server process that answers, and the address to ask."""
    found = library()
    environment = {**os.environ, **(preload(found) if found else {})}
    folder = Path(tempfile.mkdtemp())
    if system == "fintune":
        command = [sys.executable, "-m", "fintune.cli", "serve", "--port", "0", "--insecure"]
    else:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, str(Path(__file__).with_name("naive_server.py")), str(port)]
    if system == "naive":
        return subprocess.Popen(command, env=environment, cwd=folder, text=True), (
            f"http://127.0.0.1:{port}/predict"
        )
    log = (folder / "stderr").open("w")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder
    )
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"is at (http://\S+:\d+) ", line):
            return process, f"{match[1]}/v1/tasks/headline"
    raise SystemExit(f"fintune serve did not start:\n{(folder / 'stderr').read_text()[-3000:]}")


def wait(url: str, process: subprocess.Popen[str]) -> None:
    """Until the first answer, which warms the model up too."""
    import httpx

    for _ in range(240):
        if process.poll() is not None:
            raise SystemExit(f"{url}: the server ended with {process.returncode}; its words are above")
        try:
            if httpx.post(url, json={"text": "Shares rose."}, timeout=TIMEOUT).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"{url} did not answer")


def resident(process: subprocess.Popen[str]) -> float:
    """MiB of memory of a process."""
    import psutil

    return psutil.Process(process.pid).memory_info().rss / 2**20


def main() -> None:
    flags = parser(__doc__ or "", "10 s for each number of clients", measure=1, data=False)
    flags.add_argument("--seconds", type=float, help="for each number of clients (30; 10 with --quick)")
    flags.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 256])
    flags.add_argument(
        "--soak", type=float, default=0, metavar="S", help="and 64 clients for so long, memory"
    )
    args = flags.parse_args()
    seconds = args.seconds or (10 if args.quick else 30)
    texts = headlines()
    flat: dict[str, float] = {}
    for system in ("naive", "fintune"):
        process, url = start(system)
        try:
            wait(url, process)
            for clients in args.clients:
                figures = asyncio.run(ask(url, clients, seconds, texts))
                flat |= {f"{system}_{clients}_{name}": round(value, 2) for name, value in figures.items()}
                shown = "  ".join(f"{name} {value:.1f}" for name, value in figures.items())
                print(f"{system:8} {clients:4} clients  {shown}", flush=True)
            if args.soak and system == "fintune":
                asyncio.run(ask(url, 64, 5, texts))
                before = resident(process)
                asyncio.run(ask(url, 64, args.soak, texts))
                flat |= {"soak_before_mib": before, "soak_after_mib": resident(process)}
                print(f"memory {before:.0f} MiB, after {args.soak:g} s {flat['soak_after_mib']:.0f} MiB")
        finally:
            process.kill()
            process.wait()
    for clients in args.clients:
        naive = flat[f"naive_{clients}_per_s"]
        if naive:
            flat[f"throughput_vs_naive_{clients}"] = flat[f"fintune_{clients}_per_s"] / naive
            print(f"{clients} clients: {flat[f'throughput_vs_naive_{clients}']:.1f} times the naive server")
    save(args.json, flat)


if __name__ == "__main__":
    main()
