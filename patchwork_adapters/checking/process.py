"""Leaves in a process of their own, as a :class:`~patchwork_adapters.transport.Transport`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.checking.answers import Answers
from patchwork_adapters.checking.frames import read_frame, write_frame
from patchwork_adapters.checking.watch import Seen
from patchwork_adapters.errors import ComponentUnavailable
from patchwork_adapters.transport import LeafCall


class LeafProcess:
    """Starts with ``with``; serves any number of targets, one after another, and ends with the block or with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._socket = ""

    def __enter__(self) -> LeafProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="pw-check-")  # readable by this user only
        self._socket = str(Path(self._folder.name) / "leaves")
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", self._socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != b"ready":
            self.close()
            raise ComponentUnavailable("the process that runs the leaves ended at its start; its output says why")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def transport(self, target: str) -> LeafTransport:
        """Calls of one target's leaves."""
        return LeafTransport(self._socket, target)


class LeafTransport:
    """One connection for each call: leaving early closes it, and the work behind it ends."""

    def __init__(self, socket: str, target: str) -> None:
        self._socket = socket
        self._target = target

    async def call(self, call: LeafCall) -> bytes:
        async with contextlib.aclosing(self._frames("call", call.leaf, call.method, call.payload)) as frames:
            return await anext(frames)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self._frames("stream", call.leaf, call.method, call.payload)) as frames:
            async for frame in frames:
                yield frame

    async def leaves(self) -> list[str]:
        """Paths of the leaves that the process found; imports the target. Raises what the import raised."""
        return list(await self._ask("leaves"))

    async def take(self) -> list[Seen]:
        """Calls that the leaves got since the last time, as they arrived."""
        return [Seen(*item) for item in await self._ask("take")]

    async def answer_from(self, answers: Answers) -> None:
        """Models there are asked only for what is not known yet."""
        await self._ask("answers", codec.encode(answers.to_plain()))

    async def num_asked(self) -> int:
        """Calls of models that were not known."""
        return int(await self._ask("asked"))

    async def _ask(self, operation: str, payload: bytes = b"") -> Any:
        async with contextlib.aclosing(self._frames(operation, "", "", payload)) as frames:
            return codec.decode(await anext(frames))

    async def _frames(self, operation: str, leaf: str, method: str, payload: bytes) -> AsyncGenerator[bytes, None]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise ComponentUnavailable("the process that runs the leaves has ended") from error
        try:
            await write_frame(writer, codec.encode([operation, self._target, leaf, method, payload]))
            while (frame := await read_frame(reader)) != b"":
                if frame is None:
                    raise ComponentUnavailable("the process that runs the leaves ended during a call")
                if frame[:1] == b"\x01":
                    codec.decode_outcome(frame[1:])
                yield frame[1:]
        finally:
            writer.close()
