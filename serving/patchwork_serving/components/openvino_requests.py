"""What a request of the OpenAI protocol asks of OpenVINO GenAI: checked, and said in its words. No OpenVINO is imported here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from patchwork_serving.errors import EngineRefused


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Sampling(BaseModel):
    """What both routes share. None: the protocol's default. What no engine here heeds (``user``, ``metadata``) is let through."""

    model_config = ConfigDict(extra="ignore")

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0.0, lt=1.0)
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(None, gt=0.0)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    ignore_eos: bool = False
    stream_options: _StreamOptions | None = None
    n: Literal[1] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[_Part] | None = None


class _JsonSchema(BaseModel):
    schema_: dict[str, Any] = Field(alias="schema")


class _Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _Chat(_Sampling):
    messages: list[_Message] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    response_format: _Format | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=0)


class _Completion(_Sampling):
    prompt: str | Annotated[list[int], Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: Literal[0, 1] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] = False
    suffix: Literal[""] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    messages: Sequence[Mapping[str, Any]] | None  #: of a chat
    prompt: str | Sequence[int]  #: of a completion: text, or ids of tokens
    most_tokens: int | None
    stops: tuple[str, ...]
    wants_usage: bool  #: at the end of a stream
    wants_logprobs: bool
    schema: str | None  #: JSON schema of the answer
    settings: Mapping[str, Any] = field(default_factory=dict)  #: attributes of ``GenerationConfig``

    @property
    def is_chat(self) -> bool:
        return self.messages is not None


def asked(body: object, *, chat: bool) -> Asked:
    """The request in ``body``. EngineRefused names the field that is wrong, or that this engine does not have, and never its value."""
    try:
        return _chat(_Chat.model_validate(body)) if chat else _completion(_Completion.model_validate(body))
    except ValidationError as error:
        raise EngineRefused(_told(error)) from None


def _chat(parsed: _Chat) -> Asked:
    messages = [
        {**message.model_dump(exclude_none=True), "content": _text(message.content)} for message in parsed.messages
    ]
    return Asked(
        messages=messages,
        prompt="",
        wants_logprobs=bool(parsed.logprobs),
        schema=_schema(parsed.response_format),
        **_common(parsed),
    )


def _completion(parsed: _Completion) -> Asked:
    prompt: Any = parsed.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        prompt = prompt[0]
    return Asked(
        messages=None, prompt=prompt, wants_logprobs=parsed.logprobs is not None, schema=None, **_common(parsed)
    )


def _common(parsed: _Sampling) -> dict[str, Any]:
    return {
        "most_tokens": parsed.max_completion_tokens or parsed.max_tokens,
        "stops": tuple(stop for stop in parsed.stop or () if stop),
        "wants_usage": parsed.stream_options is not None and parsed.stream_options.include_usage,
        "settings": _settings(parsed),
    }


def _text(content: str | list[_Part] | None) -> str:
    return "\n".join(part.text for part in content) if isinstance(content, list) else content or ""


def _schema(wanted: _Format | None) -> str | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None:
        raise EngineRefused("response_format.json_schema: is missing")
    return json.dumps(wanted.json_schema.schema_)


def _settings(parsed: _Sampling) -> dict[str, Any]:
    temperature = 1.0 if parsed.temperature is None else parsed.temperature
    found: dict[str, Any] = {
        "do_sample": temperature > 0.0,
        "presence_penalty": parsed.presence_penalty,
        "frequency_penalty": parsed.frequency_penalty,
        "repetition_penalty": parsed.repetition_penalty,
        "ignore_eos": parsed.ignore_eos,
    }
    if temperature > 0.0:
        found |= {
            "temperature": temperature,
            "top_p": parsed.top_p,
            "top_k": parsed.top_k or None,
            "min_p": parsed.min_p,
            "rng_seed": parsed.seed,
        }
    return {name: value for name, value in found.items() if value is not None}


#: Fields that the protocol has and this engine has not.
_LACKING: Mapping[str, str] = {
    "n": "one answer a call", "top_logprobs": "the chosen token's logprob only", "logit_bias": "no logit_bias", "tools": "no tools",
    "logprobs": "the chosen token's logprob only", "best_of": "one answer a call", "echo": "no echo", "suffix": "no suffix",
}  # fmt: skip


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    lacking = _LACKING.get(str(first["loc"][0])) if first["loc"] else None
    if lacking is not None and first["type"] in ("literal_error", "too_long"):
        return f"{where}: the openvino engine has {lacking}; choose engine: llamacpp for this model in patchwork.yaml"
    return f"{where or 'the body'}: {first['msg']}"
