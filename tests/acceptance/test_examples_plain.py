"""The examples as anybody would run them: no Patchwork in the program, only an OpenAI-compatible URL in the environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.models, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTIONS = [
    "Which clause of the try statement is always executed before leaving it?",
    "What does the pass statement do?",
    "What is the sign of the result of the modulo operator?",
]


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    command = [sys.executable, "-m", "patchwork_serving.cli", "models", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = next(
                event
                for line in server.stdout
                if (event := json.loads(line)).get("event") == "ready" and "url" in event
            )
            yield ready["url"]
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)


def answers_of(module: str, ask: str, url: str) -> list[Any]:
    """What a fresh Python answers to QUESTIONS; ``ask`` is an expression over ``module`` and ``question``."""
    program = f"import json, sys, {module} as module; print(json.dumps([{ask} for question in json.load(sys.stdin)]))"
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(QUESTIONS), capture_output=True, text=True, cwd=EXAMPLES, timeout=500,
        env={**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_the_langchain_example_answers(server_url: str) -> None:
    answers = answers_of("vanilla_rag", "module.chain.invoke(question)", server_url)
    assert all(len(answer) > 10 for answer in answers)
    assert "finally" in answers[0].lower()


def test_the_llamaindex_example_answers_from_the_right_passages(server_url: str) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    ask = "[str(r := module.query_engine.query(question)), [n.node.metadata['topic'] for n in r.source_nodes]]"
    rows = answers_of("llamaindex_rag", ask, server_url)
    assert all(len(text) > 10 for text, _ in rows)
    assert ["try" in rows[0][1], "pass" in rows[1][1], "binary" in rows[2][1]] == [True, True, True]
