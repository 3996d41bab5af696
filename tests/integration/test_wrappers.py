"""The drop-in wrappers in a program with a running chain: real Ray, Postgres and models, against the plain chain on the same models."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from langchain_core.runnables import RunnableLambda

from kit.deployed import ROOT, Home, a_home, deployed
from patchwork_adapters import PatchworkQueryEngine, PatchworkRunnable
from patchwork_adapters.errors import DeadlinePassed
from patchwork_serving.errors import DeployError

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.models, pytest.mark.slow]

CHAINS = Path(__file__).parent / "chains"
QUESTIONS = ["Which number is the parrot?", "What does a whale eat?"]
#: What another program does with an equal chain: it says its answer, and waits to be told or killed.
PROGRAM = """
import small_rag, sys
from patchwork_adapters import PatchworkRunnable
print(PatchworkRunnable(small_rag.chain).invoke(sys.argv[1]).replace("\\n", " "), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """This process is the program: its own environment names the home."""
    with a_home() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHWORK_HOME", str(made.path))
        yield made


@pytest.fixture(scope="module")
def models(home: Home) -> Iterator[str]:
    """Where the plain chain finds its models: ``patchwork models serve``."""
    server = subprocess.Popen(
        [sys.executable, "-m", "patchwork_serving.cli", "models", "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if json.loads(line).get("event") == "ready":
                break
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", json.loads(line)["url"])
            patch.setenv("OPENAI_API_KEY", "local")
            yield json.loads(line)["url"]
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


@pytest.fixture(scope="module")
def program(models: str) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHAINS))
        import small_rag  # type: ignore[import-not-found]

        yield small_rag
        sys.modules.pop("small_rag")


@pytest.fixture(scope="module")
def plain(program: Any) -> dict[str, Any]:
    """What the chain gives before anything is wrapped."""
    return asyncio.run(everything(program.chain))


@pytest.fixture(scope="module")
def wrapped(program: Any, plain: dict[str, Any]) -> Iterator[PatchworkRunnable]:
    made = PatchworkRunnable(program.chain, slo="60s")
    yield made
    made.close()


async def everything(chain: Any) -> dict[str, Any]:
    return {
        "ainvoke": await chain.ainvoke(QUESTIONS[0]),
        "invoke": await asyncio.to_thread(chain.invoke, QUESTIONS[0]),
        "batch": await asyncio.to_thread(chain.batch, QUESTIONS),
        "abatch": await chain.abatch(QUESTIONS),
        "stream": "".join(await asyncio.to_thread(lambda: list(chain.stream(QUESTIONS[1])))),
        "astream": "".join([chunk async for chunk in chain.astream(QUESTIONS[1])]),
        "events": sorted({(e["event"], e["name"]) async for e in chain.astream_events(QUESTIONS[1], version="v2")}),
    }


def status(home: Home) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(home.run("status", "--json").stdout)
    return document


@contextmanager
def another_program(question: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process with an equal chain, wrapped, and its answer."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, question], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(CHAINS)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def until(condition: Any, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


async def test_every_mode_gives_what_the_plain_chain_gives_from_a_running_loop(
    wrapped: PatchworkRunnable, program: Any, plain: dict[str, Any]
) -> None:
    assert await everything(wrapped) == plain
    assert (
        await asyncio.to_thread((wrapped | RunnableLambda(str.upper)).invoke, QUESTIONS[0]) == plain["invoke"].upper()
    )
    assert await program.chain.ainvoke(QUESTIONS[0]) == plain["ainvoke"]


def test_the_wrapper_needs_no_server_where_the_plain_chain_does(
    wrapped: PatchworkRunnable, program: Any, plain: dict[str, Any]
) -> None:
    from langchain_openai import ChatOpenAI

    nowhere = ChatOpenAI(model="smollm2-135m-instruct", temperature=0, max_tokens=12, base_url="http://127.0.0.1:9/v1")
    chain = program.chain.first | program.chain.middle[0] | nowhere | program.chain.last
    with PatchworkRunnable(chain) as other:
        assert other.invoke(QUESTIONS[0]) == plain["invoke"]
    assert wrapped.invoke(QUESTIONS[0]) == plain["invoke"]  # both used the same components


def test_a_deadline_that_passes_is_raised(wrapped: PatchworkRunnable, program: Any) -> None:
    wrapped.connect()
    with PatchworkRunnable(program.chain, slo="20ms") as hasty, pytest.raises(DeadlinePassed):
        hasty.invoke(QUESTIONS[0])


def test_status_shows_it_and_down_leaves_it_alone(wrapped: PatchworkRunnable, home: Home) -> None:
    wrapped.connect()
    (app,) = status(home)["apps"]
    assert (app["state"], app["clients"]) == ("in use", [os.getpid()])
    result = home.run("down")
    assert result.returncode == 0
    assert f"process {os.getpid()}" in result.stderr
    assert wrapped.invoke(QUESTIONS[0])


def test_programs_with_equal_chains_share_components_and_one_that_is_killed_leaves_them(
    wrapped: PatchworkRunnable, home: Home, plain: dict[str, Any]
) -> None:
    wrapped.connect()
    with another_program(QUESTIONS[0]) as (process, answer):
        assert answer == plain["invoke"].replace("\n", " ")
        (app,) = status(home)["apps"]
        assert sorted(app["clients"]) == sorted([os.getpid(), process.pid])
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert until(lambda: status(home)["apps"][0]["clients"] == [os.getpid()])
    assert wrapped.invoke(QUESTIONS[0]) == plain["invoke"]


async def test_a_query_engine_answers_the_same_whole_and_as_a_stream(models: str, wrapped: PatchworkRunnable) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike
    from small_rag import PASSAGES

    server = {"api_base": models, "api_key": "local"}
    llm = OpenAILike(model="smollm2-135m-instruct", is_chat_model=True, temperature=0, max_tokens=12, **server)
    index = VectorStoreIndex(
        [TextNode(id_=f"p{n}", text=text) for n, text in enumerate(PASSAGES)],
        embed_model=OpenAILikeEmbedding(model_name="all-minilm-l6-v2", **server),
    )
    plain = index.as_query_engine(llm=llm, similarity_top_k=2)
    streaming = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True)
    expected = await asyncio.to_thread(plain.query, QUESTIONS[1])
    sources = [(n.node_id, n.text) for n in expected.source_nodes]
    with PatchworkQueryEngine(plain, slo="60s") as whole, PatchworkQueryEngine(streaming, slo="60s") as streamed:
        for answer in (await asyncio.to_thread(whole.query, QUESTIONS[1]), await whole.aquery(QUESTIONS[1])):
            assert (str(answer), [(n.node_id, n.text) for n in answer.source_nodes]) == (str(expected), sources)
        assert "".join((await asyncio.to_thread(streamed.query, QUESTIONS[1])).response_gen) == str(expected)
        tokens = await streamed.aquery(QUESTIONS[1])
        assert "".join([token async for token in tokens.async_response_gen()]) == str(expected)
    assert str(await asyncio.to_thread(plain.query, QUESTIONS[1])) == str(expected)


def test_with_the_name_of_a_deployed_application_its_components_are_used_and_stay(
    wrapped: PatchworkRunnable, home: Home, program: Any, plain: dict[str, Any]
) -> None:
    wrapped.connect()
    with deployed(home, str(CHAINS / "small_rag.py")) as url:
        before = {app["name"] for app in status(home)["apps"]}
        with PatchworkRunnable(program.chain, name="small_rag") as joined:
            assert joined.invoke(QUESTIONS[0]) == plain["invoke"]
            apps = {app["name"]: app for app in status(home)["apps"]}
            assert apps.keys() == before
            assert (apps["small_rag"]["url"], apps["small_rag"]["clients"]) == (url, [os.getpid()])
        with pytest.raises(DeployError, match="has no component for"):
            PatchworkRunnable(_with_other_documents(program), name="small_rag").connect()
        assert {app["name"]: app["state"] for app in status(home)["apps"]}["small_rag"] == "ready"
    assert wrapped.invoke(QUESTIONS[0]) == plain["invoke"]


def _with_other_documents(program: Any) -> Any:
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(["something else"], program.embeddings)
    return store.as_retriever() | program.join | program.llm


def test_after_closing_nothing_runs_and_the_plain_chain_is_as_before(
    wrapped: PatchworkRunnable, home: Home, program: Any, plain: dict[str, Any]
) -> None:
    wrapped.connect()
    ray = home.ray_processes()
    assert ray
    postmaster = home.postmaster()
    wrapped.close()
    _, left = psutil.wait_procs([*ray, postmaster], timeout=20)
    assert left == []
    assert status(home) == {"apps": [], "left": []}
    assert program.chain.invoke(QUESTIONS[0]) == plain["invoke"]


def test_a_program_that_ends_without_closing_leaves_nothing(home: Home, plain: dict[str, Any]) -> None:
    with another_program(QUESTIONS[0]) as (process, answer):
        assert answer == plain["invoke"].replace("\n", " ")
        ray = home.ray_processes()
        assert ray
    assert process.returncode == 0
    _, left = psutil.wait_procs(ray, timeout=20)
    assert left == []
    assert status(home) == {"apps": [], "left": []}
