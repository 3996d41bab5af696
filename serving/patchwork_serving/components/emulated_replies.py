"""What emulated engines answer: valid documents, the same for the same prompt and seed, of the length that was asked for. Pure.

Nothing here knows a language. A token is four characters, and filler text is words of three letters and a space, so that the text counts
as many tokens as the usage says, also when another emulated engine reads it. Vectors and scores follow the words of a text: texts that
share words are near one another, which is enough for a search to be a search.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

CHARACTERS_PER_TOKEN = 4
#: none of them says yes or no, nor stops a sentence
_WORDS = (
    "ash", "bay", "cob", "dew", "elm", "fig", "gum", "hay", "ivy", "jet", "kit", "log", "mud", "nut", "oak", "pod",
    "rye", "sap", "tea", "urn", "vat", "wax", "yam", "zip", "bud", "cup", "den", "fen", "hut", "jar", "lid", "mat",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """How an emulated LLM answers."""

    seed: int = 0
    n_in: int | None = None  #: tokens that every prompt counts as; None: as long as it is
    n_out: int | tuple[int, int] | None = (
        None  #: tokens of an answer, or a range; None: what the request allows, at most 64
    )
    answers: Mapping[str, float] = field(default_factory=dict)  #: texts to choose from, with weights; empty: filler


@dataclass(frozen=True, slots=True)
class Answer:
    id: str
    text: str
    prompt_tokens: int
    output_tokens: int
    stopped: bool  #: ended by itself, not by ``max_tokens``

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
        }

    @property
    def finish_reason(self) -> str:
        return "stop" if self.stopped else "length"

    def piece(self, begin: int, end: int) -> str:
        """The text of tokens ``begin`` to ``end``: pieces in order make the whole text, however its length and tokens compare."""
        cut = [round(len(self.text) * token / self.output_tokens) for token in (begin, end)]
        return self.text[cut[0] : cut[1]]


DEFAULT_N_OUT = 64


def answer_of(body: Mapping[str, Any], wish: Wish) -> Answer:
    """The answer to an OpenAI chat or text completion request."""
    prompt = prompt_of(body)
    draw = _Draw(f"{wish.seed}\0{prompt}")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    asked = wish.n_out if not isinstance(wish.n_out, tuple) else draw.between(*wish.n_out)
    text = draw.choose(wish.answers) if wish.answers else None
    wanted = asked or (tokens_of(text) if text is not None else min(limit or DEFAULT_N_OUT, DEFAULT_N_OUT))
    count = max(1, min(wanted, limit or wanted))
    if text is None:
        text = filler(draw, count)
    return Answer(draw.name, text, wish.n_in or tokens_of(prompt), count, stopped=count == wanted)


def tokens_of(text: str) -> int:
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def prompt_of(body: Mapping[str, Any]) -> str:
    """Everything that the model would read, as one text."""
    if "messages" not in body:
        prompt = body.get("prompt", "")
        return prompt if isinstance(prompt, str) else "\n".join(map(str, prompt))
    return "\n".join(_text(message.get("content")) for message in body["messages"] if isinstance(message, Mapping))


def _text(content: object) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def filler(draw: _Draw, tokens: int) -> str:
    rng = np.random.default_rng(draw.number)
    return " ".join(_WORDS[int(i)] for i in rng.integers(0, len(_WORDS), tokens))


class _Draw:
    """Choices that depend on a text alone: the same in every process, on every day."""

    def __init__(self, text: str) -> None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        self.name = digest[:8].hex()
        self.number = int.from_bytes(digest[8:16])
        self._share = int.from_bytes(digest[16:24]) / 2**64
        self._length = int.from_bytes(digest[24:32]) / 2**64

    def choose(self, weights: Mapping[str, float]) -> str:
        left = self._share * sum(weights.values())
        for text, weight in weights.items():
            left -= weight
            if left < 0:
                return text
        return list(weights)[-1]

    def between(self, low: int, high: int) -> int:
        return low + int(self._length * (high - low + 1))


# -- documents of the OpenAI protocol


def whole(answer: Answer, body: Mapping[str, Any], model: str, created: int) -> dict[str, Any]:
    """The response document of a chat or text completion."""
    head = _head(answer, body, model, created, chunk=False)
    choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish_reason, "logprobs": None}
    if "messages" not in body:
        choice["text"] = answer.text
    elif (tool := forced_tool(body)) is not None:
        choice["finish_reason"] = "stop"
        choice["message"] = {"role": "assistant", "content": None, "tool_calls": [_tool_call(answer, tool)]}
    else:
        choice["message"] = {"role": "assistant", "content": answer.text}
    return {**head, "choices": [choice], "usage": answer.usage}


def chunks(
    answer: Answer, body: Mapping[str, Any], model: str, created: int, begin: int, end: int
) -> Iterator[dict[str, Any]]:
    """The chunks of a stream that carry tokens ``begin`` to ``end``; the first and the last ones come with what surrounds them."""
    head = _head(answer, body, model, created, chunk=True)
    chat, tool = "messages" in body, forced_tool(body)

    def chunk(content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        part: dict[str, Any] = {"delta": content} if chat else {"text": content.get("content", "")}
        return {**head, "choices": [{"index": 0, **part, "finish_reason": finish, "logprobs": None}]}

    if begin == 0 and chat:
        yield chunk({"role": "assistant", "content": None if tool else ""})
    if tool is None:
        yield chunk({"content": answer.piece(begin, end)})
    elif end == answer.output_tokens:
        yield chunk({"tool_calls": [{"index": 0, **_tool_call(answer, tool)}]})
    if end == answer.output_tokens:
        yield chunk({}, "stop" if tool else answer.finish_reason)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {**head, "choices": [], "usage": answer.usage}


def _head(answer: Answer, body: Mapping[str, Any], model: str, created: int, *, chunk: bool) -> dict[str, Any]:
    kind = ("chat.completion" + (".chunk" if chunk else "")) if "messages" in body else "text_completion"
    prefix = "chatcmpl" if "messages" in body else "cmpl"
    return {
        "id": f"{prefix}-emulated-{answer.id}",
        "object": kind,
        "created": created,
        "model": model,
        "system_fingerprint": "patchwork-emulated",
    }


def forced_tool(body: Mapping[str, Any]) -> str | None:
    """The function that the request insists on (structured output): its arguments are then the answer's text."""
    choice = body.get("tool_choice")
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _tool_call(answer: Answer, name: str) -> dict[str, Any]:
    return {"id": f"call_{answer.id}", "type": "function", "function": {"name": name, "arguments": answer.text}}


# -- vectors and scores

_WORD = re.compile(r"\w+")


def vectors_of(texts: Sequence[str], dim: int, seed: int = 0) -> Vectors:
    """One vector a text: the sum of its words' own random directions."""
    found = np.empty((len(texts), dim), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        words = _WORD.findall(text.lower()) or [text]
        row[:] = sum(_direction(word, dim, seed) for word in words)
    return found


def scores_of(pairs: Sequence[tuple[str, str]]) -> Vectors:
    """One score a pair, between 0 and 1: the share of the query's words that the text has."""
    return np.array([_overlap(query, text) for query, text in pairs], dtype=np.float32)


@functools.lru_cache(maxsize=20_000)
def _direction(word: str, dim: int, seed: int) -> Vectors:
    return np.random.default_rng(_Draw(f"{seed}\0{word}").number).standard_normal(dim, dtype=np.float32)


def _overlap(query: str, text: str) -> float:
    wanted = set(_WORD.findall(query.lower()))
    return len(wanted & set(_WORD.findall(text.lower()))) / len(wanted) if wanted else 0.0
