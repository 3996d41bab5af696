"""The examples' corpus and questions."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def corpus() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    import corpus as module

    yield module
    sys.path.remove(str(EXAMPLES))


def test_the_reference_gives_two_thousand_short_passages(corpus: ModuleType) -> None:
    lengths = [len(p.text.split()) for p in corpus.passages()]
    assert len(lengths) >= 2000
    assert min(lengths) >= corpus.MIN_WORDS
    assert max(lengths) <= corpus.MAX_WORDS
    assert 35 <= statistics.mean(lengths) <= 48


def test_every_passage_has_an_id_a_title_and_a_topic_of_its_own(corpus: ModuleType) -> None:
    passages = corpus.passages()
    assert len({p.id for p in passages}) == len({p.text for p in passages}) == len(passages)
    assert all(p.title and p.topic in corpus.topics for p in passages)


def test_another_process_sees_the_same_passages_in_the_same_order(corpus: ModuleType) -> None:
    code = "import corpus; print([p.id for p in corpus.passages()] == eval(input()))"
    ids = repr([p.id for p in corpus.passages()])
    other = subprocess.run(
        [sys.executable, "-c", code], input=ids, capture_output=True, text=True, cwd=EXAMPLES, timeout=60, check=True
    )
    assert other.stdout.strip() == "True"


def test_a_section_of_several_topics_is_kept_once_under_the_shortest(corpus: ModuleType) -> None:
    topics = {p.topic for p in corpus.passages() if p.title == "The try statement"}
    assert topics == {"try"}


def test_questions_name_topics_that_have_passages(corpus: ModuleType) -> None:
    questions = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()]
    topics = {p.topic for p in corpus.passages()}
    assert len({q["question"] for q in questions}) == len(questions) >= 36
    assert [q for q in questions if q["topic"] not in topics] == []


def test_the_examples_do_not_know_patchwork() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert "patchwork" not in file.read_text().lower(), file.name
