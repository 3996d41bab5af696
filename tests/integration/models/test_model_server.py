"""``patchwork models serve`` in a process of its own, asked by the real ``openai`` client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from kit.models import CHAT, EMBED, packaged_files

pytestmark = pytest.mark.models

CAPITAL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name the capital city of France."}]


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The base URL; the process is ended by Ctrl-C and must end well."""
    for name in (CHAT, EMBED):
        packaged_files(name)
    command = [sys.executable, "-m", "patchwork_serving.cli", "models", "serve", "--port", "0", "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                yield event["url"]
                break
        else:
            pytest.fail("the server ended before it was ready")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
    assert code == 0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as base:
        yield base


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=300) as client:
        yield client


def ask(client: openai.OpenAI, messages: list[ChatCompletionMessageParam] = CAPITAL, model: str = CHAT) -> str:
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24)
    return reply.choices[0].message.content or ""


def test_it_lists_what_it_serves(client: openai.OpenAI, url: str) -> None:
    assert sorted(model.id for model in client.models.list()) == [EMBED, CHAT]
    assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_it_chats_under_the_hubs_name_too(client: openai.OpenAI) -> None:
    assert "Paris" in ask(client)
    assert ask(client, model="HuggingFaceTB/SmolLM2-135M-Instruct") == ask(client)


def test_its_stream_says_the_same(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT, messages=CAPITAL, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ask(client)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 37


def test_it_completes_text_and_responds(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=CHAT, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert "Paris" in reply.choices[0].text
    assert client.responses.create(model=CHAT, input=CAPITAL[0]["content"], temperature=0).output_text == ask(client)  # type: ignore[arg-type]


def test_it_embeds_many_callers_at_once(client: openai.OpenAI) -> None:
    def embed(text: str) -> np.ndarray:
        return np.array(client.embeddings.create(model=EMBED, input=text).data[0].embedding)

    texts = [f"a sentence about the number {i}" for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(embed, texts))
    np.testing.assert_allclose(together[3], embed(texts[3]), atol=2e-6)


def test_its_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=CHAT):
        ask(client, model="gpt-9")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=CHAT, input="a model of the wrong kind")
    with pytest.raises(openai.BadRequestError, match="context size"):
        ask(client, [{"role": "user", "content": "word " * 5000}])
    with pytest.raises(openai.BadRequestError, match="context size"):
        client.chat.completions.create(model=CHAT, stream=True, messages=[{"role": "user", "content": "word " * 5000}])


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/chat/completions", b"{", 400),  # no JSON
        ("POST", "/chat/completions", b"[]", 400),  # no object
        ("POST", "/embeddings", b" " * (17 << 20), 413),
        ("GET", "/chat/completions", b"", 405),
        ("GET", "/nothing", b"", 404),
    ],
)
def test_bad_http_is_a_4xx_with_an_error_document(
    url: str, method: str, path: str, content: bytes, status: int
) -> None:
    response = httpx.request(method, url + path, content=content, timeout=30)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_a_client_that_leaves_frees_the_only_sequence() -> None:
    """An answer of 1,900 tokens that went on would hold the next one up for as long as it takes; the client waits less."""
    with serving("--parallel", "1", "--model", CHAT) as base:
        body = {"model": CHAT, "messages": CAPITAL, "max_tokens": 1900, "ignore_eos": True}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{base}/chat/completions", json=body, timeout=2)
        with httpx.stream("POST", f"{base}/chat/completions", json={**body, "stream": True}, timeout=60) as response:
            next(response.iter_lines())
        with openai.OpenAI(base_url=base, api_key="any", max_retries=0, timeout=300) as client:
            assert "Paris" in ask(client)


def test_a_port_that_is_taken_is_one_line_and_exit_1(url: str) -> None:
    port = url.split(":")[2].split("/")[0]
    done = subprocess.run(
        [sys.executable, "-m", "patchwork_serving.cli", "models", "serve", "--port", port],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--port" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
