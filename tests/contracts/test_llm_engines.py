"""One suite for the engines of LLMs: llama.cpp and OpenVINO in ``make test``, vLLM (on the CPU, the same weights) in ``make test-vllm``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from kit.llm_engines import CAPITAL, ENGINES, STORY, LlmEngine, frames, idle, left, post, started
from patchwork_adapters import codec
from patchwork_adapters.protocol import decode_response
from patchwork_serving.components.engine import ContinuousEngine, EngineCall, TokenEngine
from patchwork_serving.components.openvino_engine import OpenVinoEngine
from patchwork_serving.errors import EngineDied, EngineRefused

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlmEngine]:
    async with started(request.param, tmp_path_factory, slots=8, context=1024) as engine:
        yield engine


def operation(name: str, stream: bool = False, **body: Any) -> EngineCall:
    return EngineCall(id="1", leaf="l", method=name, payload=codec.encode({"body": body}), stream=stream)


async def answered(engine: ContinuousEngine, call: EngineCall) -> tuple[int, dict[str, Any]]:
    [frame] = await frames(engine, call)
    response = decode_response(frame)
    return response.status, json.loads(response.body)


def events(stream: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in stream.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def content(document: dict[str, Any]) -> str:
    return str(document["choices"][0]["message"]["content"])


@dataclass
class Counted:
    """A Progress that remembers."""

    pieces: list[int] = field(default_factory=list)
    usage: tuple[int, int] | None = None

    def generated(self, tokens: int = 1) -> None:
        self.pieces.append(tokens)

    def used(self, prompt_tokens: int, output_tokens: int) -> None:
        self.usage = (prompt_tokens, output_tokens)


async def test_it_knows_the_capital_of_france_and_counts_its_tokens(engine: LlmEngine) -> None:
    status, reply = await answered(engine, post())
    assert status == 200
    assert "Paris" in content(reply)
    assert reply["choices"][0]["finish_reason"] == "stop"
    usage = reply["usage"]
    assert usage["prompt_tokens"] == 37  # the template's system prompt and the question
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_an_answer_that_is_cut_says_so(engine: LlmEngine) -> None:
    _, reply = await answered(engine, post(max_tokens=3))
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 3


async def test_a_stream_says_what_the_whole_answer_says(engine: LlmEngine) -> None:
    head, *rest = await frames(engine, post(stream=True, stream_options={"include_usage": True}))
    response = decode_response(head)
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(b"".join(rest))
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    _, whole = await answered(engine, post())
    assert said == content(whole)
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len(rest) > 2  # it did stream


async def test_the_operations_answer_what_the_protocol_answers(engine: LlmEngine) -> None:
    [frame] = await frames(engine, operation("chat", messages=CAPITAL, temperature=0, max_tokens=32))
    _, whole = await answered(engine, post())
    assert content(codec.decode_outcome(frame)) == content(whole)
    streamed = await frames(
        engine, operation("complete", stream=True, prompt="The capital of France is", max_tokens=4, temperature=0)
    )
    text = "".join(codec.decode_outcome(frame)["choices"][0]["text"] for frame in streamed)
    assert "Paris" in text
    _, completion = await answered(
        engine, post(path="/v1/completions", prompt="The capital of France is", max_tokens=4)
    )
    assert completion["choices"][0]["text"] == text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_told_of_its_tokens_while_it_runs(engine: LlmEngine, stream: bool) -> None:
    assert isinstance(engine, TokenEngine)
    counted = Counted()
    reply = await frames(
        engine, post(stream=stream, progress=counted, stream_options={"include_usage": True} if stream else None)
    )
    document = events(b"".join(reply[1:]))[-1] if stream else json.loads(decode_response(reply[0]).body)
    usage = document["usage"]
    assert counted.usage == (usage["prompt_tokens"], usage["completion_tokens"])
    assert len(counted.pieces) > 2  # not only at the end
    assert (
        abs(sum(counted.pieces) - usage["completion_tokens"]) <= 2
    )  # an engine may tell of a role or an end as of a token


async def test_sixteen_at_once_over_eight_slots_all_get_their_own_answer(engine: LlmEngine) -> None:
    """Told by the country that each answer names: words may differ in company, in rare cases, by the rounding of another batch."""
    countries = ["France", "Japan", "Italy", "Spain", "Russia", "Egypt", "Germany", "Greece"]
    prompts = [
        [{"role": "user", "content": f"Name the capital city of {name}. Answer with: The capital city of {name} is"}]
        for name in countries
    ]
    together = await asyncio.gather(*(answered(engine, post(messages=prompt)) for prompt in prompts * 2))
    said = [content(reply) for _, reply in together]
    assert [name in text for name, text in zip(countries * 2, said, strict=True)] == [True] * 16
    assert "Paris" in said[0]


async def test_stop_seed_logprobs_and_schema_reach_the_engine(engine: LlmEngine) -> None:
    _, stopped = await answered(engine, post(stop=["Paris"]))
    assert "Paris" not in content(stopped)
    # asked before, so that each is computed from the same cached tokens
    _, sampled, again, other = [
        content((await answered(engine, post(messages=STORY, temperature=1.0, seed=seed)))[1]) for seed in (7, 7, 7, 8)
    ]
    assert sampled == again != other
    alternatives = 0 if isinstance(engine, OpenVinoEngine) else 3
    _, scored = await answered(engine, post(logprobs=True, top_logprobs=alternatives, max_tokens=2))
    scores = scored["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in scores] == [alternatives] * 2
    assert all(token["logprob"] < 0 and content(scored).count(token["token"]) for token in scores)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    _, shaped = await answered(engine, post(response_format=wanted, max_tokens=60))
    assert "Paris" in json.loads(content(shaped))["city"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "word " * 3000}]},  # longer than the context
        {"temperature": "hot"},
        {"max_tokens": -5},
        {"messages": "no list"},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_request_is_a_400_and_an_error_document(
    engine: LlmEngine, body: dict[str, Any], stream: bool
) -> None:
    head, *rest = await frames(engine, post(stream=stream, **body))
    response = decode_response(head)
    assert response.status == 400
    assert json.loads(response.body + b"".join(rest))["error"]["message"]
    assert engine.processing() == 0


@pytest.mark.parametrize("prompt", [5, {"text": "hello"}, [["a"], 3], None])
async def test_a_prompt_that_is_no_text_is_a_400(engine: LlmEngine, prompt: object) -> None:
    status, document = await answered(engine, post(path="/v1/completions", prompt=prompt))
    assert (status, bool(document["error"]["message"])) == (400, True)


async def test_an_operation_that_is_refused_raises(engine: LlmEngine) -> None:
    with pytest.raises(EngineRefused, match="context (size|length)"):
        await frames(engine, operation("complete", prompt="word " * 3000))
    with pytest.raises(EngineRefused, match="not 'sing'"):
        await frames(engine, operation("sing"))


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_sequence(engine: LlmEngine, stream: bool) -> None:
    """800 tokens take either engine ten seconds and more."""
    long = post(stream=stream, messages=STORY, max_tokens=800, ignore_eos=True)
    await left(engine, long)
    await idle(engine, within_s=3)
    _, reply = await answered(engine, post())
    assert "Paris" in content(reply)


async def test_a_client_that_stops_reading_holds_up_nobody_else(engine: LlmEngine) -> None:
    unread = engine.generate(post(stream=True, messages=STORY, max_tokens=300, ignore_eos=True))
    await anext(unread)
    _, reply = await answered(engine, post())
    assert "Paris" in content(reply)
    await unread.aclose()  # type: ignore[attr-defined]
    await idle(engine)


async def test_an_engine_that_does_not_run_says_so(engine: LlmEngine) -> None:
    other = type(engine)(lambda: pytest.fail("nothing is loaded"), name="other", **engine_defaults(engine))
    with pytest.raises(EngineDied, match="not running"):
        await frames(other, post())
    await other.close()
    await other.close()


def engine_defaults(engine: LlmEngine) -> dict[str, Any]:
    return {"arguments": {}} if type(engine).__name__ == "VllmEngine" else {}
