"""Request bodies: read under a limit, parsed, validated. Everything wrong with them is an InvalidRequest, a 422."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request

from patchwork_adapters.sites_langchain import STRUCTURAL
from patchwork_serving.gateway.faults import BodyTooLarge, BodyTooSlow, InvalidRequest
from patchwork_serving.gateway.serialize import loads
from patchwork_serving.gateway.settings import GatewaySettings

#: what ``langchain_core`` puts into every config that names no limit; a remote client cannot be told from one that chose it
_LANGCHAIN_RECURSION_LIMIT = 25


class RunConfig(BaseModel):
    """The part of a LangChain ``RunnableConfig`` that a client may set; anything else in it is for the client's own process."""

    model_config = ConfigDict(extra="ignore")

    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    run_name: str | None = None
    run_id: UUID | None = None
    max_concurrency: int | None = Field(None, ge=1, le=1024)
    recursion_limit: int | None = Field(None, ge=1, le=10_000)
    configurable: dict[str, Any] | None = None

    def to_config(self) -> dict[str, Any]:
        """As a RunnableConfig without a run id, and without tags that would tell calls of other places than where they are made."""
        config = self.model_dump(exclude_none=True, exclude={"run_id"})
        if config.get("recursion_limit") == _LANGCHAIN_RECURSION_LIMIT:
            del config["recursion_limit"]
        if "tags" in config:
            config["tags"] = [tag for tag in config["tags"] if not tag.startswith(STRUCTURAL)]
        if "configurable" in config:
            # keys with two underscores steer LangGraph's own machinery
            config["configurable"] = {k: v for k, v in config["configurable"].items() if not k.startswith("__")}
        return config


class _Call(BaseModel):
    # a field named kwargs cannot be: pydantic's generated __init__ has one
    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema["properties"].update(
            kwargs={"type": "object", "maxProperties": 0, "description": "Not supported: bind arguments in the chain."}
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _without_kwargs(cls, document: Any) -> Any:
        if isinstance(document, Mapping) and document.get("kwargs"):
            raise InvalidRequest("kwargs are not supported; bind them in the chain, or use config.configurable")
        return document


class InvokeBody(_Call):
    """Body of ``/invoke`` and ``/stream``."""

    input: Any
    config: RunConfig | None = None


class EventsBody(InvokeBody):
    """Body of ``/stream_events``."""

    version: Literal["v1", "v2"] | None = None
    include_names: Sequence[str] | None = None
    include_types: Sequence[str] | None = None
    include_tags: Sequence[str] | None = None
    exclude_names: Sequence[str] | None = None
    exclude_types: Sequence[str] | None = None
    exclude_tags: Sequence[str] | None = None


class BatchBody(_Call):
    """Body of ``/batch``."""

    inputs: list[Any]
    config: RunConfig | list[RunConfig] | None = None

    def configs(self) -> list[RunConfig]:
        """One config per input; a single one is shared, its run id goes to the first."""
        if isinstance(self.config, list):
            if len(self.config) != len(self.inputs):
                raise InvalidRequest(f"config: {len(self.config)} configs for {len(self.inputs)} inputs")
            return self.config
        shared = self.config or RunConfig()
        return [shared, *([shared.model_copy(update={"run_id": None})] * (len(self.inputs) - 1))][: len(self.inputs)]


class ChatMessage(BaseModel):
    """One message of a chat completion request."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatBody(BaseModel):
    """Body of ``/v1/chat/completions``. Sampling parameters are accepted and left to the chain, which has set its own."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1)
    tools: list[Any] | None = Field(None, max_length=0)
    functions: list[Any] | None = Field(None, max_length=0)


_Body = TypeVar("_Body", bound=BaseModel)


def parse(model: type[_Body], document: Any) -> _Body:
    """``document`` as ``model``; InvalidRequest names the first field that is wrong."""
    if not isinstance(document, Mapping):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InvalidRequest(f"{where}: {fault['msg']}") from None


async def read_json(request: Request, settings: GatewaySettings) -> Any:
    """The body as plain JSON values. Raises BodyTooLarge as soon as it is, BodyTooSlow, InvalidRequest or ClientDisconnect."""
    read = bytearray()
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            async for part in request.stream():
                read += part
                if len(read) > settings.max_body_bytes:
                    raise BodyTooLarge(f"the body is larger than {settings.max_body_bytes} bytes")
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {settings.request_timeout_s:g} s") from None
    return loads(bytes(read))
