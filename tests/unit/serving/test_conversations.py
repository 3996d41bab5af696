"""Requests of one conversation come to the ingress replica that keeps it, through whichever replica they came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from patchwork_serving.conversations import Place, keys_of, owner_of
from patchwork_serving.forwarding import NOT_HERE, Forwarding, serve_here

PLACES = [Place(f"ingress#{n}", n) for n in range(3)]


def asks(*sessions: Any, path: str = "/invoke") -> dict[str, Any]:
    configs = [{"configurable": {"session_id": one}} for one in sessions]
    return {"input": "x", "config": configs[0] if len(configs) == 1 else configs}


def test_a_key_is_made_of_what_the_chain_finds_its_state_by() -> None:
    of_two = {"config": {"configurable": {"user": "a", "conversation": "b", "other": 1}}}
    assert len(keys_of("user+conversation", of_two)) == 1
    assert keys_of("user+conversation", of_two) != keys_of(
        "user+conversation", {"config": {"configurable": {"user": "a"}}}
    )
    assert keys_of("session_id", asks("a")) == keys_of("session_id", {"input": "y", **asks("a")})
    assert len(keys_of("session_id", asks("a", "b", "a"))) == 2


@pytest.mark.parametrize(
    "document", [{}, {"config": None}, {"config": {"configurable": []}}, [1], "text", {"config": [3]}]
)
def test_what_names_no_conversation_is_about_none(document: Any) -> None:
    assert keys_of("session_id", document) == frozenset()
    assert len(keys_of("*", document)) == 1


def test_a_replaced_replica_changes_nothing_for_the_others_and_its_successor_takes_over() -> None:
    keys = [f"key {n}" for n in range(200)]
    before = {key: owner_of(key, PLACES, 3) for key in keys}
    assert set(before.values()) == {place.name for place in PLACES}
    without = {key: owner_of(key, PLACES[:2], 3) for key in keys}
    assert all(without[key] == before[key] for key in keys if before[key] != "ingress#2")
    assert {without[key] for key in keys if before[key] == "ingress#2"} == {"ingress#0", "ingress#1"}
    after = {key: owner_of(key, [*PLACES[:2], Place("ingress#new", 2)], 3) for key in keys}
    assert after == {key: "ingress#new" if name == "ingress#2" else name for key, name in before.items()}
    assert owner_of("key", [], 3) is None


class Replica:
    """Answers in two parts, with its name and what it has been told in each conversation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: dict[str, list[str]] = {}
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-replica", self.name.encode())]})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        going = [asyncio.ensure_future(self.go_on.wait()), asyncio.ensure_future(receive())]
        await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
        if not self.go_on.is_set():
            self.left.set()
            return
        document = json.loads(body) if body[:1] == b"{" else {}
        config = document.get("config")
        session = str(config["configurable"]["session_id"] if isinstance(config, dict) else None)
        self.told.setdefault(session, []).append(str(document.get("input")))
        await send({"type": "http.response.body", "body": str(self.told[session]).encode()})


