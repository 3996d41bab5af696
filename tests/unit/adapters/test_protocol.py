"""HTTP requests of the OpenAI protocol as payloads."""

from __future__ import annotations

import pytest

from patchwork_adapters.protocol import HttpRequest, decode_request, encode_post, encode_request, json_object


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b'{"model":"m","stream":true}', {"model": "m", "stream": True}),
        (b' {"model": "m"}\r\n', {"model": "m"}),
        ('{"model": "é"}'.encode("utf-16"), {"model": "é"}),
        (b'\xef\xbb\xbf{"model": "m"}', {"model": "m"}),
        (b'{"model": "m"} and more', {}),
        (b'["model"]', {}),
        (b"\xff", {}),
        (b"", {}),
    ],
)
def test_a_body_is_read_as_any_json_may_be_written(body: bytes, document: dict[str, object]) -> None:
    assert json_object(body) == document


def test_what_a_client_posts_crosses_as_the_same_request_told_otherwise_and_without_its_keys() -> None:
    raw = [
        (b"Accept", b"text/event-stream"), (b"Content-Type", b"application/json"), (b"Authorization", b"Bearer secret"),
        (b"content-encoding", b"gzip"), (b"Cookie", b"secret"), (b"Expect", b"secret"), (b"X-Api-Key-Here", b"secret"),
    ]  # fmt: skip
    kept = {"accept": "text/event-stream", "content-type": "application/json", "content-encoding": "gzip"}
    path = "/v1/chat/completions"
    payload = encode_post(path, raw, b"body")
    assert payload == encode_request(HttpRequest("POST", path, kept, b"body"))
    assert decode_request(payload).headers == kept
    assert b"secret" not in payload
