"""Emulated engines: valid answers, in the time that a profile says, and nothing left behind by a caller who goes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_adapters.transport import Kind
from patchwork_scheduler.cost import BatchCost, TokenCost, fit_cost
from patchwork_serving.components.emulated import BatchTimes, EmulatedEmbedder, EmulatedTime
from patchwork_serving.components.emulated_factory import build_emulated
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_profiles import bundled_names, emulation, load_profile
from patchwork_serving.components.emulated_replies import Wish, answer_of, tokens_of
from patchwork_serving.components.engine import SILENT, BatchEngine, ContinuousEngine, EngineCall
from patchwork_serving.components.openai_chunks import DONE, WholeAnswer
from patchwork_serving.config import load_config
from patchwork_serving.errors import ConfigError, EngineRefused
from patchwork_serving.release import ComponentSpec

ROWS_3B = load_profile("llama-3.2-3b-h100", Path(), "test").rows
COST_3B = TokenCost.fit(ROWS_3B)


def body(text: str = "Is it so?", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def chat(document: Mapping[str, Any], id: str = "c", *, stream: bool = False) -> EngineCall:
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(document)))
    return EngineCall(id, "llm", "POST /v1/chat/completions", payload, stream=stream)


def llm(loop: VirtualLoop, **wish: Any) -> EmulatedLlm:
    return EmulatedLlm(COST_3B, Wish(**wish), name="m", profile="p", clock=loop.time)


async def told(engine: ContinuousEngine, call: EngineCall) -> list[bytes]:
    return [frame async for frame in engine.generate(call)]


def document_of(frame: bytes) -> dict[str, Any]:
    response = decode_response(frame)
    assert response.status == 200
    document: dict[str, Any] = orjson.loads(response.body)
    return document


def test_an_answer_has_the_length_that_was_asked_for_and_counts_it_right() -> None:
    async def main(loop: VirtualLoop) -> dict[str, Any]:
        engine = llm(loop)
        await engine.start()
        (frame,) = await told(engine, chat(body("four" * 10, max_tokens=12)))
        return document_of(frame)

    document = run_virtually(main)
    text = document["choices"][0]["message"]["content"]
    assert document["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}
    assert tokens_of(text) == len(text.split()) == 12


def test_a_stream_brings_the_same_answer_in_pieces() -> None:
    async def main(loop: VirtualLoop) -> tuple[dict[str, Any], dict[str, Any], int]:
        engine = llm(loop, n_out=40)
        await engine.start()
        (frame,) = await told(engine, chat(body()))
        asked = body(stream=True, stream_options={"include_usage": True})
        head, *events = await told(engine, chat(asked, "s", stream=True))
        assert decode_response(head).headers["content-type"].startswith("text/event-stream")
        streamed = WholeAnswer()
        assert [streamed.add(event.removeprefix(b"data: ").strip()) for event in events][-1]
        assert events[-1].strip() == b"data: " + DONE
        return document_of(frame), streamed.document(), len(events)

    whole, streamed, events = run_virtually(main)
    assert streamed["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    assert streamed["usage"] == whole["usage"]
    assert events > 5  # in pieces, not all at the end


def test_a_lone_call_takes_as_long_as_the_cost_model_says() -> None:
    async def main(loop: VirtualLoop) -> float:
        engine = llm(loop, n_in=512, n_out=129)
        await engine.start()
        began = loop.time()
        await told(engine, chat(body()))
        return loop.time() - began

    assert run_virtually(main) == pytest.approx(COST_3B.alone_s(512, 129), rel=0.02)


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_calls_at_once_slow_each_other_as_they_did_on_the_gpu(batch: int) -> None:
    async def main(loop: VirtualLoop) -> float:
        engine = llm(loop, n_in=512, n_out=129)
        await engine.start()
        began = loop.time()
        await asyncio.gather(*(told(engine, chat(body(f"{i}"), f"c{i}")) for i in range(batch)))
        return loop.time() - began

    (measured,) = (r["seconds"] for r in ROWS_3B if (r["n_in"], r["n_out"], r["batch"]) == (512, 129, batch))
    assert run_virtually(main) == pytest.approx(measured, rel=0.15)


def test_timers_that_wake_late_do_not_add_up() -> None:
    async def main(loop: VirtualLoop) -> float:
        engine = llm(loop, n_in=64, n_out=200)
        await engine.start()
        began = loop.time()
        await asyncio.gather(*(told(engine, chat(body(stream=True), f"c{i}", stream=True)) for i in range(4)))
        return loop.time() - began

    on_time, late = run_virtually(main), run_virtually(main, oversleep_s=0.003)
    assert on_time < late < on_time + 3 * 0.003


def test_a_caller_who_leaves_takes_his_work_with_him() -> None:
    async def main(loop: VirtualLoop) -> tuple[float, float]:
        engine = llm(loop, n_out=100)
        await engine.start()
        crowd = [asyncio.ensure_future(told(engine, chat(body(f"{i}"), f"c{i}"))) for i in range(64)]
        frames = engine.generate(chat(body("left", stream=True), "left", stream=True))
        await anext(frames)
        await anext(frames)
        await frames.aclose()  # type: ignore[attr-defined]
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        began = loop.time()
        await told(engine, chat(body("alone"), "alone"))
        return loop.time() - began, COST_3B.alone_s(tokens_of("alone"), 100)

    took, alone = run_virtually(main)
    assert took == pytest.approx(alone, rel=0.05)


def test_decisions_follow_the_weights_and_are_the_same_every_time() -> None:
    wish = Wish(answers={"yes": 0.7, "no": 0.3})
    first = [answer_of(body(f"question {i}"), wish).text for i in range(2000)]
    assert first == [answer_of(body(f"question {i}"), wish).text for i in range(2000)]
    assert first.count("yes") / 2000 == pytest.approx(0.7, abs=0.03)
    assert first != [answer_of(body(f"question {i}"), Wish(seed=1, answers=wish.answers)).text for i in range(2000)]


def test_structured_output_gets_the_answer_as_the_arguments_of_its_function() -> None:
    async def main(loop: VirtualLoop) -> dict[str, Any]:
        engine = llm(loop, answers={'{"score": "yes"}': 1.0})
        await engine.start()
        forced = body(tool_choice={"type": "function", "function": {"name": "Grade"}})
        (frame,) = await told(engine, chat(forced))
        return document_of(frame)

    (call,) = run_virtually(main)["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "Grade", "arguments": '{"score": "yes"}'}


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},  # nothing to answer
        {**body(), "n": 2},  # an emulated engine gives one
        {**body(), "max_tokens": 0},
    ],
)
def test_what_a_server_would_refuse_is_refused_in_the_protocols_own_way(wrong: dict[str, Any]) -> None:
    async def main(loop: VirtualLoop) -> int:
        engine = llm(loop)
        await engine.start()
        (frame,) = await told(engine, chat(wrong))
        return decode_response(frame).status

    assert run_virtually(main) == 400


def embed(texts: list[str], id: str = "e") -> EngineCall:
    return EngineCall(id, "emb", "embed", codec.encode({"texts": texts, "normalize": None}), size=len(texts))


def test_vectors_are_those_of_the_words_and_batches_take_their_time() -> None:
    times = BatchTimes([{"batch": 1, "seconds": 0.5}, {"batch": 4, "seconds": 0.8}])

    async def main(loop: VirtualLoop) -> tuple[float, list[Any]]:
        engine = EmulatedEmbedder(times, name="e", profile="p", dim=64, wish=Wish(), clock=loop.time)
        await engine.start()
        began = loop.time()
        replies = await engine.run([embed(["red apple", "green apple"]), embed(["red apple", "fast car"], "f")])
        return loop.time() - began, [codec.decode_outcome(r) for r in replies if isinstance(r, bytes)]

    took, (first, second) = run_virtually(main)
    assert took == pytest.approx(0.8)
    assert np.array_equal(first[0], second[0])
    assert first[0] @ first[1] > first[0] @ second[1]
    assert np.linalg.norm(first, axis=1) == pytest.approx(1.0)


class _Instant:
    """A batch engine that is done at once."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        return {"engine": "instant"}

    async def run(self, batch: Any) -> list[bytes | Exception]:
        return [call.payload for call in batch]