class Ingresses:
    """Three replicas; ``dead`` ones are still listed, but nobody answers under their names."""

    def __init__(self, affinity: str = "session_id") -> None:
        self.replicas = {place.name: Replica(place.name) for place in PLACES}
        self.places = list(PLACES)
        self.dead: set[str] = set()
        self.breaks = False
        self.doors = {name: self._door(name, affinity) for name in self.replicas}

    def _door(self, name: str, affinity: str) -> Forwarding:
        async def places() -> list[Place]:
            return self.places

        return Forwarding(
            self.replicas[name], affinity=affinity, count=3, me=name, places=places, send_to=self._send_to,
            max_body_bytes=2000, body_timeout_s=5.0,
        )  # fmt: skip

    async def _send_to(self, name: str, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        if self.breaks:
            raise ConnectionError
        if name in self.dead:
            yield NOT_HERE
            return
        messages = serve_here(self.replicas[name], json_like(scope), body)
        try:
            async for message in messages:
                yield message
        finally:
            await messages.aclose()

    async def ask(self, door: str, document: Any, path: str = "/app/invoke") -> httpx.Response:
        transport = httpx.ASGITransport(app=self.doors[door])
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(path, content=document if isinstance(document, bytes) else json.dumps(document))


def json_like(scope: Scope) -> Scope:
    """What can be sent: no apps, no functions."""
    assert {type(value) for value in scope.values()} <= {str, bytes, list, tuple, type(None)}
    return dict(scope)


async def test_a_conversation_is_kept_by_one_replica_whichever_door_its_requests_come_through() -> None:
    ingresses = Ingresses()
    for session in "abcdefgh":
        answers = [await ingresses.ask(door, {**asks(session), "input": n}) for n, door in enumerate(ingresses.doors)]
        assert len({answer.headers["x-replica"] for answer in answers}) == 1
        assert answers[-1].text == "first ['0', '1', '2']"
    assert all(replica.told for replica in ingresses.replicas.values())


async def test_a_chain_that_is_one_conversation_has_one_replica() -> None:
    ingresses = Ingresses("*")
    answers = [await ingresses.ask(door, {"input": "x"}) for door in ingresses.doors]
    assert len({answer.headers["x-replica"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"input": "x"}, "/app/invoke"),  # about nothing that is kept
        (asks("a"), "/app/runs/1/cancel"),  # asks all replicas by itself
        (b"no json", "/app/invoke"),  # the gateway says what is wrong with it
        (json.dumps(asks("a")).encode() + b" " * 3000, "/app/invoke"),  # too large
    ],
)
async def test_other_requests_stay_where_they_came(document: Any, path: str) -> None:
    ingresses = Ingresses()
    for door in ingresses.doors:
        assert (await ingresses.ask(door, document, path)).headers["x-replica"] == door


async def test_a_batch_about_conversations_of_several_replicas_is_refused_with_a_remedy() -> None:
    ingresses = Ingresses()
    answer = await ingresses.ask("ingress#0", asks(*"abcdefgh"), "/app/batch")
    assert answer.status_code == 422
    assert "one request for each" in answer.json()["error"]["message"]
    assert (await ingresses.ask("ingress#0", asks("a", "a"), "/app/batch")).status_code == 200


async def test_a_replica_that_is_gone_is_passed_over() -> None:
    ingresses = Ingresses()
    first = (await ingresses.ask("ingress#0", asks("a"))).headers["x-replica"]
    ingresses.dead.add(first)
    doors = [door for door in ingresses.doors if door != first]
    assert {(await ingresses.ask(door, asks("a"))).headers["x-replica"] for door in doors} <= set(doors)


async def test_a_replica_that_breaks_off_before_it_answers_is_an_error_that_can_be_tried_again() -> None:
    ingresses = Ingresses()
    owner = (await ingresses.ask("ingress#0", asks("a"))).headers["x-replica"]
    ingresses.breaks = True
    answer = await ingresses.ask(next(door for door in ingresses.doors if door != owner), asks("a"))
    assert answer.status_code == 503
    assert answer.json()["error"]["retryable"] is True
    assert answer.headers["retry-after"] == "1"


async def test_a_client_that_leaves_ends_the_work_in_the_replica_that_it_was_passed_on_to() -> None:
    ingresses = Ingresses()
    owner = (await ingresses.ask("ingress#0", asks("a"))).headers["x-replica"]
    ingresses.replicas[owner].go_on.clear()
    door = ingresses.doors[next(name for name in ingresses.doors if name != owner)]
    sent: list[Message] = []
    first, left = asyncio.Event(), asyncio.Event()
    bodies = [{"type": "http.request", "body": json.dumps(asks("a")).encode(), "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            first.set()

    scope = {"type": "http", "method": "POST", "path": "/app/stream", "headers": [], "query_string": b""}
    serving = asyncio.create_task(door(scope, receive, send))
    await asyncio.wait_for(first.wait(), 5)  # the first part came before the second was there
    left.set()
    await asyncio.wait_for(serving, 5)
    assert ingresses.replicas[owner].left.is_set()
    assert len(sent) == 2
