"""Python's own language reference, as passages for retrieval.

The reference ships with every Python (``pydoc_data.topics``, what ``help("try")`` prints), so nothing is downloaded. Its topics repeat
one another ("compound" contains "if", "while", "try" ...); each passage is kept once, under the shortest topic that has it.

    python examples/corpus.py            # how many passages, and the first one
"""

import re
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics

MAX_WORDS = 48  # four such passages and a question are about 250 tokens of context
MIN_WORDS = 8  # shorter ones ("Examples:") answer nothing
STEP_WORDS = 14  # passages overlap, so that no sentence is known only without its neighbours
HEADING = re.compile(r"^(\S.*)\n[*=\-~]{3,}$", re.MULTILINE)
TABLE_RULE = re.compile(r"[+|=-]{3,}|\|")
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z*\"“(>])")


@dataclass(frozen=True)
class Passage:
    id: str  # topic and running number: the same in every process of the same Python
    text: str
    title: str  # heading of the section that the passage comes from
    topic: str  # name under which pydoc knows it: help("try")

    @property
    def metadata(self) -> dict[str, str]:
        return {"title": self.title, "topic": self.topic}


@cache
def passages() -> tuple[Passage, ...]:
    """Every passage of the reference, in a fixed order."""
    seen: set[str] = set()
    found: list[Passage] = []
    for topic in sorted(sorted(topics, reverse=True), key=lambda name: len(topics[name])):
        fresh = []
        for title, body in sections(topics[topic]):
            for text in windows(sentences(body)):
                if text not in seen and len(text.split()) >= MIN_WORDS:
                    seen.add(text)
                    fresh.append((title, text))
        found += [Passage(f"{topic}-{n:03d}", text, title, topic) for n, (title, text) in enumerate(fresh)]
    return tuple(found)


def sections(text: str) -> list[tuple[str, str]]:
    """(heading, body) pairs; a heading is a line with a rule of ``*``, ``=``, ``-`` or ``~`` below it."""
    parts = HEADING.split(text)
    return [(heading.replace('"', ""), body) for heading, body in zip(parts[1::2], parts[2::2], strict=True)]


def sentences(body: str) -> list[list[str]]:
    """Sentences of all paragraphs as lists of words, none longer than MAX_WORDS."""
    found = []
    for paragraph in re.split(r"\n\s*\n", body):
        for sentence in SENTENCE_END.split(paragraph.strip()):
            words = [word for word in sentence.split() if not TABLE_RULE.fullmatch(word)]
            found += [words[i : i + MAX_WORDS] for i in range(0, len(words), MAX_WORDS)]
    return found


def windows(units: list[list[str]]) -> list[str]:
    """Passages of whole sentences, at most MAX_WORDS long; each begins STEP_WORDS or more after the one before."""
    found = []
    start = 0
    while start < len(units):
        end = start + 1
        while end < len(units) and words_in(units[start : end + 1]) <= MAX_WORDS:
            end += 1
        found.append(" ".join(" ".join(unit) for unit in units[start:end]))
        if end == len(units):
            break
        step_end = start + 1
        while step_end < end and words_in(units[start:step_end]) < STEP_WORDS:
            step_end += 1
        start = step_end
    return found


def words_in(units: list[list[str]]) -> int:
    return sum(map(len, units))


if __name__ == "__main__":
    everything = passages()
    print(f"{len(everything)} passages of {len({p.topic for p in everything})} topics; the first:\n{everything[0]}")
