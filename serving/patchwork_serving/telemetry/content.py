"""What was asked, found and answered, from the spans of a request whose client asked for content; for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from patchwork_serving.telemetry import names

MAX_CHARS = 2000


def render_content(spans: Sequence[Mapping[str, Any]]) -> RenderableType | None:
    """Prompts, documents and answers by span, in order; None when the spans hold none."""
    parts = [part for span in spans for part in _of(span)]
    return Group(*parts) if parts else None


def _of(span: Mapping[str, Any]) -> Iterator[Text]:
    lines = [*_prompt(span["attributes"]), *_documents(span["attributes"]), *_answer(span["attributes"])]
    if lines:
        yield Text(str(span["name"]), style="bold")
    for label, text in lines:
        yield Text.assemble((f"  {label}: ", "dim"), text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…")


def _prompt(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    index = 0
    while (role := attributes.get(f"llm.input_messages.{index}.message.role")) is not None:
        yield str(role), str(attributes.get(f"llm.input_messages.{index}.message.content", ""))
        index += 1
    if index == 0 and names.INPUT_VALUE in attributes:
        yield "input", _plain(str(attributes[names.INPUT_VALUE]))


def _documents(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    index = 0
    while (text := attributes.get(names.DOCUMENT.format(index=index, field="content"))) is not None:
        yield str(attributes.get(names.DOCUMENT.format(index=index, field="id"), index)), str(text)
        index += 1


def _answer(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if names.OUTPUT_VALUE in attributes:
        yield "answer", str(attributes[names.OUTPUT_VALUE])


def _plain(value: str) -> str:
    """A JSON list of texts as lines; anything else as it is."""
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return "\n".join(parsed) if isinstance(parsed, list) and all(isinstance(p, str) for p in parsed) else value
