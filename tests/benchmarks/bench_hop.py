"""What a call of a replica through a Serve handle costs, by how it travels: Ray's actor calls, or gRPC.

    python tests/benchmarks/bench_hop.py [-o FILE]

A replica that answers at once, called by 1 and by 16 at a time; and 16 streams of 64 pieces, 20 ms apart. Milliseconds of processor time of
both processes, and of the wall, for a call or a piece; the sides in turns, the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from patchwork_serving.transport import BY_GRPC

ROUNDS, CALLS, STREAMS, PIECES = 5, 320, 16, 64
FRAME = b"x" * 2000
WAYS: dict[str, dict[str, Any]] = {"actor calls": {"_by_reference": True}, "gRPC": BY_GRPC}


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
class Replica:
    async def call(self, data: bytes) -> bytes:
        return data

    async def stream(self, data: bytes) -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            await asyncio.sleep(0.02)
            yield data

    async def pid(self) -> int:
        return os.getpid()


async def calls(handle: Any, at_once: int) -> None:
    async def one() -> None:
        for _ in range(CALLS // at_once):
            await handle.remote(FRAME)

    await asyncio.gather(*(one() for _ in range(at_once)))


async def streams(handle: Any) -> None:
    async def one() -> None:
        assert [piece async for piece in handle.remote(FRAME)] == [FRAME] * PIECES

    await asyncio.gather(*(one() for _ in range(STREAMS)))


async def measured(handle: Any) -> dict[str, Any]:
    caller, replica = psutil.Process(), psutil.Process(await handle.pid.remote())
    taken: dict[str, dict[str, list[list[float]]]] = {}

    async def note(what: str, way: str, count: int, work: Callable[[], Awaitable[None]]) -> None:
        before = [sum(p.cpu_times()[:2]) for p in (caller, replica)]
        began = time.perf_counter()
        await work()
        wall = time.perf_counter() - began
        after = [sum(p.cpu_times()[:2]) for p in (caller, replica)]
        each = [b - a for a, b in zip(before, after, strict=True)]
        taken.setdefault(what, {}).setdefault(way, []).append([1000 * s / count for s in (*each, wall)])

    for number in range(ROUNDS + 1):
        for way, options in WAYS.items():
            call = handle.options(method_name="call", **options)
            stream = handle.options(method_name="stream", stream=True, **options)
            for at_once in (1, 16):
                await note(f"a call, {at_once} at once", way, CALLS, lambda c=call, n=at_once: calls(c, n))  # type: ignore[misc]
            await note("a piece, 16 streams at once", way, STREAMS * PIECES, lambda s=stream: streams(s))  # type: ignore[misc]
        if number == 0:
            taken.clear()  # the first round connects
    names = ("caller_cpu_ms", "replica_cpu_ms", "wall_ms")
    return {
        what: {
            way: {
                name: round(statistics.median(column), 3)
                for name, column in zip(names, zip(*rows, strict=True), strict=True)
            }
            for way, rows in by_way.items()
        }
        for what, by_way in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    output: Path | None = parser.parse_args().output
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        serve.start(http_options={"location": "NoServer"})
        found = asyncio.run(measured(serve.run(Replica.bind(), route_prefix=None)))
    finally:
        serve.shutdown()
        ray.shutdown()
    text = json.dumps(found, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
