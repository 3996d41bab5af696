"""Arrivals, protocols and the command line of ``patchwork bench``; no socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchwork_serving import cli
from patchwork_serving.bench.apis import api
from patchwork_serving.bench.arrivals import Arrivals, schedule
from patchwork_serving.bench.environment import emulated_of
from patchwork_serving.bench.run import LoadOptions, _not_answered, _settings
from patchwork_serving.bench.sse import EventWatch, LangServeEvents, OpenAIEvents, stages_of
from patchwork_serving.cli_apps import auth_headers_for, parsed_headers
from patchwork_serving.cli_bench import _prepare, parsed_rates, read_inputs
from patchwork_serving.errors import UsageError
from patchwork_serving.urls import is_loopback, shown


def times(
    arrivals: Arrivals, rate: float | None = 10.0, seconds: float | None = 1000.0, count: int | None = None
) -> list[float]:
    return schedule(arrivals, rate, seconds, count, seed=3, limit=100_000)


@pytest.mark.parametrize(("arrivals", "variation"), [("poisson", 1.0), ("gamma:0.5", 0.5), ("gamma:4", 4.0)])
def test_gaps_have_the_rate_and_the_variation_that_were_asked_for(arrivals: str, variation: float) -> None:
    gaps = np.diff(times(arrivals, rate=10.0))
    assert gaps.mean() == pytest.approx(0.1, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.15)


def test_a_count_of_requests_is_exact() -> None:
    assert len(times("poisson", count=17)) == 17


@pytest.mark.parametrize(
    "lines",
    [
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9799600,4808\n2023-11-16 18:17:05.9799600,31\n2023-11-16 18:17:06.9799600,3\n",
        '{"timestamp": 0}\n{"timestamp": 2000}\n\n{"timestamp": 3000}\n',  # milliseconds
        '{"timestamp": "82"}\n{"timestamp": "84"}\n{"timestamp": "85"}\n',  # seconds, as text
    ],
)
def test_a_trace_keeps_its_rhythm_at_another_rate(lines: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(lines)
    assert times(trace, rate=None, count=3) == pytest.approx([0.0, 2.0, 3.0])
    assert times(str(trace), rate=20.0, count=3) == pytest.approx([0.0, 1 / 15, 0.1])


def test_the_part_of_a_trace_that_is_used_has_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"  # ten requests in its first second, then one an hour
    trace.write_text("\n".join(json.dumps({"timestamp": 100 * n if n < 10 else 3_600_000 * n}) for n in range(50)))
    assert len(times(trace, rate=2.0, seconds=4.0)) == pytest.approx(8, abs=1)


def test_times_may_be_given() -> None:
    assert times([2.0, 0.5, 9.0], rate=None, seconds=5.0) == [0.5, 2.0]


@pytest.mark.parametrize(
    ("arrivals", "rate", "told"),
    [
        ("poisson", None, "--rate is needed"),
        ("gamma", 1.0, "gamma:4"),
        ("gamma:x", 1.0, "gamma:4"),
        ("gamma:-1", 1.0, "gamma:4"),
        ("gamma:0", 1.0, "gamma:4"),
        ("gamma:nan", 1.0, "gamma:4"),  # would be drawn for ever
        ("gamma:inf", 1.0, "gamma:4"),
        ("no/such.csv", 1.0, "No such file"),
        ("poisson", 1000.0, "--max-requests"),
        ("poisson", 1e-9, "no request would be sent"),
    ],
)
def test_arrivals_that_cannot_be_are_refused(arrivals: str, rate: float | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        schedule(arrivals, rate, 30.0, None, seed=1, limit=1000)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    for text in ("", "a,b\n1,2\n", "{}\n", "{broken\n", '{"timestamp": 1}\n'):
        file.write_text(text)
        with pytest.raises(UsageError, match="--arrivals"):
            times(file)


@pytest.mark.parametrize("rate", [None, 2.0])
@pytest.mark.parametrize(
    "lines",
    [
        "TIMESTAMP,ContextTokens\n",
        "TIMESTAMP\n2023-11-16 18:17:03\n",
        "TIMESTAMP\n2023-11-16 18:17:03\n2023-11-16 18:17:03\n",
        '{"timestamp": 1}\n{"timestamp": NaN}\n',
    ],
)
def test_a_trace_without_a_rhythm_is_refused_by_name(lines: str, rate: float | None, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(lines)
    with pytest.raises(UsageError, match=r"trace\.csv.* two arrivals at different times"):
        times(file, rate=rate)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("total;dur=12.5, queue;dur=1, llm-x;desc=a;dur=8", {"total": 0.0125, "queue": 0.001, "llm-x": 0.008}),
        ("cache, db;dur=x", {}),  # no duration, and one that is no number
        (None, {}),
    ],
)
def test_server_timing_is_read(header: str | None, found: dict[str, float]) -> None:
    assert stages_of(header) == pytest.approx(found)


def fed(watch: EventWatch, body: bytes, block: int) -> tuple[list[bool], EventWatch]:
    """Whether the first chunk had been seen after each block."""
    firsts = []
    for at in range(0, len(body), block):
        watch.feed(body[at : at + block])
        firsts.append(watch.first)
    return firsts, watch


LANGSERVE = (
    b'event: metadata\r\ndata: {"run_id": "1"}\r\n\r\n: heartbeat\r\n\r\nevent: data\r\ndata: ""\r\n\r\nevent: data\r\ndata: "Hi"\r\n\r\n'
    b'event: metadata\r\ndata: {"run_id": "1", "server_timing": "total;dur=5.0, llm;dur=4.0"}\r\n\r\nevent: end\r\n\r\n'
)
OPENAI = (
    b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\ndata: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
    b'data: {"choices": []}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize(("make", "body"), [(LangServeEvents, LANGSERVE), (OpenAIEvents, OPENAI)])
def test_the_first_chunk_is_the_first_that_says_something(make: type[EventWatch], body: bytes, block: int) -> None:
    firsts, watch = fed(make(), body, block)
    assert firsts.index(True) == (body.index(b"Hi") + body[body.index(b"Hi") :].index(b"\n")) // block
    assert watch.ended
    assert watch.error is None


def test_the_end_of_a_stream_tells_where_the_time_went() -> None:
    _, watch = fed(LangServeEvents(), LANGSERVE, 50)
    assert watch.stages == pytest.approx({"total": 0.005, "llm": 0.004})


@pytest.mark.parametrize(
    ("make", "body", "status", "kind"),
    [
        (LangServeEvents, {"status_code": 429, "error": {"type": "RequestRefused"}}, 429, "RequestRefused"),
        (LangServeEvents, {"status_code": 500, "message": "Internal Server Error"}, 500, "error"),  # LangServe itself
        (OpenAIEvents, {"error": {"type": "DeadlinePassed", "code": 504}}, 504, "DeadlinePassed"),
        (OpenAIEvents, {"error": {"message": "x"}}, 500, "error"),
    ],
)
def test_an_error_within_a_stream_is_seen(make: type[EventWatch], body: dict[str, Any], status: int, kind: str) -> None:
    watch = make()
    watch.feed(b"event: error\n" + f"data: {json.dumps(body)}\n\n".encode())
    assert (watch.status, watch.error) == (status, kind)


@pytest.mark.parametrize(
    ("name", "stream", "url", "body"),
    [
        ("langserve", False, "http://h/a/invoke", {"input": "q"}),
        ("langserve", True, "http://h/a/stream", {"input": "q"}),
        (
            "openai",
            False,
            "http://h/a/v1/chat/completions",
            {"model": "m", "stream": False, "messages": [{"role": "user", "content": "q"}]},
        ),
        ("json", False, "http://h/a", "q"),
    ],
)
def test_how_an_input_is_asked(name: Any, stream: bool, url: str, body: Any) -> None:
    asked = api(name, "http://h/a", stream=stream, headers={}, model="m")
    assert (asked.url, json.loads(asked.encoded("q"))) == (url, body)


def test_messages_are_sent_as_they_are() -> None:
    asked = api("openai", "http://h/v1", stream=False, headers={}, model="m")
    assert asked.url == "http://h/v1/chat/completions"
    assert json.loads(asked.encoded({"messages": [], "max_tokens": 4}))["max_tokens"] == 4


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("http://example.org", False),
        ("http://10.0.0.1", False),
    ],
)
def test_what_is_on_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) is here


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://user:secret@example.org:81/a?key=secret#secret", "http://example.org:81/a"),
        ("http://user:sec@ret@[::1]:81", "http://[::1]:81"),
        ("rag", "rag"),
    ],
)
def test_what_is_shown_of_a_url_is_no_secret(url: str, told: str) -> None:
    assert shown(url) == told


def test_no_report_and_no_message_has_the_credentials_of_a_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://user:secret@example.org/a"
    assert _settings(url, "poisson", LoadOptions(), 1.0)["url"] == "http://example.org/a"
    asked = api("json", url, stream=False, headers={})
    for status in (None, 401, 404, 422):
        assert "secret" not in str(_not_answered(asked, status, "x"))
    _prepare(tmp_path, url)
    told = capsys.readouterr().err
    assert "http://example.org/a is not on this machine" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("name", "is_sent"),
    [
        ("rag", True),
        ("http://127.0.0.1:8000", True),
        ("https://example.org", False),
        ("http://localhost@evil.org", False),
    ],
)
def test_the_api_key_goes_to_applications_of_this_machine_only(
    name: str, is_sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHWORK_API_KEY", "k")
    assert auth_headers_for(name) == ({"authorization": "Bearer k"} if is_sent else {})


def test_an_application_says_whether_its_engines_are_emulated() -> None:
    assert emulated_of({"release": {"emulated": ["llm-small"]}}) == ["llm-small"]
    assert emulated_of({"release": {"emulated": []}}) == emulated_of({}) == emulated_of({"release": None}) == []


def test_rates_headers_and_inputs_of_the_command_line(tmp_path: Path) -> None:
    assert parsed_rates("4, 1,2") == [1.0, 2.0, 4.0]
    assert parsed_rates(None) == [None]
    assert parsed_headers(["X-A: b:c"]) == {"x-a": "b:c"}
    file = tmp_path / "inputs.jsonl"
    file.write_text('{"question": "a", "topic": 1}\n{"question": "b", "topic": 2}\n')
    assert read_inputs(file, "question") == ["a", "b"]
    with pytest.raises(UsageError, match="input 1"):
        read_inputs(file, "query")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--rate", "fast"], "--rate"),
        (["--rate", "0"], "--rate"),
        (["--slo", "soon"], "--slo"),
        (["--api", "grpc"], "--api"),
        (["--header", "secret-without-colon"], "--header"),
        (["--duration", "-1s"], "--duration"),
        (["--warmup", "-1"], "--warmup"),
        (["--inputs", "no/such.jsonl"], "no/such.jsonl"),
        ([], "--rate is needed"),
    ],
)
def test_wrong_use_of_bench_is_exit_2_before_anything_is_sent(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text('"q"\n')
    assert cli.run(["bench", "http://127.0.0.1:9", "--inputs", str(inputs), "-o", str(tmp_path / "out"), *more]) == 2
    first = capsys.readouterr().err.splitlines()
    assert any(told in line for line in first)
    assert not any("secret" in line for line in first)


@pytest.mark.parametrize(
    "url", ["http://[bad", "http://localhost:x", "http://h:99999", "http://", "http://u:sec/ret@h"]
)
@pytest.mark.parametrize("command", ["bench", "invoke"])
def test_what_is_no_url_is_exit_2_and_not_shown(
    command: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text('"q"\n')
    more = ["--inputs", str(inputs), "-o", str(tmp_path / "out"), "--rate", "1"] if command == "bench" else ["q"]
    assert cli.run([command, url, *more]) == 2
    told = capsys.readouterr().err
    assert "the URL has no host, or no number as its port" in told
    assert "sec" not in told
