"""RemoteRunnable against the real gateway on a socket: the same results as the chain, and the server's errors as they are."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda

from kit.gateway import ANSWER, USAGE, LcelRunner, chat_model, failing_chain, gateway, rag_chain
from kit.hosted import serving
from patchwork_adapters import RemoteRunnable
from patchwork_adapters.errors import ComponentUnavailable
from patchwork_adapters.remote import RemoteError, decoded, encoded

Serve = Callable[..., tuple[str, LcelRunner]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a chain; its URL and the runner that saw what arrived."""
    with ExitStack() as stack:

        def start(chain: Runnable[Any, Any], **settings: Any) -> tuple[str, LcelRunner]:
            runner = LcelRunner(chain)
            return stack.enter_context(serving(gateway(runner=runner, **settings))), runner

        yield start


async def test_every_mode_gives_what_the_chain_gives(serve: Serve) -> None:
    url, _ = serve(rag_chain())
    remote = RemoteRunnable(url)
    assert await asyncio.to_thread(remote.invoke, "q") == ANSWER
    assert await remote.ainvoke("q") == ANSWER
    assert await asyncio.to_thread(remote.batch, ["a", "b"]) == [ANSWER, ANSWER]
    assert await remote.abatch(["a", "b"]) == [ANSWER, ANSWER]
    chunks = await asyncio.to_thread(lambda: list(remote.stream("q")))
    assert len(chunks) > 1
    assert "".join(chunks) == ANSWER
    assert [c async for c in remote.astream("q")] == chunks
    assert (await asyncio.to_thread(remote.batch, []), await remote.abatch([])) == ([], [])
    remote.close()


async def test_it_composes_with_other_runnables(serve: Serve) -> None:
    url, _ = serve(rag_chain())
    chain = RunnableLambda(str.strip) | RemoteRunnable(url) | str.upper
    assert await asyncio.to_thread(chain.invoke, " q ") == ANSWER.upper()
    assert await chain.ainvoke(" q ") == ANSWER.upper()


async def test_events_are_those_of_the_chain_on_the_server(serve: Serve) -> None:
    url, _ = serve(rag_chain())
    events = [e async for e in RemoteRunnable(url).astream_events("q", include_types=["chat_model"])]
    assert {e["event"] for e in events} == {"on_chat_model_start", "on_chat_model_stream", "on_chat_model_end"}
    assert events[-1]["data"]["output"].content == ANSWER


async def test_messages_and_documents_come_back_as_objects(serve: Serve) -> None:
    url, _ = serve(chat_model())
    message = await RemoteRunnable(url).ainvoke([HumanMessage("hi")])
    assert isinstance(message, AIMessage)
    assert (message.content, message.usage_metadata) == (ANSWER, USAGE)
    chunks = [c async for c in RemoteRunnable(url).astream("hi")]
    assert "".join(c.content for c in chunks) == ANSWER

    documents = [Document("text", id="d1", metadata={"n": 1})]
    url, _ = serve(RunnableLambda(lambda text: {"documents": documents, "question": text}))
    assert await RemoteRunnable(url).ainvoke("q") == {"documents": documents, "question": "q"}


async def test_the_config_travels_and_each_input_of_a_batch_may_have_its_own(serve: Serve) -> None:
    url, runner = serve(rag_chain())
    remote = RemoteRunnable(url)
    run_id = uuid.uuid4()
    await remote.ainvoke("q", {"tags": ["a"], "metadata": {"m": 1}, "run_name": "named", "run_id": run_id})
    seen = runner.configs[-1]
    assert (seen["tags"], seen["metadata"]["m"], seen["run_name"], seen["run_id"]) == (["a"], 1, "named", run_id)
    await remote.abatch(["a", "b"], [{"tags": ["one"]}, {"tags": ["two"]}])
    assert [config["tags"] for config in runner.configs[-1]] == [["one"], ["two"]]


