"""What serving adds to a request, by stage, at 1, 16 and 64 requests at once: encode, hop, queue, engine, decode, the rest of the way.

    python tests/benchmarks/bench_overhead.py -o docs/benchmarks/overhead.json

The demo chain is deployed with engines that are emulated at no cost, so that what is left is the framework's share (and the search in
Postgres, which is real). Each of N clients asks one question after the other; the trace of each request (``x-patchwork-trace``) tells:

``http``    what the client saw beyond the request's root span: Serve's proxy, the socket, reading the body, the client itself
``chain``   the root span less its leaf calls: gateway and the user's own chain
``hop``     leaf calls less queue and engine: predictions, routing, Ray Serve, and the two below
``queue``   waiting in replicas; ``engine`` the work of replicas' engines
``encode``, ``decode``  one chat call's frames, measured apart in this process: spans do not tell them, and they are part of ``hop``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from baselines.applications import APPLICATIONS, CHAT, EMBED
from baselines.systems import Engines, ours

from patchwork_adapters.protocol import HttpRequest, HttpResponse, decode_response, encode_request, encode_response
from patchwork_serving.bench.report import percentiles
from patchwork_serving.wire import CallFrame, ReplyFrame, Report

#: an engine that takes no time: one token, whose step is as short as the profile's arithmetic allows
FREE_LLM = {"kind": "llm", "n_in": 1, "n_out": 1, "rows": [
    {"n_in": n_in, "n_out": n_out, "batch": batch, "seconds": 1e-6}
    for n_in in (1, 512) for n_out in (1, 64) for batch in (1, 16)
]}  # fmt: skip
FREE_EMBEDDER = {"kind": "embedder", "rows": [{"batch": 1, "seconds": 1e-6}, {"batch": 64, "seconds": 1e-6}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument("--requests", type=int, default=300, help="at each number of clients")
    options = parser.parse_args()
    vanilla = APPLICATIONS["vanilla"]
    app = replace(vanilla, emulated={CHAT: FREE_LLM, EMBED: FREE_EMBEDDER})
    with ours(app, Engines(True), slo_s=30.0, settings={}) as served:
        asyncio.run(load(served.url, app.values(), 2, 20))
        found = {
            clients: asyncio.run(load(served.url, app.values(), int(clients), options.requests))
            for clients in options.clients.split(",")
        }
    document = {
        "engines": "emulated, at no cost", "requests": options.requests,
        "codec_s": codec_seconds(),
        "seconds_by_clients": {clients: summary(rows) for clients, rows in found.items()},
        "environment": {
            "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    text = json.dumps(document, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


async def load(url: str, questions: Sequence[str], clients: int, requests: int) -> list[dict[str, float]]:
    """Seconds by stage of each request. Closed loop: the question is what a request costs at this concurrency, not what is sustained."""
    waiting = iter(range(requests))
    rows: list[dict[str, float]] = []

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120.0, headers={"x-patchwork-trace": "1"}) as http:
            for number in waiting:
                began = time.perf_counter()
                answer = await http.post("/invoke", json={"input": questions[number % len(questions)]})
                took = time.perf_counter() - began
                answer.raise_for_status()
                rows.append(stages(answer.json()["metadata"]["trace"], took))

    await asyncio.gather(*(client() for _ in range(clients)))
    return rows


def stages(spans: Sequence[Mapping[str, Any]], took: float) -> dict[str, float]:
    """Seconds by stage, calls of one request added up."""
    (root,) = (span for span in spans if span["name"].startswith("invoke_workflow"))
    calls = [span for span in spans if span.get("parent_id") == root["span_id"]]
    queue = sum(span["attributes"].get("patchwork.queue_s", 0.0) for span in calls)
    engine = sum(span["attributes"].get("patchwork.service_s", 0.0) for span in calls)
    leaf = sum(seconds(span) for span in calls)
    return {
        "total": took, "http": took - seconds(root), "chain": seconds(root) - leaf, "queue": queue, "engine": engine,
        "hop": leaf - queue - engine,
    }  # fmt: skip


def seconds(span: Mapping[str, Any]) -> float:
    return float(span["duration_s"])


def codec_seconds() -> dict[str, Any]:
    """Of one chat call with a prompt of 1,500 characters and an answer of 250."""
    prompt, answer = "word " * 300, "word " * 50
    body = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": prompt}]}).encode()
    head = {"content-type": "application/json"}

    def encode() -> bytes:
        request = encode_request(HttpRequest("POST", "/v1/chat/completions", head, body))
        return CallFrame("c" * 32, "r" * 36, "llm", "POST /v1/chat/completions", request).to_bytes()

    reply_body = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
    response = encode_response(HttpResponse(200, head, reply_body))
    reply = ReplyFrame((response,), Report("replica")).to_bytes()

    def decode() -> bytes:
        return decode_response(b"".join(ReplyFrame.from_bytes(reply).payloads)).body

    assert decode() == reply_body
    return {"encode": percentiles(timed(encode)), "decode": percentiles(timed(decode))}


def timed(work: Callable[[], object], times: int = 2000) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {stage: percentiles([row[stage] for row in rows]) for stage in rows[0]}
    print({stage: f"{1000 * figures['p50']:.1f} ms" for stage, figures in found.items()}, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
