"""Deployed against plain: the examples answer questions the same, on the same engines, asked one after the other.

Plain is what anybody would run: a program without Patchwork, with an OpenAI-compatible URL in its environment; it answers, and from
passages about what was asked. ``make parity`` asks 30; every run of the tests asks 3, because each takes both sides up to ten
seconds of two cores. ``PARITY_ENGINE=openvino`` gives the chat model that engine on both sides.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.deployed import EXAMPLES, QUESTIONS, ROOT, TOPICS, a_home, deployed

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.models, pytest.mark.slow]

NUM_QUESTIONS = int(os.environ.get("PARITY_QUESTIONS", "3"))
ENGINE = os.environ.get("PARITY_ENGINE", "llamacpp")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ``patchwork.yaml`` of both sides."""
    path = tmp_path_factory.mktemp("parity") / "patchwork.yaml"
    path.write_text(json.dumps({"models": {"smollm2-135m-instruct": {"engine": ENGINE}}}))
    return str(path)


@contextmanager
def model_server(config: str) -> Iterator[str]:
    """``patchwork models serve`` on a free port; its base URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "patchwork_serving.cli", "models", "serve", "--port", "0", "--json", "--config", config],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if '"ready"' in line:
                yield str(json.loads(line)["url"])
                break
        else:
            raise AssertionError("the model server did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def plain(example: Path, questions: list[str], config: str) -> list[dict[str, Any]]:
    with model_server(config) as url:
        env = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused", "PYTHONPATH": str(ROOT / "tests")}
        result = subprocess.run(
            [sys.executable, "-m", "kit.plain", str(example)],
            input="\n".join(questions), capture_output=True, text=True, env=env, timeout=600, check=True,
        )  # fmt: skip
    return [json.loads(line) for line in result.stdout.splitlines()]


def ours(example: Path, questions: list[str], config: str) -> list[dict[str, Any]]:
    with (
        a_home() as home,
        deployed(home, str(example), "--config", config) as url,
        httpx.Client(base_url=url, timeout=120.0) as client,
    ):
        answers = []
        for question in questions:
            response = client.post("/invoke", json={"input": question}, headers={"x-patchwork-trace": "1"})
            document = response.raise_for_status().json()
            output, found = document["output"], document["metadata"]["sources"]
            if isinstance(output, dict):
                answers.append(
                    {"answer": output["response"], "sources": [[n["id"], n["score"]] for n in output["source_nodes"]]}
                )
            else:
                answers.append({"answer": output, "sources": [[s["id"], s["score"]] for s in found]})
        return answers


@pytest.mark.parametrize("name", ["vanilla_rag.py", "llamaindex_rag.py"])
def test_a_deployed_example_answers_as_it_does_plainly(name: str, config: str) -> None:
    questions = QUESTIONS[:NUM_QUESTIONS]
    began = time.monotonic()
    expected = plain(EXAMPLES / name, questions, config)
    answered = ours(EXAMPLES / name, questions, config)
    assert all(len(a["answer"]) > 10 for a in expected)
    right = [topic in {source[2] for source in a["sources"]} for topic, a in zip(TOPICS, expected, strict=False)]
    assert sum(right) > len(right) / 2, right
    same = [a["answer"] == b["answer"] for a, b in zip(expected, answered, strict=True)]
    print(
        f"{name}, {ENGINE}: {sum(same)} of {len(same)} answers equal to the letter, in {time.monotonic() - began:.0f} s"
    )
    for a, b in zip(expected, answered, strict=True):
        assert [source[0] for source in a["sources"]] == [source[0] for source in b["sources"]]
        assert [source[1] for source in a["sources"]] == pytest.approx([source[1] for source in b["sources"]], abs=1e-6)
    # the same weights in the same engine: what differs is which questions it answered before, which must not matter
    different = [
        (q, a["answer"], b["answer"]) for q, a, b, s in zip(questions, expected, answered, same, strict=True) if not s
    ]
    assert not different, different[:3]
