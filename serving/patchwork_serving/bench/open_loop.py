"""Sends requests when the schedule says so, whether or not those before have been answered."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import time
from collections.abc import Callable, Sequence

import httpx

from patchwork_serving.bench.apis import Api
from patchwork_serving.bench.observe import Answer, Observation

#: tasks that are due at once let answers be read in between
_BURST = 16

Told = Callable[[int, int], None]  #: (sent, ended) so far


class Connections:
    """Clients of one connection each, the last used first. One pool of thousands would be searched at every request."""

    def __init__(self, limit: int, verify: ssl.SSLContext | bool) -> None:
        self._free: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []
        self._room = asyncio.Semaphore(limit)
        self._verify = verify

    async def take(self) -> httpx.AsyncClient:
        """A client of one's own; waits when ``limit`` are in use."""
        await self._room.acquire()
        if self._free:
            return self._free.pop()
        client = httpx.AsyncClient(verify=self._verify, trust_env=False, limits=httpx.Limits(max_connections=1))
        self._all.append(client)
        return client

    async def give(self, client: httpx.AsyncClient, *, usable: bool) -> None:
        """Back; one whose request did not end well is closed, or its only connection might never come free again."""
        self._room.release()
        if usable:
            self._free.append(client)
        else:
            self._all.remove(client)
            await client.aclose()

    async def close(self) -> None:
        for client in self._all:
            await client.aclose()


class OpenLoop:
    """One load: ``await run()`` returns what became of every request that was sent; ``stop()`` ends it early."""

    def __init__(
        self,
        api: Api,
        bodies: Sequence[bytes],
        times: Sequence[float],
        *,
        timeout_s: float,
        connections: int,
        told: Told,
    ) -> None:
        self._api, self._bodies, self._times = api, bodies, times
        self._timeout_s = timeout_s
        self._limit = connections
        self._told = told
        self._running: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Task[None] | None = None
        self._seen: list[Observation] = []
        self._sent = 0
        self._began = 0.0
        self.stopped = False

    def stop(self) -> None:
        """Send no more; those in flight are cancelled and counted so. May be called again."""
        self.stopped = True
        self._cancel_all()

    async def run(self) -> list[Observation]:
        """Every request's observation, by intended time."""
        # loopback needs no certificates, and reading the system's costs 30 ms for each client
        secure = ssl.create_default_context() if self._api.url.startswith("https:") else False
        connections = Connections(self._limit, secure)
        self._began = time.monotonic()
        try:
            self._sending = asyncio.create_task(self._send_all(connections))
            await asyncio.wait([self._sending])
            while self._running:
                await asyncio.wait(self._running)
        finally:
            self._cancel_all()
            await connections.close()
        assert len(self._seen) == self._sent, "every request that was sent has ended"
        return sorted(self._seen, key=lambda seen: seen.intended)

    def _cancel_all(self) -> None:
        for task in (self._sending, *self._running):
            if task is not None and not task.done():
                task.cancel()

    async def _send_all(self, connections: Connections) -> None:
        for number, at in enumerate(self._times):
            wait = self._began + at - time.monotonic()
            if wait > 0 or number % _BURST == 0:
                await asyncio.sleep(max(0.0, wait))
            task = asyncio.create_task(self._one(connections, at, self._bodies[number % len(self._bodies)]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _one(self, connections: Connections, at: float, body: bytes) -> None:
        self._sent += 1  # here: a task that is cancelled before its first step never was a request
        sent = None
        answer: Answer | None = None
        try:
            client = await connections.take()
            try:
                sent = time.monotonic()
                answer = await self._ask(client, body, at)
            finally:
                await connections.give(client, usable=answer is not None and answer.status is not None)
        except asyncio.CancelledError:
            pass  # stopped: the request is counted as cancelled
        finally:
            self._note(at, sent, answer)

    async def _ask(self, client: httpx.AsyncClient, body: bytes, at: float) -> Answer:
        # from the intended time, so that what waited for a connection has no longer than the others
        left = self._began + at + self._timeout_s - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                return await self._api.ask(client, body, self._timeout_s)
        except TimeoutError:
            return Answer(None, "timeout", gave_up=True)

    def _note(self, at: float, sent: float | None, answer: Answer | None) -> None:
        now = time.monotonic() - self._began
        if answer is not None and answer.first_at is not None:
            answer = _from_start(answer, self._began)
        self._seen.append(Observation(at, now if sent is None else sent - self._began, now, answer))
        self._told(self._sent, len(self._seen))


def _from_start(answer: Answer, began: float) -> Answer:
    assert answer.first_at is not None
    return dataclasses.replace(answer, first_at=answer.first_at - began)
