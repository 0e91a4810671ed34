"""How many `POST /v1/jobs` a second one HTTP process takes, each on disk before its 202.

`python tests/bench/bench_intake.py [requests] [connections]` starts a Valkey (fsync always) and `python -m service`
on loopback and prints requests per second and latencies. The client is raw asyncio, in a process of its own.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from deploy.local.child import bare_env
from deploy.local.ports import free_port
from deploy.local.valkey import Valkey

TOKEN = "bench-" + "b" * 32
ROOT = Path(__file__).parents[2]
START_WITHIN_S = 20.0


def main() -> None:
    total, connections = (int(word) for word in (*sys.argv[1:], "10000", "64")[:2])
    with tempfile.TemporaryDirectory() as folder:
        valkey = Valkey(Path(folder))
        valkey.start()
        port = free_port()
        service = serve(port, valkey.url, Path(folder))
        try:
            before_s = [cpu_s(pid) for pid in (service.pid, valkey.pid)]
            asyncio.run(measure(port, total, connections))
            used = [cpu_s(pid) - since_s for pid, since_s in zip((service.pid, valkey.pid), before_s, strict=True)]
            print(f"CPU per request: service {used[0] / total * 1e3:.2f} ms, valkey {used[1] / total * 1e3:.2f} ms")
        finally:
            service.terminate()
            service.wait(START_WITHIN_S)
            valkey.stop()


def serve(port: int, redis_url: str, home: Path) -> "subprocess.Popen[bytes]":
    environ = bare_env(home) | {
        "PORT": str(port),
        "REDIS_URL": redis_url,
        "S3_BUCKET": "bench",
        "S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "API_TOKENS": f"bench:{TOKEN}",
        "FLUX_API_KEY": "key-of-nobody",
        "SERVE": "api",
        "LOG_LEVEL": "error",
        "BACKLOG_MAX": "1000000",
        **{name: value for name, value in os.environ.items() if name.startswith("BENCH_")},
    }
    return subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=environ)


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def measure(port: int, total: int, connections: int) -> None:
    await listening(port)
    await ask(port, min(500, total), [])  # the script, the pool and RQ's greeting are there afterwards
    took_s: list[float] = []
    start_s = time.perf_counter()
    await asyncio.gather(*(ask(port, total // connections, took_s) for _ in range(connections)))
    whole_s = time.perf_counter() - start_s
    points = statistics.quantiles(took_s, n=100)
    print(
        f"POST /v1/jobs: {len(took_s)} over {connections} connections in {whole_s:.2f} s = "
        f"{len(took_s) / whole_s:.0f}/s; p50 {points[49] * 1000:.1f} ms, p99 {points[98] * 1000:.1f} ms"
    )


async def ask(port: int, count: int, took_s: list[float]) -> None:
    body = json.dumps({"model": "flux-dev", "prompt": "a red fox in the snow", "width": 1024, "height": 768}).encode()
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        start_s = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 202 "), answer
        length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        took_s.append(time.perf_counter() - start_s)
    writer.close()


async def listening(port: int) -> None:
    async with asyncio.timeout(START_WITHIN_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


if __name__ == "__main__":
    main()
