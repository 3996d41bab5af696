"""What the OpenVINO engine is asked, and what it says of what it does not have. Needs no OpenVINO."""

from __future__ import annotations

import importlib.machinery
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchwork_serving import preflight
from patchwork_serving.components.openvino_requests import asked
from patchwork_serving.components.openvino_text import Detokenizer, Stops
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import EngineRefused, MissingExtra
from patchwork_serving.models.hosts import ModelHosts
from patchwork_serving.models.registry import ResolvedModel
from patchwork_serving.release import ComponentSpec

MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(**body: Any) -> Any:
    return asked({"messages": MESSAGES, **body}, chat=True)


def test_temperature_zero_takes_the_likeliest_and_anything_else_samples() -> None:
    greedy = chat(temperature=0, top_p=0.5, seed=3)
    assert greedy.settings == {"do_sample": False, "ignore_eos": False}
    sampled = chat(temperature=0.7, top_p=0.5, top_k=40, seed=3)
    assert sampled.settings == {
        "do_sample": True, "ignore_eos": False, "temperature": 0.7, "top_p": 0.5, "top_k": 40, "rng_seed": 3,
    }  # fmt: skip
    assert chat().settings["temperature"] == 1.0  # the protocol's default


def test_a_request_is_read_as_the_protocol_has_it() -> None:
    request = chat(
        max_tokens=9, max_completion_tokens=7, stop="END", stream_options={"include_usage": True}, logprobs=True, n=1,
        user="somebody", parallel_tool_calls=True, tools=[], logit_bias={},
    )  # fmt: skip
    assert (request.most_tokens, request.stops, request.wants_usage, request.wants_logprobs) == (
        7,
        ("END",),
        True,
        True,
    )
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat(messages=[{"role": "user", "content": parts, "name": "n"}]).messages == [
        {"role": "user", "content": "one\ntwo", "name": "n"}
    ]
    assert asked({"prompt": ["once"]}, chat=False).prompt == "once"
    assert asked({"prompt": [1, 2]}, chat=False).prompt == [1, 2]


def test_a_format_becomes_a_schema() -> None:
    wanted = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert (
        json.loads(chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": wanted}}).schema)
        == wanted
    )
    assert chat(response_format={"type": "json_object"}).schema == '{"type": "object"}'
    assert chat(response_format={"type": "text"}).schema is None
    with pytest.raises(EngineRefused, match=r"response_format\.json_schema: is missing"):
        chat(response_format={"type": "json_schema"})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"tools": [{"type": "function"}]}, "tools: .*no tools; choose engine: llamacpp"),
        ({"n": 2}, "n: .*one answer a call"),
        ({"top_logprobs": 3}, "top_logprobs: .*only"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"max_tokens": 0}, "max_tokens: .*greater than or equal to 1"),
        ({"messages": []}, "messages: "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "secret"}]}]},
            r"messages\.0\.content",
        ),
    ],
)
def test_what_is_wrong_or_lacking_is_named_without_its_value(body: dict[str, Any], match: str) -> None:
    with pytest.raises(EngineRefused, match=match) as refused:
        chat(**body)
    assert "secret" not in str(refused.value)
    assert "hot" not in str(refused.value)


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(EngineRefused, match="body"):
        asked([1], chat=False)


# -- text

WORDS = ["Zürich", " ", "naïve", "😀", "abc", "\n"]


def bytes_decoder(ids: Any) -> str:
    """Tokens that are bytes, as the hardest tokenizer has them."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.lists(st.sampled_from(WORDS)).map("".join), st.integers(1, 4))
def test_pieces_of_text_are_the_text_and_no_character_is_broken(text: str, step: int) -> None:
    detokenizer, ids = Detokenizer(bytes_decoder), list(text.encode())
    pieces = [detokenizer.add(ids[i : i + step]) for i in range(0, len(ids), step)]
    pieces.append(detokenizer.add([], last=True))
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


def test_what_will_never_be_a_character_is_said_at_the_end() -> None:
    detokenizer = Detokenizer(bytes_decoder)
    assert detokenizer.add([0xC3]) == ""
    assert detokenizer.add([], last=True) == "�"


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_a_text_ends_before_its_first_stop_however_it_is_cut(text: str, stops: list[str], step: int) -> None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    ends: list[int] = [text.find(stop) + len(stop) for stop in stops if stop in text]
    watcher, shown, stopped = Stops(stops), "", False
    for i in range(0, len(text), step):
        piece, stopped = watcher.feed(text[i : i + step])
        shown += piece
        if stopped:
            break
    if not stopped:
        piece, stopped = watcher.feed("", last=True)
        shown += piece
    assert stopped == bool(found)
    if not found:
        assert shown == text
    else:  # the stop that is complete first ends it, and pieces may complete several at once
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        assert min(found) <= len(shown) <= min(ends)


# -- around the engine


def test_a_machine_without_openvino_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ComponentSpec("llm-m", "llm", "protocol", "openvino", "m")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"patchwork-rag\[openvino\]"):
        preflight.check_openvino(spec)
    monkeypatch.setattr(preflight, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    preflight.check_openvino(spec)


def test_a_local_server_tells_it_only_what_it_knows(tmp_path: Any) -> None:
    words = {"slots": 1, "shards": 1, "threads": 2, "flash_attention": True}
    hosts = ModelHosts(Config(), Paths(tmp_path, tmp_path), engine_args={"llm": words})
    assert hosts._defaults(ResolvedModel("m", "llm", "openvino", "a.gguf")) == {"slots": 1, "threads": 2}
