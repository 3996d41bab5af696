"""The process that runs leaves for a check: imports the target and carries out calls on its own copies, told by bytes only.

``python -m patchwork_adapters.checking.worker SOCKET`` serves until its standard input is closed. Each connection is one request:
a frame ``encode([operation, target, leaf, method, payload])`` in, frames out, then an empty one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.checking.answers import Answers
from patchwork_adapters.checking.frames import read_frame, write_frame
from patchwork_adapters.checking.twin import Collections
from patchwork_adapters.checking.watch import SERVED, Watch
from patchwork_adapters.own import OwnLeafRunner, runner_of
from patchwork_adapters.stores import export
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.walk import Walk, find_leaves


@dataclass(slots=True)
class _Loaded:
    walk: Walk
    watch: Watch
    runners: dict[str, OwnLeafRunner]
    collections: Collections
    answers: Answers | None = None


class Worker:
    """Targets are imported when they are first asked for, and stay."""

    def __init__(self) -> None:
        self._targets: dict[str, _Loaded] = {}
        self._watches: list[Watch] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frame = await read_frame(reader)
        if frame is None:
            return
        work = asyncio.ensure_future(self._answer(codec.decode(frame), writer))
        gone = asyncio.ensure_future(reader.read(1))  # nothing more is sent: this ends when the caller leaves
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await work
        writer.close()

    async def _answer(self, request: list[Any], writer: asyncio.StreamWriter) -> None:
        try:
            async for frame in self._frames(*request):
                await write_frame(writer, b"\x00" + frame)
        except Exception as error:  # noqa: BLE001  the loop's top: the other side raises it
            await write_frame(writer, b"\x01" + codec.encode_outcome(error))
        await write_frame(writer, b"")

    async def _frames(
        self, operation: str, target: str, leaf: str, method: str, payload: bytes
    ) -> AsyncIterator[bytes]:
        loaded = self._targets.get(target)
        if loaded is None:
            loaded = await asyncio.to_thread(self._load, target)
        if operation == "leaves":
            yield codec.encode([found.path for found in loaded.walk.leaves])
        elif operation == "answers":
            loaded.answers = Answers(codec.decode(payload))
            loaded.watch.answers = loaded.answers
            yield codec.encode(None)
        elif operation == "asked":
            yield codec.encode(loaded.answers.num_asked if loaded.answers is not None else 0)
        elif operation == "take":
            if loaded.answers is not None:
                loaded.answers.begin()  # calls are taken between runs
            yield codec.encode([seen.to_plain() for seen in loaded.watch.take()])
        elif operation == "call" and leaf in loaded.collections:
            yield loaded.collections.run(leaf, method, codec.decode(payload))
        else:
            SERVED.set(leaf)
            runner = loaded.runners.get(leaf)
            if runner is None:
                runner = loaded.runners[leaf] = runner_of(loaded.walk.leaf(leaf))
            if operation == "call":
                yield await runner.run(method, payload)
            else:
                chunks = runner.stream(method, payload)
                async with contextlib.aclosing(chunks) as frames:  # type: ignore[type-var]
                    async for frame in frames:
                        yield frame

    def _load(self, text: str) -> _Loaded:
        while (
            self._watches
        ):  # one at a time: classes are shared between the chains of a module, and a walk would enter a watch
            self._watches.pop().off()
        self._targets.clear()
        loaded = load_target(parse_target(text))
        walk = find_leaves(loaded.chain, loaded.module, loaded.root)
        watch = Watch()
        watch.on(walk.leaves, {leaf.path: leaf.spec.cut(type(leaf.obj)) for leaf in walk.leaves})
        self._watches.append(watch)
        stores = {leaf.path: export(leaf.spec, leaf.obj) for leaf in walk.leaves if leaf.spec.export is not None}
        made = _Loaded(walk, watch, {}, Collections(stores))
        self._targets[text] = made
        return made


async def _main(socket: str) -> None:
    worker = Worker()
    server = await asyncio.start_unix_server(worker.serve, socket)
    os.write(1, b"ready\n")
    os.dup2(2, 1)  # what user modules print goes to standard error
    async with server:
        with codec.strict():
            await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # user code may have left threads that nobody can stop


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
