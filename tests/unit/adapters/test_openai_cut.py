"""The protocol cut with the real clients: langchain-openai, LlamaIndex's OpenAI-like classes, and openai itself."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from patchwork_adapters.bridge import Bridge
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable, DeadlinePassed
from patchwork_adapters.leaves.spec import spec_for
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.protocol import decode_request

from .fakes import FakeCluster, route, vector

URL = "http://127.0.0.1:9/v1"
KEY = "sk-very-secret"


def chat(**options: object) -> ChatOpenAI:
    return ChatOpenAI(model="small", base_url=URL, api_key=KEY, max_retries=0, **options)  # type: ignore[arg-type]


def embeddings() -> OpenAIEmbeddings:
    return OpenAIEmbeddings(model="embed", base_url=URL, api_key=KEY, check_embedding_ctx_length=False)  # type: ignore[arg-type]


async def test_a_chat_model_answers_in_every_mode_through_its_component(cut: OpenAICut, cluster: FakeCluster) -> None:
    llm = chat()
    assert llm.invoke("hi").content == "echo of 1: hi"
    assert (await llm.ainvoke("hi")).content == "echo of 1: hi"
    assert [c.content for c in llm.stream("a b") if c.content] == ["echo ", "of ", "1: ", "a ", "b "]
    assert [c.content async for c in llm.astream("a b") if c.content] == ["echo ", "of ", "1: ", "a ", "b "]
    assert llm.invoke("hi").usage_metadata["total_tokens"] == 7  # type: ignore[index]
    assert [c.component for c in cluster.calls] == ["llm-small"] * 5
    assert [c.stream for c in cluster.calls] == [False, False, True, True, False]
    assert {c.method for c in cluster.calls} == {"POST /v1/chat/completions"}


async def test_embeddings_answer_through_their_component_and_say_how_many_texts(
    cut: OpenAICut, cluster: FakeCluster
) -> None:
    embedder = embeddings()
    assert embedder.embed_query("a") == pytest.approx(vector("a").tolist())
    assert await embedder.aembed_query("a") == pytest.approx(vector("a").tolist())
    assert len(embedder.embed_documents(["a", "b", "c"])) == 3
    assert [c.size for c in cluster.calls] == [1, 1, 3]


async def test_llamaindex_openai_like_classes_are_cut_too(cut: OpenAICut, cluster: FakeCluster) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model="small", api_base=URL, api_key=KEY, is_chat_model=True, max_retries=0)
    message = ChatMessage("hi")
    assert llm.complete("hi").text == "echo of 1: hi"
    assert (await llm.acomplete("hi")).text == "echo of 1: hi"
    assert llm.chat([message]).message.content == "echo of 1: hi"
    assert "".join(r.delta or "" for r in llm.stream_chat([message])) == "echo of 1: hi "
    assert "".join([r.delta or "" async for r in await llm.astream_chat([message])]) == "echo of 1: hi "
    embedder = OpenAILikeEmbedding(model_name="embed", api_base=URL, api_key=KEY, embed_batch_size=10)
    assert embedder.get_query_embedding("a") == pytest.approx(vector("a").tolist())
    assert len(await embedder.aget_text_embedding_batch(["a", "b"])) == 2
    assert {c.component for c in cluster.calls} == {"llm-small", "embedder-embed"}


@pytest.mark.filterwarnings("ignore")
def test_clients_of_local_servers_in_langchain_community_are_leaves_that_speak_it(
    cut: OpenAICut, cluster: FakeCluster
) -> None:
    from langchain_community.llms import VLLMOpenAI

    leaf = VLLMOpenAI(model_name="small", openai_api_base=URL, openai_api_key=KEY, max_tokens=3)
    spec = spec_for(type(leaf))
    assert spec is not None
    facts = spec.facts(leaf)
    assert (spec.speaks_openai, facts.model, facts.base_url) == (True, "small", URL)
    assert len(list(spec.openai_clients(leaf))) == 2  # one for each colour
    assert leaf.invoke("hi").split() == ["echo:", "['hi']"]
    assert "".join(leaf.stream("hi")).split()[0] == "echo:"
    assert {call.component for call in cluster.calls} == {"llm-small"}
    assert decode_request(cluster.calls[0].payload).json()["max_tokens"] == 3


def test_a_raw_client_is_cut_and_can_be_copied(cut: OpenAICut, cluster: FakeCluster) -> None:
    client = openai.OpenAI(base_url=URL, api_key=KEY).with_options(timeout=5)
    reply = client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x"}])
    assert reply.choices[0].message.content == "echo of 1: x"
    assert len(cluster.calls) == 1


def test_a_client_built_before_the_cut_is_retrofitted_with_the_name_of_its_leaf(cluster: FakeCluster) -> None:
    llm = chat()
    original = llm.root_client._client
    with Bridge(cluster) as bridge:
        cut = OpenAICut(bridge, route)
        assert cut.attach(llm.root_client, "chain.llm")
        assert cut.attach(llm.root_client, "chain.llm")  # twice is once
        assert llm.invoke("hi").content == "echo of 1: hi"
        cut.undo()
    assert cluster.calls[0].leaf == "chain.llm"
    assert llm.root_client._client is original


def test_a_model_that_is_not_ours_keeps_its_own_transport(cluster: FakeCluster) -> None:
    seen: list[str] = []

    def hosted(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(404, json={"error": {"message": "from the real server"}})

    with Bridge(cluster) as bridge:
        cut = OpenAICut(bridge, route)
        cut.install()
        client = openai.OpenAI(
            base_url=URL, api_key=KEY, http_client=httpx.Client(transport=httpx.MockTransport(hosted))
        )
        with pytest.raises(openai.NotFoundError, match="from the real server"):
            client.chat.completions.create(model="huge", messages=[])
        cut.undo()
    assert seen == [f"{URL}/chat/completions"]
    assert cluster.calls == []


def test_keys_and_cookies_do_not_travel(cut: OpenAICut, cluster: FakeCluster) -> None:
    chat(default_headers={"X-Api-Token": "another-secret", "Cookie": "a=third-secret"}).invoke("hi")
    payload = cluster.calls[0].payload
    assert set(decode_request(payload).headers) == {"accept", "content-type"}
    for secret in (KEY, "another-secret", "third-secret"):
        assert secret.encode() not in payload


def test_a_lost_replica_looks_like_a_busy_server_and_is_retried_by_the_client(
    cut: OpenAICut, cluster: FakeCluster
) -> None:
    cluster.fail_with = [ComponentUnavailable("no replica")]
    llm = chat()
    with pytest.raises(openai.InternalServerError) as caught:
        llm.invoke("hi")
    assert caught.value.status_code == 503
    cluster.fail_with = [ComponentUnavailable("no replica")]
    assert ChatOpenAI(model="small", base_url=URL, api_key=KEY, max_retries=2).invoke("hi").content == "echo of 1: hi"  # type: ignore[arg-type]
    cluster.fail_with = [ComponentFailed("broken")]
    with pytest.raises(openai.InternalServerError):  # not retryable: one call, although two retries are allowed
        ChatOpenAI(model="small", base_url=URL, api_key=KEY, max_retries=2).invoke("hi")  # type: ignore[arg-type]


async def test_a_passed_deadline_goes_through_the_client_and_through_fallbacks(
    cut: OpenAICut, cluster: FakeCluster
) -> None:
    chain = chat().with_fallbacks([chat()])
    with request_context(RequestContext("r", "r", deadline=0.0)):
        with pytest.raises(DeadlinePassed):
            chain.invoke("hi")
        with pytest.raises(DeadlinePassed):
            await chain.ainvoke("hi")
    assert cluster.calls == []


async def test_the_users_own_timeout_is_the_clients_timeout_error(cut: OpenAICut, cluster: FakeCluster) -> None:
    cluster.delay_s = 30.0
    with pytest.raises(openai.APITimeoutError):
        chat(timeout=0.05).invoke("hi")
    with pytest.raises(openai.APITimeoutError):
        await chat(timeout=0.05).ainvoke("hi")
    assert cluster.cancelled == ["POST /v1/chat/completions"] * 2


async def test_leaving_a_stream_early_cancels_the_work(cut: OpenAICut, cluster: FakeCluster) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Noted(list[str]):
        def append(self, item: str) -> None:
            super().append(item)
            loop.call_soon_threadsafe(stopped.set)

    cluster.cancelled = Noted()
    cluster.delay_s = 0.01
    stream = chat().astream("a b c d e f")
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(stopped.wait(), 10)
    assert cluster.cancelled == ["POST /v1/chat/completions"]


async def test_the_request_of_the_running_code_travels_with_the_call(cut: OpenAICut, cluster: FakeCluster) -> None:
    context = RequestContext("r1", "run1")
    with request_context(context):
        await chat().ainvoke("hi")
        await asyncio.to_thread(chat().invoke, "hi")
    assert [c.request for c in cluster.calls] == [context, context]


@pytest.mark.parametrize("first", [0, 1], ids=["the older ends first", "the newer ends first"])
def test_cuts_end_in_any_order_and_the_last_leaves_everything_as_it_was(first: int) -> None:
    constructors = openai.OpenAI.__init__, openai._base_client.SyncAPIClient.__init__
    with Bridge(FakeCluster()) as one, Bridge(FakeCluster()) as two:
        cuts = [OpenAICut(one, route), OpenAICut(two, route)]
        for cut in cuts:
            cut.install()
        client = openai.OpenAI(base_url=URL, api_key=KEY)
        cuts[first].undo()
        answer = client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "echo of 1: hi"
        cuts[1 - first].undo()
    assert (openai.OpenAI.__init__, openai._base_client.SyncAPIClient.__init__) == constructors
    assert type(client._client._transport).__module__.startswith("httpx")
