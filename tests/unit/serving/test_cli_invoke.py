"""What `invoke` sends, reads and shows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from patchwork_serving import cli_faults
from patchwork_serving.cli_invoke import Ask, _failure, invoke, parsed_input, readable, server_sent_events


@pytest.fixture
def asked() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The URL of a server that answers every question, and the headers that it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = json.dumps({"output": "yes", "metadata": {"run_id": "1"}}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_headers_are_sent_and_go_before_our_own(
    asked: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = asked
    monkeypatch.setenv("PATCHWORK_API_KEY", "of-this-machine")
    invoke(Ask(url, "well?", headers=["Authorization: Bearer of-theirs", "X-Team: a:b"]), as_json=True)
    invoke(Ask(url, "well?"), as_json=True)
    assert [headers["authorization"] for headers in seen] == ["Bearer of-theirs", "Bearer of-this-machine"]
    assert seen[0]["x-team"] == "a:b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("What is a lambda?", "What is a lambda?"),
        ('{"question": "x"}', {"question": "x"}),
        ('["a"]', ["a"]),
        ('"quoted"', "quoted"),
        ("2024", "2024"),  # a question, not a number
        ("true", "true"),
        ("{not json", "{not json"),
        ("", ""),
    ],
)
def test_an_input_is_json_or_the_text_itself(text: str, value: Any) -> None:
    assert parsed_input(text) == value


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("plain", "plain"),
        ({"type": "ai", "content": "a message"}, "a message"),
        ({"response": "of LlamaIndex", "source_nodes": []}, "of LlamaIndex"),
        ({"answer": "of a dict", "context": []}, "of a dict"),
        ({"a": 1}, '{\n  "a": 1\n}'),
        ([1], "[\n  1\n]"),
        (None, "null"),
    ],
)
def test_an_answer_is_shown_as_a_person_reads_it(output: Any, shown: str) -> None:
    assert readable(output) == shown


def test_events_are_read_and_comments_passed_over() -> None:
    lines = [": heartbeat", "", "event: metadata", 'data: {"run_id": "1"}', "", 'data: "text"', "", "event: end", ""]
    assert list(server_sent_events(iter(lines))) == [("metadata", {"run_id": "1"}), ("message", "text")]


@pytest.mark.parametrize(
    ("status", "code"), [(422, 2), (413, 2), (401, 2), (404, 2), (429, 1), (500, 1), (502, 1), (503, 1), (504, 1)]
)
def test_what_the_client_did_wrong_is_used_wrongly(status: int, code: int) -> None:
    body = {"error": {"type": "T", "message": "what", "stage": "llm", "retryable": status == 503, "run_id": "r"}}
    error = _failure(status, body)
    assert cli_faults.exit_code(error) == code
    assert f"HTTP {status} T in llm: what" in cli_faults.one_line(error)
    assert ("try again" in cli_faults.one_line(error)) == (status == 503)


def test_an_error_without_a_body_is_told_too() -> None:
    assert "HTTP 500" in cli_faults.one_line(_failure(500, {}))
