"""What following a chain costs each token of its stream: portals for tasks, ours and greenback's, and call-sites.

    python tests/benchmarks/bench_portal.py

A prompt, ``ChatOpenAI`` and a parser, streamed from frames in memory; microseconds of processor time a token, in turns, median and least.
``task_us`` and ``step_us``: of a task that does nothing, and of one that gives way to the loop again and again. ``greenback`` is compared
where it is installed (``pip install greenback``).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from patchwork_adapters import sites
from patchwork_adapters.bridge import install_portal
from patchwork_adapters.walk import find_leaves

TOKENS, ANSWERS, ROUNDS = 64, 6, 12
STEPS, TASKS = 20_000, 5_000

Install = Callable[[asyncio.AbstractEventLoop], None]


def frames() -> list[bytes]:
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f" word{n}"} for n in range(TOKENS)]
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return [*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]


def streaming_model() -> ChatOpenAI:
    model = ChatOpenAI(model="m", base_url="http://127.0.0.1:9/v1", api_key=SecretStr("none"), max_retries=0)
    client: Any = model.root_async_client._client
    httpx = next(
        sys.modules[name]
        for name in (base.__module__.partition(".")[0] for base in type(client).__mro__)
        if name.startswith("httpx")
    )
    sent = frames()

    class Body(httpx.AsyncByteStream):  # type: ignore[name-defined, misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for frame in sent:
                await asyncio.sleep(0)
                yield frame

    client._transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())
    )
    client._mounts = {}
    return model


def no_portal(loop: asyncio.AbstractEventLoop) -> None: ...


def greenback_portal(loop: asyncio.AbstractEventLoop) -> None:
    import greenback

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(greenback.with_portal_run(lambda: coro), loop=loop, **options)

    loop.set_task_factory(factory)


@contextlib.contextmanager
def following(chain: Any) -> Iterator[None]:
    undo = sites.install(find_leaves(chain, sys.modules[__name__]))
    try:
        yield
    finally:
        undo()


def in_task(install: Install, work: Callable[[], Any]) -> float:
    """Seconds of processor time."""

    async def main() -> float:
        install(asyncio.get_running_loop())
        began = time.process_time()
        await asyncio.get_running_loop().create_task(work())
        return time.process_time() - began

    return asyncio.run(main())


def token_us(chain: Any, install: Install) -> float:
    async def answers() -> None:
        for _ in range(ANSWERS):
            pieces = [piece async for piece in chain.astream({"question": "what?"})]
            assert len(pieces) >= TOKENS

    return in_task(install, answers) / ANSWERS / TOKENS * 1e6


def step_us(install: Install) -> float:
    async def steps() -> None:
        for _ in range(STEPS):
            await asyncio.sleep(0)

    return in_task(install, steps) / STEPS * 1e6


def task_us(install: Install) -> float:
    async def nothing() -> None: ...

    async def tasks() -> None:
        for _ in range(TASKS):
            await asyncio.create_task(nothing())

    return in_task(install, tasks) / TASKS * 1e6


def main() -> None:
    chain = ChatPromptTemplate.from_template("{question}") | streaming_model() | StrOutputParser()
    portals: dict[str, Install] = {"plain": no_portal, "portal": install_portal}
    if importlib.util.find_spec("greenback") is not None:
        portals["greenback"] = greenback_portal
    taken: dict[str, dict[str, list[float]]] = {}

    def note(kind: str, side: str, microseconds: float) -> None:
        taken.setdefault(kind, {}).setdefault(side, []).append(microseconds)

    for install in portals.values():
        token_us(chain, install)  # the first one imports
    for _ in range(ROUNDS):
        for name, install in portals.items():
            note("token_us", name, token_us(chain, install))
            note("step_us", name, step_us(install))
            note("task_us", name, task_us(install))
        with following(chain):
            note("token_us", "portal and call-sites", token_us(chain, install_portal))
    found = {
        kind: {
            side: {"median": round(statistics.median(each), 1), "least": round(min(each), 1)}
            for side, each in sides.items()
        }
        for kind, sides in taken.items()
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
