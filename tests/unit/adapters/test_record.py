"""What was asked at import is answered from the record afterwards, whatever order keys or processes come in."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import pytest

from patchwork_adapters.bridge import Bridge
from patchwork_adapters.errors import AnotherVersion, CodecError, ComponentUnavailable
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_adapters.record import ImportRecord, RecordingTransport, ReplayTransport
from patchwork_adapters.transport import LeafCall, Transport


class Counting:
    def __init__(self) -> None:
        self.num_calls = 0

    async def call(self, call: LeafCall) -> bytes:
        self.num_calls += 1
        return b"reply %d" % self.num_calls

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.num_calls += 1
        for n in range(3):
            yield b"frame %d" % n


def embed(text: str, *, swap_keys: bool = False, key: str = "sk-secret", component: str = "embedder") -> LeafCall:
    pairs = [("input", [text]), ("model", "m")]
    body = json.dumps(dict(reversed(pairs) if swap_keys else pairs), indent=1 if swap_keys else None).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return LeafCall(
        component, "leaf", "POST /v1/embeddings", encode_request(HttpRequest("POST", "/v1/embeddings", headers, body))
    )


async def frames(transport: Transport, call: LeafCall) -> list[bytes]:
    return [frame async for frame in transport.stream(call)]


async def test_what_is_asked_twice_is_computed_once() -> None:
    inner, record = Counting(), ImportRecord()
    recording = RecordingTransport(inner, record)
    assert (
        await recording.call(embed("a"))
        == await recording.call(embed("a", swap_keys=True, key="sk-other"))
        == b"reply 1"
    )
    assert await recording.call(embed("b")) == b"reply 2"
    assert await recording.call(embed("a", component="other")) == b"reply 3"
    assert (len(record), recording.num_asked) == (3, 3)


async def test_a_replay_answers_from_the_record_and_asks_the_fallback_for_the_rest() -> None:
    inner, record = Counting(), ImportRecord()
    await RecordingTransport(inner, record).call(embed("a"))
    replay = ReplayTransport(ImportRecord.from_bytes(record.to_bytes()), fallback := Counting())
    assert await replay.call(embed("a")) == b"reply 1"
    assert fallback.num_calls == 0
    assert await replay.call(embed("new")) == b"reply 1"
    assert (fallback.num_calls, replay.num_missed) == (1, 1)


async def test_without_a_fallback_an_unknown_call_says_what_to_do() -> None:
    with pytest.raises(ComponentUnavailable, match="deploy again"):
        await ReplayTransport(ImportRecord()).call(embed("a"))
    with pytest.raises(ComponentUnavailable, match="embedder"):
        await frames(ReplayTransport(ImportRecord()), embed("a"))


async def test_streams_are_kept_frame_by_frame_and_only_when_whole() -> None:
    inner, record = Counting(), ImportRecord()
    recording = RecordingTransport(inner, record)
    call = LeafCall("llm", "leaf", "_stream", b"x", stream=True)
    first = recording.stream(call)
    assert await anext(first) == b"frame 0"
    await first.aclose()  # type: ignore[attr-defined]
    assert len(record) == 0
    expected = [b"frame 0", b"frame 1", b"frame 2"]
    assert await frames(recording, call) == expected
    assert await frames(recording, call) == expected
    assert await frames(ReplayTransport(record), call) == expected
    assert inner.num_calls == 2


async def test_a_record_is_saved_whole_and_holds_no_secret(tmp_path: Path) -> None:
    record = ImportRecord()
    await RecordingTransport(Counting(), record).call(embed("a secret question"))
    path = tmp_path / "deep" / "my.record"
    size = record.save(path)
    assert path.stat().st_size == size
    assert [p.name for p in path.parent.iterdir()] == ["my.record"]
    for secret in (b"sk-secret", b"a secret question"):
        assert secret not in path.read_bytes()
    assert ImportRecord.load(path).get(embed("a secret question")) == [b"reply 1"]
    assert record.num_bytes == 7


def test_a_record_that_another_version_wrote_is_made_anew(tmp_path: Path) -> None:
    data = msgpack.packb(["patchwork-record-0", {"key": [b"frame"]}])
    (tmp_path / "old").write_bytes(data)
    assert len(ImportRecord.load(tmp_path / "old")) == 0
    with pytest.raises(AnotherVersion, match="of another version"):
        ImportRecord.from_bytes(data)  # between processes of one deployment that would be a fault


def test_no_file_is_an_empty_record_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    assert len(ImportRecord.load(tmp_path / "none")) == 0
    (tmp_path / "bad").write_bytes(b"\xc1 nonsense")
    with pytest.raises(CodecError, match="not an import record"):
        ImportRecord.load(tmp_path / "bad")


def test_a_record_answers_in_the_thread_that_asks() -> None:
    inner, record = Counting(), ImportRecord()
    streamed = LeafCall("llm", "leaf", "_stream", b"x", stream=True)
    recording = RecordingTransport(inner, record)
    before = threading.active_count()
    with Bridge(recording) as bridge:
        assert bridge.call(embed("a")) == b"reply 1"
        frames = list(bridge.stream(streamed))
    assert threading.active_count() == before
    for transport in (recording, ReplayTransport(record, Counting())):
        with Bridge(transport) as bridge:
            assert bridge.call(embed("a", swap_keys=True)) == b"reply 1"
            assert list(bridge.stream(streamed)) == frames
            assert threading.active_count() == before
            assert bridge.call(embed(type(transport).__name__)) == b"reply %d" % (3 if transport is recording else 1)
            assert threading.active_count() == before + 1  # that one was asked, on the I/O loop
    recording.stop_recording()
    assert recording.answer_now(embed("a")) is None


def test_the_body_of_a_call_that_the_record_has_nothing_like_is_not_read() -> None:
    record = ImportRecord()
    record.put(embed("a"), [b"reply"])
    record = ImportRecord.from_bytes(record.to_bytes())
    assert record.get(LeafCall("embedder", "leaf", "POST /v1/chat/completions", b"no HTTP")) is None
    with pytest.raises(CodecError):
        record.get(LeafCall("embedder", "leaf", "POST /v1/embeddings", b"no HTTP"))
