"""Generated requests, valid and not, against every route: none may make the server answer 5xx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from kit.gateway import chat_model, client, gateway, rag_chain

BOUNDED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,  # the same requests on every machine; a seed of its own would make failures come and go
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


#: a generated deadline may be a microsecond, and then 504 is the right answer
DEADLINES = {"x-request-timeout-seconds", "x-patchwork-deadline-ms"}


def keyed_chain() -> Any:
    """Takes an object: ``{"question": ..., "language": ...}``."""
    return ChatPromptTemplate.from_template("{question} in {language}") | chat_model()


CHAINS: dict[str, Callable[[], Any]] = {
    "text": rag_chain,
    "keys": keyed_chain,
    "messages": chat_model,
    "anything": lambda: RunnableLambda(lambda value: value),
}
SCHEMAS = {
    name: schemathesis.openapi.from_asgi("/openapi.json", gateway(chain(), max_batch_inputs=8))
    for name, chain in CHAINS.items()
}


def fault_of(case: Any) -> str | None:
    """What is wrong with how a request is answered: a server's error, or an error body of another form."""
    response = case.call()
    sent = {name.lower() for name in (*(case.headers or ()), *response.request.headers)}
    late = response.status_code == 504 and DEADLINES & sent
    if response.status_code >= 500 and not late:
        return f"{case.method} {case.path}: {response.status_code} {response.text[:500]} sent {sorted(sent)}"
    if response.status_code >= 400 and set(response.json()["error"]) != {
        "type",
        "message",
        "stage",
        "retryable",
        "run_id",
    }:
        return f"{case.method} {case.path}: another form of error, {response.text[:500]}"
    return None


@SCHEMAS["text"].parametrize()
@BOUNDED
def test_a_chain_of_text_has_no_server_errors(case: Any) -> None:
    assert fault_of(case) is None


@SCHEMAS["keys"].include(path_regex="invoke|batch|stream|chat").parametrize()
@BOUNDED
def test_a_chain_of_keys_has_no_server_errors(case: Any) -> None:
    assert fault_of(case) is None


@SCHEMAS["messages"].include(path_regex="invoke|chat").parametrize()
@BOUNDED
def test_a_chain_of_messages_has_no_server_errors(case: Any) -> None:
    assert fault_of(case) is None


@SCHEMAS["anything"].include(path_regex="invoke|batch|stream|chat").parametrize()
@BOUNDED
def test_a_chain_of_anything_has_no_server_errors(case: Any) -> None:
    assert fault_of(case) is None


RAW = [
    b"",
    b"null",
    b"0",
    b'"x"',
    b"[]",
    b"{",
    b'{"input": "\\ud800"}',  # half a surrogate pair
    b'{"input": "\\u0000"}',
    b'{"input": "x", "input": 3}',
    b'{"input": "x", "config": {"metadata": {"patchwork_slo": {}}}}',
    b'{"input": "x", "config": {"max_concurrency": 1e308}}',
    b'{"input": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"input": {"type": "ai", "content": {"type": "Document"}}}',
    b'{"inputs": [' + b"1," * 1000 + b"1]}",
    b'{"model": "rag", "messages": [{"role": "tool", "content": null}]}',
    b'{"model": "rag", "messages": [{"role": "assistant", "tool_calls": [{}]}, {"role": "user", "content": [{}]}]}',
    b"\xff\xfe\x00",
    b"1" * 5000,
]


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("path", ["/invoke", "/batch", "/stream", "/stream_events", "/v1/chat/completions"])
async def test_no_body_makes_a_server_error(chain: Callable[[], Any], path: str) -> None:
    async with client(gateway(chain(), max_batch_inputs=8)) as http:
        for body in RAW:
            response = await http.post(path, content=body)
            assert response.status_code < 500, (path, body[:80], response.text)
