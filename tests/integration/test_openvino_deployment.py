"""A chain deployed on Ray with its LLM in OpenVINO, and a local server that runs the same engine: one line of ``patchwork.yaml``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from kit.deployed import Home, deployed, invoke
from kit.models import CHAT, packaged_files

pytestmark = [pytest.mark.ray, pytest.mark.models, pytest.mark.slow]

CHAIN = """
import os

from langchain_core.output_parsers import StrOutputParser
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(model="smollm2-135m-instruct", temperature=0, max_tokens=24)
chain = chat | StrOutputParser()
with_tools = chat.bind(tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}])
"""
QUESTION = "Name the capital city of France."
CONFIG = f"models: {{{CHAT}: {{engine: openvino, engine_args: {{n_ctx: 1024}}}}}}\n"


@pytest.fixture(scope="module")
def target(home: Home) -> str:
    (home.path / "ask.py").write_text(CHAIN, encoding="utf-8")
    (home.path / "patchwork.yaml").write_text(CONFIG, encoding="utf-8")
    return str(home.path / "ask.py")


@pytest.fixture(scope="module")
def url(home: Home, target: str) -> Iterator[str]:
    with deployed(home, f"{target}:chain") as made:
        yield made


@pytest.fixture(scope="module")
def local(home: Home, target: str) -> Iterator[str]:
    """The base URL of ``patchwork models serve`` in the folder of the chain."""
    packaged_files(CHAT)
    command = [
        sys.executable,
        "-m",
        "patchwork_serving.cli",
        "models",
        "serve",
        "--port",
        "0",
        "--json",
        "--model",
        CHAT,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=home.path,
        env={**os.environ, "PATCHWORK_HOME": str(home.path / "local")},
    )
    try:
        assert process.stdout is not None
        yield next(event["url"] for event in map(json.loads, process.stdout) if event["event"] == "ready")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_it_answers_whole_and_as_a_stream_what_a_local_server_answers(url: str, local: str) -> None:
    answer = invoke(url, QUESTION)
    assert "Paris" in answer
    with httpx.stream("POST", f"{url}/stream", json={"input": QUESTION}, timeout=60.0) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    pieces = [piece for piece in map(json.loads, lines) if isinstance(piece, str)]
    assert "".join(pieces) == answer
    assert len(pieces) > 2
    asked = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24}
    document = httpx.post(f"{local}/chat/completions", json=asked, timeout=60.0).json()
    assert document["choices"][0]["message"]["content"] == answer


def test_inspect_and_status_tell_the_engine(home: Home, url: str, target: str) -> None:
    assert "openvino" in home.run("inspect", f"{target}:chain").stdout
    [row] = httpx.get(f"{url}/info").json()["status"]["replicas"]
    assert row["component"] == f"llm-{CHAT}"


def test_what_the_engine_does_not_have_is_refused_by_name(local: str) -> None:
    asked = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}], "n": 2}
    answer = httpx.post(f"{local}/chat/completions", json=asked, timeout=60.0)
    assert answer.status_code == 400
    assert "llamacpp" in answer.json()["error"]["message"]
