"""Chunks of a stream, put together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from patchwork_serving.components.openai_chunks import StreamError, WholeAnswer


def whole(*chunks: dict[str, Any]) -> dict[str, Any]:
    answer = WholeAnswer()
    for chunk in chunks:
        assert not answer.add(json.dumps(chunk).encode())
    assert answer.add(b"[DONE]")
    return answer.document()


def chat(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}


def test_pieces_of_text_become_one_message_with_usage() -> None:
    document = whole(
        chat({"role": "assistant", "content": None}),
        chat({"content": "Par"}),
        chat({"content": "is"}),
        chat({}, finish="stop"),
        {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 3}},
    )
    message = {"role": "assistant", "content": "Paris"}
    assert document == {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"total_tokens": 3},
    }


def test_several_choices_are_kept_apart() -> None:
    document = whole(chat({"content": "b"}, index=1), chat({"content": "a"}), chat({"content": "b"}, index=1))
    assert [choice["message"]["content"] for choice in document["choices"]] == ["a", "bb"]


def test_a_tool_call_is_put_together_from_its_pieces() -> None:
    document = whole(
        chat({"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
        chat({}, finish="tool_calls"),
    )
    [choice] = document["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }


def test_log_probabilities_follow_one_another() -> None:
    document = whole(
        chat({"content": "a"}, logprobs={"content": [{"token": "a"}]}),
        chat({"content": "b"}, logprobs={"content": [{"token": "b"}]}),
    )
    assert document["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_a_text_completion_is_its_pieces() -> None:
    pieces = [
        {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in "ab"
    ]
    assert whole(*pieces)["choices"] == [{"index": 0, "finish_reason": None, "text": "ab", "logprobs": None}]


def test_a_response_is_the_one_that_its_last_event_holds() -> None:
    answer = WholeAnswer()
    assert not answer.add(b'{"type": "response.created", "response": {"id": "r"}}')
    assert answer.add(b'{"type": "response.completed", "response": {"id": "r", "output": []}}')
    assert answer.document() == {"id": "r", "output": []}


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(StreamError):
        WholeAnswer().add(b'{"error": {"message": "no"}}')
