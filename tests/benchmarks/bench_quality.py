"""Whether serving changes what an application finds and answers: recall of its retrieval and a score of its answers, plain and deployed.

    python tests/benchmarks/bench_quality.py crag --questions 12 -o docs/benchmarks/quality.json

The same questions are asked of the example as it is, in this process, with its models behind ``patchwork models serve``, and of
``patchwork deploy`` of it; real small models, temperature 0. Passages are those that its retrievers returned; *recall* is the share of
questions with a passage of their topic among them (``examples/questions.jsonl``), the *score* the mean token F1 of the answers against the
reference answers. One application a run; results are merged into the file that is there.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import results
from baselines.applications import APPLICATIONS, Application
from baselines.loading import load_chain
from baselines.systems import Engines, model_server, ours
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

TIMEOUT_S = 300.0
REAL = Engines(emulated=False)


@dataclass(frozen=True)
class Answered:
    text: str
    passages: tuple[str, ...]  #: ids, as they were found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("application", choices=list(APPLICATIONS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=12)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    app = APPLICATIONS[options.application]
    rows = [row for row in app.rows() if "answer" in row][: options.questions]
    document = results.continued(options.output, {"engines": "real small models, temperature 0"}, {"applications": {}})
    # the environment of the example's clients is read when it is imported
    with model_server(app, REAL) as models:
        os.environ.update(models.env)
        chain = load_chain(app.target)
        plain = asyncio.run(ask_all(rows, lambda question: asked_plain(chain, app, question)))
        with ours(app, REAL, slo_s=TIMEOUT_S, settings={"gateway": {"request_timeout_s": TIMEOUT_S}}) as served:
            deployed = asyncio.run(ask_all(rows, lambda question: asked_deployed(served.url, app, question)))
    document["applications"][app.name] = compared(rows, plain, deployed)
    results.write(options.output, document)
    print(json.dumps(results.rounded(document["applications"][app.name]), indent=1))


# -- asking


async def ask_all(rows: Sequence[dict[str, Any]], ask: Callable[[str], Awaitable[Answered]]) -> list[Answered]:
    """One after the other: what runs with what in a batch may change a model's last digits."""
    found = []
    for row in rows:
        found.append(await ask(row["question"]))
        print(f"{len(found)}/{len(rows)}", end="\r", file=sys.stderr)
    return found


class Found(BaseCallbackHandler):
    """The documents that retrievers return."""

    raise_error = True

    def __init__(self) -> None:
        self.ids: list[str] = []

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
        self.ids += [str(document.id) for document in documents]


async def asked_plain(chain: Any, app: Application, question: str) -> Answered:
    if not hasattr(chain, "ainvoke"):
        response = await chain.aquery(question)
        return Answered(str(response), passages_of([node.node.node_id for node in response.source_nodes]))
    found = Found()
    output = await chain.ainvoke(app.value(question), config={"callbacks": [found]})
    return Answered(text_of(output), passages_of(found.ids))


async def asked_deployed(url: str, app: Application, question: str) -> Answered:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        response = await client.post("/invoke", json={"input": app.value(question)}, headers={"x-patchwork-trace": "1"})
    document = response.raise_for_status().json()
    return Answered(text_of(document["output"]), passages_of([s["id"] for s in document["metadata"]["sources"]]))


def text_of(output: Any) -> str:
    """The answer in an answer: of a graph its state's, of a LlamaIndex engine its response's."""
    if not isinstance(output, dict):
        return str(output)
    return str(output["answer"] if "answer" in output else output["response"])


def passages_of(ids: Sequence[str]) -> tuple[str, ...]:
    """HippoRAG's index holds terms; its passages follow from them."""
    terms = [Document(id=one, page_content="") for one in ids if one.startswith("term-")]
    if not terms:
        return tuple(ids)
    return tuple(str(document.id) for document in sys.modules["hipporag"].reached(terms))


# -- judging


def compared(rows: Sequence[dict[str, Any]], plain: Sequence[Answered], deployed: Sequence[Answered]) -> dict[str, Any]:
    pairs = list(zip(plain, deployed, strict=True))
    return {
        "questions": len(rows),
        "plain": judged(rows, plain),
        "deployed": judged(rows, deployed),
        "same_passages": mean([one.passages == other.passages for one, other in pairs]),
        "same_passages_in_any_order": mean([sorted(one.passages) == sorted(other.passages) for one, other in pairs]),
        "same_answers": mean([one.text == other.text for one, other in pairs]),
        "different": [
            {"question": row["question"], "plain": one.text, "deployed": other.text}
            for row, (one, other) in zip(rows, pairs, strict=True)
            if one.text != other.text
        ],
    }


def judged(rows: Sequence[dict[str, Any]], answers: Sequence[Answered]) -> dict[str, float]:
    hits = [
        row["topic"] in {passage.rpartition("-")[0] for passage in answer.passages}
        for row, answer in zip(rows, answers, strict=True)
    ]
    scores = [f1(answer.text, row["answer"]) for row, answer in zip(rows, answers, strict=True)]
    return {"recall": mean(hits), "f1": mean(scores)}


def f1(answer: str, reference: str) -> float:
    """Of words: the harmonic mean of how many of the answer's are the reference's, and the other way round."""
    said, wanted = words(answer), words(reference)
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def words(text: str) -> collections.Counter[str]:
    return collections.Counter(w for w in re.findall(r"\w+", text.lower()) if w not in {"a", "an", "the"})


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


if __name__ == "__main__":
    main()
