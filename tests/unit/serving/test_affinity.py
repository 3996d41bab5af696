"""Which replica has seen a prompt's beginning."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchwork_adapters import codec, protocol
from patchwork_adapters.transport import LeafCall
from patchwork_serving.scheduling.affinity import ASSUMED, BLOCK, Keys, PrefixMemory, keys_of

DOCUMENT, OTHER = "It is said that " * 200, "Others say that " * 200


def by_engine(**body: Any) -> LeafCall:
    return LeafCall("llm", "leaf", "chat", codec.encode({"body": body}))


def by_protocol(**body: Any) -> LeafCall:
    request = protocol.HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(body))
    return LeafCall("llm", "leaf", "POST /v1/chat/completions", protocol.encode_request(request))


def asked(document: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": document}, {"role": "user", "content": question}]


def common(one: Keys, other: Keys) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("call", [by_engine, by_protocol])
def test_prompts_have_the_keys_in_common_with_which_they_begin(call: Any) -> None:
    short, longer = (
        call(messages=asked(DOCUMENT, question), model="m") for question in ("Who?", "Who says so, and why?")
    )
    blocks = len(DOCUMENT) // BLOCK
    assert blocks <= common(keys_of(short), keys_of(longer)) < len(keys_of(longer))
    assert keys_of(short) == keys_of(call(messages=asked(DOCUMENT, "Who?"), model="m"))
    assert common(keys_of(short), keys_of(call(messages=asked(OTHER, "Who?"), model="m"))) == 0


@pytest.mark.parametrize("call", [by_engine, by_protocol])
def test_a_conversation_begins_with_its_earlier_turns(call: Any) -> None:
    turns = asked(DOCUMENT, "Who? " * 200)
    later = [*turns, {"role": "assistant", "content": "They."}, {"role": "user", "content": "Why?"}]
    first, second = keys_of(call(messages=turns, model="m")), keys_of(call(messages=later, model="m"))
    assert common(first, second) >= len(first) - 1


def test_one_message_with_everything_in_it_is_known_by_its_beginning() -> None:
    one, other = (
        keys_of(by_engine(messages=[{"role": "user", "content": f"{DOCUMENT}\n{question}"}]))
        for question in ("Who?", "Why? " * 9)
    )
    assert common(one, other) >= len(DOCUMENT) // BLOCK


def test_tools_come_before_what_is_said() -> None:
    messages = asked(DOCUMENT, "Who?")
    plain, with_tools = (
        keys_of(by_engine(messages=messages)),
        keys_of(by_engine(messages=messages, tools=[{"name": "find"}])),
    )
    assert common(plain, with_tools) == 0


def test_a_payload_that_is_nobodys_prompt_is_known_as_it_is() -> None:
    own = LeafCall("llm", "leaf", "_generate", b"\xc1" * 700)
    assert keys_of(own) == keys_of(own._replace(method="chat"))
    assert len(keys_of(own)) == 2


@pytest.mark.parametrize(
    "body", [{"messages": ["x"]}, {"messages": None}, {"messages": [{"content": None}]}, ["x"], "x", None]
)
def test_a_body_that_the_engine_will_refuse_is_no_error_here(body: Any) -> None:
    assert len(keys_of(LeafCall("llm", "leaf", "chat", codec.encode({"body": body})))) == 1


def test_until_it_is_measured_a_beginning_is_taken_to_save_a_part_of_the_call() -> None:
    memory = PrefixMemory()
    first, second = (keys_of(by_engine(messages=asked(DOCUMENT, question))) for question in ("Who?", "Why?"))
    memory.observe(first, "a", None)
    saved = memory.saved_s(second, alone_s=2.0)
    assert saved is not None
    assert list(saved) == ["a"]
    assert 0.5 * 2.0 * ASSUMED < saved["a"] < 2.0 * ASSUMED  # most of the prompt, not its question


def test_what_a_beginning_saves_is_measured_by_how_much_of_the_prompt_it_is() -> None:
    memory = PrefixMemory()
    for n in range(20):
        document = f"{n}. {DOCUMENT}"
        memory.observe(keys_of(by_engine(messages=asked(document, "Who?"))), "a", 1.0)
        memory.observe(
            keys_of(by_engine(messages=asked(document, "Why? " * 1000))), "a", 1.0 - 0.6 * 0.39
        )  # of which 39 % was seen
    half_seen = keys_of(by_engine(messages=asked(f"0. {DOCUMENT}", "How? " * 640)))
    saved = memory.saved_s(half_seen, alone_s=2.0)
    assert saved is not None
    assert saved["a"] == pytest.approx(2.0 * 0.6 * 0.5, rel=0.1)


def test_the_replica_that_has_seen_more_saves_more() -> None:
    memory = PrefixMemory()
    long = keys_of(by_engine(messages=asked(DOCUMENT, "Who? " * 200)))
    memory.observe(long[:2], "a", None)
    memory.observe(long, "b", None)
    saved = memory.saved_s(long, alone_s=1.0)
    assert saved is not None
    assert saved["a"] < saved["b"]


def test_an_engine_that_keeps_no_prompts_saves_nothing() -> None:
    memory = PrefixMemory()
    for n in range(20):
        for question in ("Who?", "Why?"):
            memory.observe(keys_of(by_engine(messages=asked(f"{n}. {DOCUMENT}", question))), "a", 1.0)
    assert memory.saved_s(keys_of(by_engine(messages=asked(f"0. {DOCUMENT}", "How?"))), alone_s=1.0) is None


def test_it_tells_how_often_prompts_came_to_where_their_beginnings_were() -> None:
    memory = PrefixMemory()
    document = keys_of(by_engine(messages=asked(DOCUMENT, "Who?")))
    for replica in ("a", "b", "b", "a"):  # new to either once
        memory.observe(document, replica, None)
    assert memory.facts() == {"calls": 4, "seen_share": 0.5, "saved_share": ASSUMED}