def test_a_component_gives_its_own_replies_in_the_time_of_the_profile() -> None:
    async def main(loop: VirtualLoop) -> tuple[float, Any]:
        engine = EmulatedTime(_Instant(), BatchTimes([{"batch": 1, "seconds": 0.03}]), profile="p", clock=loop.time)
        assert engine.describe()["emulates"] == "instant"
        began = loop.time()
        for i in range(100):
            replies = await engine.run([EngineCall(f"c{i}", "l", "search", b"x")])
        return loop.time() - began, replies

    took, replies = run_virtually(main, oversleep_s=0.001)
    assert replies == [b"x"]
    assert took == pytest.approx(3.0, abs=0.002)  # not 3.1: what a timer overslept is made up for


def test_every_bundled_profile_makes_an_engine() -> None:
    for name in bundled_names():
        args = emulation({"profile": name}, Path(), "here")
        spec = ComponentSpec("c", args["kind"], "engine", "emulated", "m", args)
        assert isinstance(build_emulated(spec, "m"), BatchEngine | ContinuousEngine)
        assert isinstance(fit_cost(args["rows"]), TokenCost | BatchCost)


def built(kind: Kind, **args: Any) -> Any:
    return build_emulated(ComponentSpec("c", kind, "protocol", "emulated", "m", args), "m")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"rows": []}, r"rows: must be a list"),
        ({"rows": [{"batch": 1, "seconds": 0.1}]}, r"rows\[0\]: an LLM's rows need n_in"),
        ({"rows": [{"batch": 0, "seconds": 0.1}]}, r"rows\[0\]\.batch: must be a number of at least 1"),
        ({"rows": [*ROWS_3B], "n_out": 0}, r"n_out: must be an integer of at least 1"),
        ({"rows": [*ROWS_3B], "n_out": [9, 3]}, r"n_out: must be a number of tokens, or \[least, most\]"),
        ({"rows": [*ROWS_3B], "answers": {"yes": -1}}, r"answers\.yes: must be a weight"),
        ({"rows": [*ROWS_3B], "slower": 0}, r"slower: must be a number above 0"),
        ({"rows": [*ROWS_3B], "speed": 2}, r"speed: the emulated engine has no such argument"),
    ],
)
def test_a_bad_argument_names_its_place(args: Mapping[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.m\.engine_args\.{match}"):
        built("llm", **args)


@pytest.mark.parametrize(
    ("yaml", "match"),
    [
        ("models: {m: {engine: emulated, engine_args: {profile: h200}}}", "there is no profile 'h200'; bundled are bge"),
        ("models: {m: {engine: emulated, engine_args: {profile: ./x.json}}}", "cannot read .*x.json"),
        ("models: {m: {engine: emulated}}", r"models\.m\.engine_args\.profile: name a profile"),
        (  # YAML's yes is true
            "models: {m: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, answers: {yes: 1}}}}",
            "True must be a text; write it in quotes",
        ),
        ("components: {c: {emulate: {slower: 2}}}", r"components\.c\.emulate\.profile: name a profile"),
    ],
)  # fmt: skip
def test_a_bad_choice_in_patchwork_yaml_is_told_when_it_is_read(tmp_path: Path, yaml: str, match: str) -> None:
    file = tmp_path / "patchwork.yaml"
    file.write_text(yaml, encoding="utf-8")
    with pytest.raises(ConfigError, match=match):
        load_config(file)


def test_a_profile_beside_patchwork_yaml_travels_with_the_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"kind": "retriever", "rows": [{"batch": 1, "seconds": 0.02}]}')
    (tmp_path / "patchwork.yaml").write_text("components: {r: {emulate: {profile: ./mine.json}}}", encoding="utf-8")
    emulate = load_config(None, beside=tmp_path).components["r"].emulate
    assert emulate is not None
    assert emulate.rows == [{"batch": 1.0, "seconds": 0.02}]


def test_a_stream_of_a_component_in_its_own_time_is_refused() -> None:
    class Own:
        slots = 1

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        def describe(self) -> Mapping[str, Any]:
            return {}

        async def generate(self, call: EngineCall) -> Any:
            yield b"x"

    async def main(loop: VirtualLoop) -> Any:
        engine = EmulatedTime(Own(), BatchTimes([{"batch": 1, "seconds": 0.01}]), profile="p", clock=loop.time)
        return await engine.run([EngineCall("a", "l", "m", b""), EngineCall("b", "l", "m", b"", stream=True)])

    served, refused = run_virtually(main)
    assert served == b"x"
    assert isinstance(refused, EngineRefused)


class _Told:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.counted: tuple[int, int] | None = None

    def generated(self, tokens: int = 1) -> None:
        self.tokens.append(tokens)

    def used(self, prompt_tokens: int, output_tokens: int) -> None:
        self.counted = (prompt_tokens, output_tokens)


def test_the_host_is_told_of_every_token_and_earlier_priorities_go_first() -> None:
    async def main(loop: VirtualLoop) -> tuple[_Told, list[str]]:
        engine = EmulatedLlm(COST_3B, Wish(n_out=30, n_in=4096), name="m", profile="p", clock=loop.time)
        await engine.start()
        progress, ended = _Told(), []

        async def ask(name: str, priority: int) -> None:
            call = replace(chat(body(name), name), priority=priority, progress=progress if name == "first" else SILENT)
            await told(engine, call)
            ended.append(name)

        # three prompts more than one step takes: who waits goes by priority
        await asyncio.gather(ask("running", 9), ask("also running", 9), ask("last", 5), ask("first", 1))
        return progress, ended

    progress, ended = run_virtually(main)
    assert sum(progress.tokens) == 30
    assert len(progress.tokens) > 3
    assert progress.counted == (4096, 30)
    assert ended.index("first") < ended.index("last")
