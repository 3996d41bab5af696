"""``check`` with answers replayed: models are asked once, also those whose answers vary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from patchwork_adapters.check import check
from patchwork_adapters.checking.answers import Answers
from patchwork_adapters.checking.process import LeafProcess

CHAIN = """
import random
from pathlib import Path
from typing import Any
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda

asked = Path({log!r})

def note(what):
    with asked.open("a") as file:
        file.write(what + "\\n")

class Costly(BaseChatModel):
    @property
    def _llm_type(self):
        return "costly"
    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        note("generate " + messages[-1].text)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"a {{random.random()}}"))])
    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        note("stream " + messages[-1].text)
        for _ in range(3):
            yield ChatGenerationChunk(message=AIMessageChunk(f"{{random.random()}} "))

class Vectors(Embeddings):
    def embed_documents(self, texts):
        return [self.embed_query(t) for t in texts]
    def embed_query(self, text):
        note("embed " + text)
        if text == "bad":
            raise ValueError("no such word")
        return [random.random()]

vectors, model = Vectors(), Costly()
chain = RunnableLambda(lambda text: str(vectors.embed_query(text))) | model
"""


@pytest.fixture(scope="module")
def process() -> Iterator[LeafProcess]:
    with LeafProcess() as process:
        yield process


def written(folder: Path, name: str) -> tuple[str, Path]:
    target, log = folder / f"{name}.py", folder / f"{name}.log"
    target.write_text(CHAIN.format(log=str(log)))
    return f"{target}:chain", log


def test_models_are_asked_once_and_what_varies_can_be_compared(process: LeafProcess, tmp_path: Path) -> None:
    target, log = written(tmp_path, "costly_chain")
    result = check(target, ["one", "bad"], process=process, replay=True)
    assert set(result.modes().values()) == {"equal"}, [line for run in result.runs for line in run.differences]
    asked = log.read_text().splitlines()
    # "bad" raises, and what was raised is an answer, too
    assert sorted(line.split("[")[0].strip() for line in asked) == ["embed bad", "embed one", "generate", "stream"]
    assert result.notes[-1].startswith(f"models were asked {len(asked)} times")


def test_without_replay_the_same_model_is_said_to_vary(process: LeafProcess, tmp_path: Path) -> None:
    target, log = written(tmp_path, "varying_chain")
    result = check(target, ["one"], process=process, modes=["invoke"])
    assert result.modes() == {"invoke": "nondeterministic"}
    assert (
        len(log.read_text().splitlines()) == 6
    )  # two originals and the leaves' process, a model and an embedding each


def test_the_second_equal_call_of_a_run_gets_the_second_answer() -> None:
    answers = Answers()
    for said in (ValueError("busy"), "done"):
        answer = answers.answer_to(object(), "llm", "complete", {"positional": ["x"]})
        assert not answer.is_known
        answer.note(said)
        answer.keep()
    answers.begin()
    first, second = (answers.answer_to(object(), "llm", "complete", {"positional": ["x"]}) for _ in range(2))
    with pytest.raises(ValueError, match="busy"):
        first.value()
    assert second.value() == "done"
    assert not answers.answer_to(object(), "llm", "complete", {"positional": ["x"]}).is_known
    assert (answers.num_asked, answers.num_replayed) == (3, 2)
