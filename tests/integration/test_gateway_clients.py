"""The unchanged clients of LangServe and OpenAI, and clients that hang up, against a server on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langserve import RemoteRunnable

from kit.gateway import ANSWER, chat_model, failing_chain, gateway, rag_chain
from patchwork_adapters.errors import ComponentUnavailable


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of loopback, in a thread with its own loop; its URL."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as probe:
            assert probe.get(f"{url}/livez").status_code == 200
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(gateway()) as found:
        yield found


# -- LangServe's client ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/rag"])
def test_remote_runnable_invokes_batches_and_streams(url: str, prefix: str) -> None:
    remote = RemoteRunnable(url + prefix)
    local = rag_chain()
    assert remote.invoke("why?") == local.invoke("why?") == ANSWER
    assert remote.batch(["a", "b"], {"tags": ["t"]}) == [ANSWER, ANSWER]
    assert remote.batch(["a", "b"], [{"tags": ["t"]}, {"metadata": {"n": 1}}]) == [ANSWER, ANSWER]
    assert list(remote.stream("why?")) == list(local.stream("why?"))


async def test_remote_runnable_does_so_asynchronously(url: str) -> None:
    remote = RemoteRunnable(url)
    assert await remote.ainvoke("why?") == ANSWER
    assert await remote.abatch(["a", "b"]) == [ANSWER, ANSWER]
    assert "".join([chunk async for chunk in remote.astream("why?")]) == ANSWER


async def test_remote_runnable_sees_the_events_of_the_chain(url: str) -> None:
    def told(events: list[Any]) -> list[tuple[str, str]]:
        return [(event["event"], event["name"]) for event in events]

    remote = [event async for event in RemoteRunnable(url).astream_events("why?", version="v2")]
    local = [event async for event in rag_chain().astream_events("why?", version="v2")]
    assert sorted(told(remote)) == sorted(told(local))
    (retrieved,) = [event["data"]["output"] for event in remote if event["event"] == "on_retriever_end"]
    assert all(isinstance(document, Document) for document in retrieved)


def test_remote_runnable_sends_and_receives_messages() -> None:
    with serving(gateway(chat_model("hello"))) as url:
        remote = RemoteRunnable(url)
        answer = remote.invoke([HumanMessage("hi")])
        assert isinstance(answer, AIMessage)
        assert (answer.content, answer.usage_metadata["input_tokens"] if answer.usage_metadata else 0) == ("hello", 7)
        assert "".join(str(chunk.content) for chunk in remote.stream("hi")) == "hello"


def test_remote_runnable_composes_with_local_steps(url: str) -> None:
    assert (RunnableLambda(str.lower) | RemoteRunnable(url) | RunnableLambda(len)).invoke("WHY?") == len(ANSWER)


def test_remote_runnable_shows_errors_with_their_reason(url: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="must be of type string") as refused:
        RemoteRunnable(url).invoke({"not": "text"})
    assert refused.value.response.status_code == 422
    with serving(gateway(failing_chain(ValueError("secret")))) as failing:
        for ask in (RemoteRunnable(failing).invoke, lambda q: list(RemoteRunnable(failing).stream(q))):
            with pytest.raises(httpx.HTTPStatusError) as raised:
                ask("why?")
            assert raised.value.response.status_code == 500
            assert "secret" not in str(raised.value)


def test_remote_runnable_shows_errors_in_the_middle_of_a_stream() -> None:
    async def half(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        async for chunk in chunks:
            yield chunk
        raise ComponentUnavailable("llm went away")

    with serving(gateway(RunnableGenerator(half))) as url:
        seen = []
        with pytest.raises(httpx.HTTPStatusError, match="no replica") as raised:
            seen += [RemoteRunnable(url).stream("why?")]
            for chunk in seen[0]:
                assert chunk == "why?"
        assert raised.value.response.status_code == 503


def test_remote_runnable_reads_the_schemas(url: str) -> None:
    for kind in ("input", "output", "config"):
        assert httpx.get(f"{url}/{kind}_schema").json()["title"]


# -- OpenAI's client -------------------------------------------------------------------------------------------------


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="rag", messages=[{"role": "user", "content": "why?"}], **options)


def test_the_openai_client_asks_and_streams(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["rag"]
    answer = ask(client, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.total_tokens == 10
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage is not None


async def test_the_async_openai_client_asks_and_streams(url: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{url}/rag/v1", api_key="none")
    messages: list[Any] = [{"role": "user", "content": "why?"}]
    answer = await client.chat.completions.create(model="rag", messages=messages)
    assert answer.choices[0].message.content == ANSWER
    stream = await client.chat.completions.create(model="rag", messages=messages, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER


def test_the_openai_client_raises_its_own_errors() -> None:
    with serving(gateway(failing_chain(ValueError("secret")), api_key="key")) as url:
        with pytest.raises(openai.AuthenticationError, match="API key"):
            ask(openai.OpenAI(base_url=f"{url}/v1", api_key="wrong"))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="key")
        with pytest.raises(openai.UnprocessableEntityError, match="n: "):
            ask(client, n=3)
        with pytest.raises(openai.InternalServerError, match="ValueError") as raised:
            ask(client)
        assert "secret" not in str(raised.value)
        metrics = httpx.get(f"{url}/metrics", headers={"x-api-key": "key"}).text
    assert 'route="/v1/chat/completions",status="500"} 1.0' in metrics, "an error of the chain is not asked for again"


# -- clients that hang up --------------------------------------------------------------------------------------------


class Watched:
    """A gate on the server's loop, seen from the test's thread."""

    def __init__(self) -> None:
        self.entered, self.cancelled = threading.Event(), threading.Event()
        self.chain = RunnableLambda(self._wait)

    async def _wait(self, text: str) -> str:
        self.entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return text


def request_bytes(path: str, body: bytes, headers: str = "") -> bytes:
    kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\n{kind}{headers}\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/invoke", b'{"input": "why?"}'),
        ("/batch", b'{"inputs": ["why?"]}'),
        ("/stream", b'{"input": "why?"}'),
        ("/v1/chat/completions", b'{"model": "rag", "messages": [{"role": "user", "content": "why?"}]}'),
    ],
)
def test_a_client_that_hangs_up_cancels_its_run(path: str, body: bytes) -> None:
    watched = Watched()
    app = gateway(watched.chain)
    with serving(app) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(request_bytes(path, body))
            assert watched.entered.wait(20)
        assert watched.cancelled.wait(20)
        assert httpx.get(f"{url}/info").json()["in_flight"] == 0
        assert 'outcome="cancelled"' in httpx.get(f"{url}/metrics").text


def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_its_run() -> None:
    closed = threading.Event()

    async def endless(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            while True:
                yield "word "
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    with serving(gateway(RunnableGenerator(endless))) as url:
        with httpx.stream("POST", f"{url}/stream", json={"input": "why?"}) as response:
            next(response.iter_lines())
        assert closed.wait(20)


def test_a_client_that_stops_reading_stops_its_own_chain_and_nobody_elses() -> None:
    made: list[int] = []
    closed = threading.Event()

    async def chatter(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        if "".join([chunk async for chunk in chunks]) == "why?":
            yield ANSWER
            return
        try:
            while True:
                made.append(1)
                yield "word " * 2000
                await asyncio.sleep(0)
        finally:
            closed.set()

    with serving(gateway(RunnableGenerator(chatter))) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        connection.sendall(request_bytes("/stream", b'{"input": "go on"}', "x-request-timeout-seconds: 5\r\n"))
        connection.recv(100)
        seen = 0
        while len(made) > seen:  # until what lies between is full
            seen = len(made)
            time.sleep(0.3)
        assert len(made) < 2000, "20 MB wait for a client that does not read them"
        assert httpx.post(f"{url}/invoke", json={"input": "why?"}).json()["output"] == ANSWER
        assert closed.wait(20), "its deadline has passed, whether it reads or not"
        assert httpx.get(f"{url}/info").json()["in_flight"] == 0


def test_half_a_body_and_a_hang_up_leave_nothing_behind(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(request_bytes("/invoke", b'{"input": "why?"}')[:-5])
    assert httpx.post(f"{url}/invoke", json={"input": "why?"}).json()["output"] == ANSWER


def test_concurrent_streams_do_not_mix(url: str) -> None:
    async def read(http: httpx.AsyncClient) -> str:
        async with http.stream("POST", f"{url}/stream", json={"input": "why?"}) as response:
            return "".join([line[7:-1] async for line in response.aiter_lines() if line.startswith('data: "')])

    async def read_all() -> list[str]:
        async with httpx.AsyncClient() as http:
            return await asyncio.gather(*(read(http) for _ in range(20)))

    assert asyncio.run(read_all()) == [ANSWER] * 20
