"""``patchwork invoke``: one question over HTTP, with its answer, its sources and where the time went."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import typer

from patchwork_serving.cli_apps import auth_headers_for, parsed_headers, url_of
from patchwork_serving.cli_options import seconds
from patchwork_serving.cli_output import console, fact, fact_json, note
from patchwork_serving.errors import ServingError, UsageError
from patchwork_serving.urls import shown

#: more than the server is told: it answers 504 with the stage, where our own timeout would say nothing
GRACE_S = 5.0
MAX_SOURCES = 10


@dataclass(frozen=True, slots=True)
class Ask:
    name: str
    question: str
    trace: bool = False
    content: bool = False
    stream: bool = False
    timeout: str = "120s"
    headers: Sequence[str] = ()


class InvokeFailed(ServingError):
    """The application answered with an error."""

    title = "the application answered with an error"


class Unreachable(ServingError):
    """Nothing answers at the application's URL."""

    title = "the application cannot be reached"


def invoke(ask: Ask, *, as_json: bool) -> None:
    """Ask and print; raises UnknownApp, UsageError (the input is refused) or InvokeFailed."""
    url, timeout_s = url_of(ask.name), seconds("--timeout", ask.timeout)
    headers = {"x-request-timeout-seconds": f"{timeout_s:g}"}
    if ask.trace:
        headers["x-patchwork-trace"] = "content" if ask.content else "1"
    headers |= {**auth_headers_for(ask.name), **parsed_headers(ask.headers)}
    with httpx.Client(base_url=url, headers=headers, timeout=timeout_s + GRACE_S) as client:
        try:
            answer = _streamed(client, ask, as_json=as_json) if ask.stream else _whole(client, ask)
        except httpx.TransportError as error:
            raise Unreachable(
                f"{shown(url)} does not answer ({type(error).__name__}); `patchwork status` shows what runs"
            ) from error
    if as_json:
        fact_json(answer)
        return
    if not ask.stream:
        fact(readable(answer["output"]))
    _tell_more(answer, ask)


def parsed_input(text: str) -> Any:
    """JSON when it is JSON that is more than a word or a number, else the text itself: ``2024`` is a question, not a number."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict | list | str) else text


def readable(output: Any) -> str:
    """An answer as a person reads it: the text of a string, a message or a LlamaIndex response, else JSON."""
    if isinstance(output, str):
        return output
    if isinstance(output, Mapping):
        for key in ("content", "response", "answer", "output", "result"):
            if isinstance(output.get(key), str):
                return str(output[key])
    return json.dumps(output, indent=2, ensure_ascii=False)


def _whole(client: httpx.Client, ask: Ask) -> dict[str, Any]:
    response = client.post("/invoke", json={"input": parsed_input(ask.question)})
    _raise_for(response)
    document = response.json()
    metadata = document.get("metadata") or {}
    answer = {"output": document.get("output"), "run_id": metadata.get("run_id")}
    if ask.trace:
        answer |= {"trace": metadata.get("trace") or [], "sources": metadata.get("sources") or []}
    return answer


def _streamed(client: httpx.Client, ask: Ask, *, as_json: bool) -> dict[str, Any]:
    chunks: list[Any] = []
    answer: dict[str, Any] = {}
    with client.stream("POST", "/stream", json={"input": parsed_input(ask.question)}) as response:
        if not response.is_success:
            response.read()
            _raise_for(response)
        for event, data in server_sent_events(response.iter_lines()):
            if event == "error":
                raise _failure(int(data.get("status_code") or 500), data)
            if event == "metadata":
                answer |= data
            elif event == "data":
                chunks.append(data)
                if not as_json:
                    _show_chunk(data)
    if not as_json:
        typer.echo()
    return {"chunks": chunks, **answer}


def server_sent_events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """(event, data as JSON) of each event; comments and events without data are passed over."""
    name, data = "message", ""
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()
        elif not line:
            if data:
                yield name, json.loads(data)
            name, data = "message", ""


def _show_chunk(chunk: Any) -> None:
    text = chunk if isinstance(chunk, str) else chunk.get("content") if isinstance(chunk, Mapping) else None
    typer.echo(text if isinstance(text, str) else json.dumps(chunk, ensure_ascii=False) + "\n", nl=False)
    sys.stdout.flush()


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        document = response.json()
    except ValueError:
        document = {}
    raise _failure(response.status_code, document if isinstance(document, dict) else {})


def _failure(status: int, document: Mapping[str, Any]) -> ServingError:
    """The error body as one line; what the client did wrong is used wrongly."""
    error = document.get("error") or {}
    told = error.get("message") or document.get("detail") or "no details"
    where = f" in {error['stage']}" if error.get("stage") else ""
    again = "; try again" if error.get("retryable") else ""
    run = f" (run {error['run_id']})" if error.get("run_id") else ""
    line = f"HTTP {status} {error.get('type', '')}{where}: {told}{again}{run}"
    if status == 401:
        line += "; set PATCHWORK_API_KEY, which goes to this machine's applications only"
    return UsageError(line) if status in (401, 404, 413, 422) else InvokeFailed(line)


def _tell_more(answer: Mapping[str, Any], ask: Ask) -> None:
    if not ask.trace:
        return
    sources: Sequence[Mapping[str, Any]] = answer.get("sources") or []
    for source in sources[:MAX_SOURCES]:
        score = f"  {source['score']:.3f}" if isinstance(source.get("score"), float) else ""
        note(f"source: {source.get('id')}{score}  {json.dumps(source.get('metadata') or {}, ensure_ascii=False)}")
    if not answer.get("trace"):
        note("no trace came back: the application does not allow it, or OTEL_SDK_DISABLED is set where it runs")
        return
    from patchwork_serving.telemetry.content import render_content
    from patchwork_serving.telemetry.waterfall import render_waterfall

    console().print(render_waterfall(answer["trace"]))
    if ask.content:
        told = render_content(answer["trace"])
        if told is None:
            note(
                "no prompts or documents came back: the application's patchwork.yaml does not set gateway.capture_content"
            )
        else:
            console().print(told)
