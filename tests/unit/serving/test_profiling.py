"""Which batches a profile tries, when it stops, and what it makes of samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from patchwork_adapters.protocol import HttpRequest, HttpResponse, decode_request, encode_request, encode_response
from patchwork_adapters.sampling import SampledCall, SampledRequest
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.cost import TokenCost, fit_cost
from patchwork_scheduler.profile_model import Measured
from patchwork_serving.components.measuring import Run
from patchwork_serving.profiling import Search, Sweep
from patchwork_serving.release import ComponentSpec
from patchwork_serving.sample_payloads import frame_of, limited, longer, varied
from patchwork_serving.sampling_calls import branches, usage
from patchwork_serving.wire import CallFrame

EMBEDDER = ComponentSpec("embedder", "embedder", "engine", "onnx", "m")
LLM = ComponentSpec("llm", "llm", "protocol", "llamacpp", "m")
SEARCH = LeafCall("embedder", "e", "search", b"")


def chat_call(text: str = "word " * 40, **more: Any) -> LeafCall:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **more}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, json.dumps(body).encode()))
    return LeafCall("llm", "l", "POST /v1/chat/completions", payload)


class Machine:
    """Replicas whose batches take as long as a function says, and a clock that moves with them."""

    def __init__(self, seconds: Callable[[int], float], reply: Callable[[bytes], bytes] = lambda _: b"") -> None:
        self.seconds, self.reply, self.now = seconds, reply, 0.0
        self.tried: list[int] = []

    async def measure(self, frames: Sequence[bytes], at_once: int) -> Run:
        self.tried.append(at_once)
        rounds = len(frames) // at_once
        each = [self.seconds(at_once)] * rounds
        self.now += sum(each)
        return Run(tuple(each), 0.5 * sum(each), sum(each), 1000, tuple(self.reply(f) for f in frames))


def sweep(machine: Machine, spec: ComponentSpec = EMBEDDER, call: LeafCall = SEARCH, **search: Any) -> Measured:
    made = Sweep(spec, [call], machine.measure, Search(**search), clock=lambda: machine.now)
    return asyncio.run(made.run(2.0))


def test_batches_are_doubled_until_two_steps_together_gain_too_little() -> None:
    machine = Machine(lambda batch: 0.1 + 0.002 * batch if batch <= 8 else 0.0145 * batch)
    found = sweep(machine, least_gain=0.1)
    assert [p.batch for p in found.points] == [1, 2, 4, 8, 16, 32]  # at 16 it gained 0 %, and at 32 no more
    assert (found.cpus, found.hardware, found.cold_start_s) == (0.5, "cpu", 2.0)


def test_one_unlucky_step_does_not_end_the_search() -> None:
    seconds = {
        1: 1.0,
        2: 1.9,
        4: 3.4,
        8: 6.6,
        16: 13.2,
    }  # two gain 5 % over one, four 18 %, eight and sixteen 3 % over four
    found = sweep(Machine(seconds.__getitem__), least_gain=0.1, max_batch=64, budget_s=1e3)
    assert [p.batch for p in found.points] == [1, 2, 4, 8, 16]


def test_no_batch_is_begun_that_would_take_longer_than_the_budget_leaves() -> None:
    machine = Machine(lambda batch: 3.0 + batch)
    found = sweep(machine, budget_s=30.0)
    assert [p.batch for p in found.points] == [1, 2, 4]
    assert machine.now <= 30.0


def test_the_time_for_all_components_is_shared_and_what_one_leaves_the_next_may_use() -> None:
    search = Search(budget_s=40.0, total_s=120.0)
    assert search.for_one(spent_s=0.0, components_left=5).budget_s == 24.0
    assert search.for_one(spent_s=6.0, components_left=3).budget_s == 38.0
    assert search.for_one(spent_s=10.0, components_left=1).budget_s == 40.0
    assert search.for_one(spent_s=130.0, components_left=1).budget_s == 0.0  # it is measured all the same, one by one


def test_where_start_and_samples_took_long_less_is_left_for_measuring_but_half_of_it_at_least() -> None:
    search = Search(total_s=100.0)
    assert [search.within(left).total_s for left in (300.0, 80.0, 10.0, -5.0)] == [100.0, 80.0, 50.0, 50.0]
    assert Search(total_s=float("inf")).within(10.0).total_s == float("inf")


def test_long_batches_that_agree_are_run_twice_and_others_a_third_and_fourth_time() -> None:
    noise = iter([1.0, 1.0, 1.05, 1.0, 1.3, 1.2, 1.2])  # the first call of all; two of one; two and two of two
    machine = Machine(lambda batch: batch * next(noise))
    found = sweep(machine, max_batch=2, least_gain=-1.0, budget_s=100.0)
    assert machine.tried == [1, 1, 1, 2, 2, 2]
    assert [(p.batch, p.seconds) for p in found.points] == [(1, 1.025), (2, 2.4)]


def test_a_batch_that_is_allowed_no_longer_is_not_tried() -> None:
    found = sweep(Machine(lambda _: 0.1), max_batch=4)
    assert [p.batch for p in found.points] == [1, 2, 4]


def test_straight_lines_have_no_error_and_bends_have_one() -> None:
    straight = sweep(Machine(lambda batch: 0.1 + 0.01 * batch), least_gain=0.0, max_batch=16)
    bent = sweep(Machine(lambda batch: 0.1 if batch < 8 else 0.5), least_gain=-1.0, max_batch=16)
    assert straight.fit_error == pytest.approx(0.0, abs=1e-9)
    assert bent.fit_error is not None
    assert bent.fit_error > 0.05


def answered(frame: bytes) -> bytes:
    """A server that counts words and answers as many tokens as it may."""
    body = decode_request(CallFrame.from_bytes(frame).payload).json()
    usage = {"prompt_tokens": len(body["messages"][0]["content"].split()), "completion_tokens": body["max_tokens"]}
    return encode_response(HttpResponse(200, {}, json.dumps({"usage": usage}).encode()))


def test_an_llm_is_measured_at_two_lengths_and_gives_the_rows_of_a_token_cost() -> None:
    found = sweep(Machine(lambda batch: 0.2 + 0.02 * batch, answered), LLM, chat_call(), max_batch=8, least_gain=0.0)
    assert {round(p.tokens or 0) for p in found.points} == {
        61,
        101,
    }  # 40 words, a number in front, 20 tokens out; and twice 40
    assert {row["n_out"] for row in found.rows} == {1, 20}
    assert isinstance(fit_cost(found.rows), TokenCost)


def test_prompts_are_varied_so_that_no_cache_answers_them() -> None:
    calls = [decode_request(varied(chat_call("same"), n).payload).json()["messages"][0]["content"] for n in (1, 2)]
    assert calls == ["[1] same", "[2] same"]


def test_prompts_can_be_made_longer_answers_shorter_and_streams_whole() -> None:
    call = limited(longer(chat_call("once", stream=True, stream_options={"include_usage": True})), 1)
    frame = CallFrame.from_bytes(frame_of(call, 3))
    body = decode_request(frame.payload).json()
    assert body == {"model": "m", "messages": [{"role": "user", "content": "once\nonce"}], "max_tokens": 1}
    assert not frame.stream


def request(*calls: tuple[str, float, float]) -> SampledRequest:
    """Calls by call-site, begin and end; the component is what stands before the ``@``."""
    seen = tuple(
        SampledCall(
            site,
            (leaf := site.split("@")[0]),
            leaf.upper(),
            "m",
            begin,
            end - begin,
            prompt_tokens=int(begin),
            output_tokens=4,
        )
        for site, begin, end in calls
    )
    return SampledRequest(0, 20.0, 0.0, seen)


ONE = request(("search", 0, 1), ("llm@grade", 1, 2), ("llm@grade", 1, 2.5), ("llm@answer", 3, 5))
TWO = request(
    ("search", 10, 11), ("llm@grade", 11, 12), ("search", 12, 13), ("llm@grade", 13, 14), ("llm@answer", 14, 15)
)


def test_calls_at_once_are_visits_but_one_step_of_the_path() -> None:
    found = usage([ONE, TWO])
    assert (found["SEARCH"].visits, found["SEARCH"].serial_visits) == (1.5, 1.5)
    assert (found["LLM"].visits, found["LLM"].serial_visits) == (3.0, 2.5)
    assert found["SEARCH"].seconds == 1.0


def test_a_component_is_used_with_its_tokens_from_the_places_that_call_it() -> None:
    found = usage([ONE, TWO])
    assert found["LLM"].call_sites == ("llm@grade", "llm@answer")
    assert found["LLM"].tokens() == {"prompt_tokens": (1 + 1 + 3 + 11 + 13 + 14) / 6, "output_tokens": 4.0}
    silent = replace(ONE, calls=tuple(replace(call, prompt_tokens=None, output_tokens=None) for call in ONE.calls))
    assert usage([silent])["LLM"].tokens() == {}


def test_branches_say_what_came_next_and_how_often() -> None:
    found = {(b.source, b.target): (b.probability, b.kind) for b in branches([TWO])}
    assert found["llm@grade", "search"] == (0.5, "cond")
    assert found["llm@grade", "llm@answer"] == (0.5, "cond")
    assert found["search", "llm@grade"] == (1.0, "data")
    assert found["llm@answer", "__end__"] == (1.0, "data")


def test_a_walk_along_the_branches_makes_as_many_calls_as_the_samples_did() -> None:
    """Two keys of a parallel part ask one model at once: the simulator makes both calls at the one stop."""
    at_once = request(("search", 0, 1), ("llm@{a}", 1, 3), ("llm@{b}", 1.5, 2), ("llm@answer", 3, 5))
    used = usage([at_once])["LLM"]
    stops = sum(b.probability for b in branches([at_once]) if b.target.startswith("llm"))
    assert stops == used.serial_visits == 2.0
    assert used.visits == 3.0