async def test_the_slo_is_the_deadline_of_each_request(serve: Serve) -> None:
    async def wait(text: str) -> str:
        await asyncio.sleep(30)
        return text

    url, runner = serve(RunnableLambda(wait))
    with pytest.raises(RemoteError) as raised:
        await RemoteRunnable(url, slo="200ms").ainvoke("q")
    assert (raised.value.status, raised.value.type, raised.value.retryable) == (504, "DeadlinePassed", True)
    assert runner.seen[0] is not None
    assert raised.value.run_id == runner.seen[0].run_id


async def test_errors_say_what_the_server_said(serve: Serve) -> None:
    url, _ = serve(failing_chain(ComponentUnavailable("no replica of llm answered")))
    remote = RemoteRunnable(url)
    for call in (remote.ainvoke("q"), remote.abatch(["q"]), anext(aiter(remote.astream("q")))):
        with pytest.raises(RemoteError, match="no replica of a component answered") as raised:
            await call
        assert (raised.value.status, raised.value.retryable) == (503, True)
    with pytest.raises(RemoteError) as raised:
        await asyncio.to_thread(remote.invoke, {"not": "a text"})
    assert raised.value.status == 422
    with pytest.raises(RemoteError) as raised:
        await RemoteRunnable(f"{url}/nowhere").ainvoke("q")
    assert raised.value.status == 404


async def test_an_error_in_the_middle_of_a_stream_is_raised_after_the_chunks_before_it(serve: Serve) -> None:
    async def broken(text: str) -> Any:
        yield "one "
        await asyncio.sleep(0.2)
        raise ComponentUnavailable("gone")

    from langchain_core.runnables import RunnableGenerator

    async def transform(texts: Any) -> Any:
        async for text in texts:
            async for chunk in broken(text):
                yield chunk

    url, _ = serve(RunnableGenerator(transform))
    got: list[str] = []
    with pytest.raises(RemoteError, match="no replica") as raised:
        async for chunk in RemoteRunnable(url).astream("q"):
            got.append(chunk)
    assert (got, raised.value.status) == (["one "], 503)


async def test_exceptions_of_a_batch_can_be_returned(serve: Serve) -> None:
    def sometimes(text: str) -> str:
        if text == "bad":
            raise ComponentUnavailable("not this one")
        return text

    url, _ = serve(RunnableLambda(sometimes))
    remote = RemoteRunnable(url)
    for answers in (
        await asyncio.to_thread(remote.batch, ["a", "bad"], return_exceptions=True),
        await remote.abatch(["a", "bad"], return_exceptions=True),
    ):
        assert answers[0] == "a"
        assert isinstance(answers[1], RemoteError)


async def test_the_api_key_is_sent_and_a_wrong_one_is_told(serve: Serve) -> None:
    url, _ = serve(rag_chain(), api_key="right")
    assert await RemoteRunnable(url, api_key="right").ainvoke("q") == ANSWER
    for remote in (RemoteRunnable(url), RemoteRunnable(url, api_key="wrong")):
        with pytest.raises(RemoteError) as raised:
            await remote.ainvoke("q")
        assert raised.value.status == 401
        assert "wrong" not in str(raised.value)


async def test_nobody_at_the_url_is_httpxs_own_error() -> None:
    with pytest.raises(httpx.ConnectError):
        await RemoteRunnable("http://127.0.0.1:9").ainvoke("q")


@pytest.mark.parametrize(
    "value",
    [
        {"type": "human", "content": 3},  # looks like a message and is none
        {"type": "Document"},
        {"type": ["x"], "content": "y"},
        [1, None, {"a": [True]}],
    ],
)
def test_what_only_looks_like_an_object_stays_what_it_is(value: Any) -> None:
    assert decoded(value) == value


def test_values_travel_there_and_back() -> None:
    value = {"messages": [HumanMessage("hi", id="1"), AIMessage("yo")], "documents": [Document("d", id="2")]}
    assert decoded(encoded(value)) == value
