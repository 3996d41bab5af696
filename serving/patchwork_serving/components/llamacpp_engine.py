"""LLMs on llama.cpp, in this process, with continuous batching.

xllamacpp runs llama.cpp's own server on threads of this process. It is spoken to over loopback HTTP with a key of its own, not through its
Python callbacks, which take a thread per call and the interpreter's lock per token.

One *shard* is one such server. On CPUs several shards of one thread each serve a full load better than one server of many threads: threads
of one server meet at a barrier after each operation, and whoever is late delays all (``docs/decisions/llm-on-cpu.md``). A lone request
is slower that way, so the number of shards is a setting.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpResponse, decode_request, encode_response
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.llm_routes import routed
from patchwork_serving.components.openai_chunks import DONE, EventLines, StreamError, Tally, WholeAnswer
from patchwork_serving.components.prompt_affinity import PromptAffinity
from patchwork_serving.errors import EngineDied, EngineRefused, ModelCorrupt
from patchwork_serving.models.registry import Locate

log = logging.getLogger(__name__)

_JSON = {"content-type": "application/json"}
_STALE_TRIES = 3  #: llama.cpp closes kept-alive connections when it likes
_READ_TIMEOUT_S = 3600.0  #: deadlines are the caller's; this only ends a wait for a server that hangs
_RETRIED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """How llama.cpp runs; the defaults are for a CPU (measured: ``docs/decisions/llm-on-cpu.md``)."""

    slots: int = 16  #: sequences at once, over all shards
    n_ctx: int = 2048  #: tokens of context per sequence
    shards: int | None = None  #: None: one for every two cores, at most four, and never more than slots
    threads: int | None = None  #: per shard; None: the cores divided by the shards
    n_batch: int = 2048
    n_ubatch: int = 512
    cache_prompt: bool = (
        True  #: keep each sequence's tokens, so that a prompt with the same beginning starts where they differ
    )
    cache_ram_mib: int = 512  #: prompts kept beyond the slots; 0 for none
    gpu_layers: int = 0
    #: Off: at temperature 0 its answers change with the company that a sequence has, with the threads and with what was cached; without it
    #: they hardly do, for a tenth of the speed.
    flash_attention: bool = False
    rope_freq_base: float = 0.0  #: 0: the model's own
    rope_freq_scale: float = 0.0  #: 0: the model's own

    def resolved(self, cores: int) -> LlamaCppOptions:
        """With numbers in place of None, for a machine of so many cores."""
        shards = self.shards or max(1, min(cores, 4, self.slots))
        return dataclasses.replace(self, shards=shards, threads=self.threads or max(1, cores // shards))


@dataclass(slots=True)
class _Shard:
    server: Any
    client: httpx.AsyncClient
    slots: int
    running: int = 0


@dataclass(slots=True)
class _Answer:
    """The head of a response whose body is still to come."""

    status: int
    headers: dict[str, str]
    response: httpx.Response = field(repr=False)


class LlamaCppEngine:
    """A TokenEngine over one GGUF file.

    Methods ``POST /v1/chat/completions`` and ``POST /v1/completions`` (payloads of the protocol way) and operations ``chat`` and
    ``complete``. A request that llama.cpp refuses (context too long, bad sampling value) is answered with its status and an
    OpenAI-shaped error in the protocol way, and raises EngineRefused in the engine way.
    """

    def __init__(
        self, locate: Locate, *, name: str, options: LlamaCppOptions | None = None, cores: int | None = None
    ) -> None:
        self._locate = locate
        self._file = ""
        self._name = name
        self._options = (options or LlamaCppOptions()).resolved(cores or available_cores())
        self.slots = self._options.slots
        self.shards = self._options.shards or 1
        self.step_tokens = self._options.n_batch * self.shards
        self._shards: list[_Shard] = []
        self._affinity = PromptAffinity()
        self._closed = False

    async def start(self) -> None:
        """Load the model once per shard and let each answer; ModelCorrupt when llama.cpp cannot read the file."""
        if self._shards:
            return
        files = await asyncio.to_thread(self._locate)
        self._file = files.path.name
        key = secrets.token_urlsafe(24)
        count = self._options.shards or 1
        for index in range(count):
            slots = self._options.slots // count + (index < self._options.slots % count)
            self._shards.append(await asyncio.to_thread(self._load, files.path, key, slots))
        try:
            await asyncio.gather(*(self._warm(shard) for shard in self._shards))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the servers and free the model; idempotent."""
        self._closed = True
        shards, self._shards = self._shards, []
        for shard in shards:
            await shard.client.aclose()
        if shards:
            await asyncio.to_thread(_free, shards)

    def describe(self) -> Mapping[str, Any]:
        options = self._options
        return {
            "engine": "llamacpp",
            "model": self._name,
            "file": self._file,
            "slots": options.slots,
            "context_tokens": options.n_ctx,
            "shards": options.shards,
            "threads": options.threads,
            "cache_prompt": options.cache_prompt,
        }

    def processing(self) -> int:
        """Sequences that llama.cpp is working on now, by its own count."""
        return sum(_metric(shard.server.handle_metrics(), "llamacpp:requests_processing") for shard in self._shards)

    def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        """Frames of one reply. Closing the iterator closes the connection, on which llama.cpp drops the sequence."""
        return routed(self._name, call, protocol=self._protocol, operation=self._operation)

    # -- the two ways ----------------------------------------------------------------------------------------------

    async def _protocol(self, call: EngineCall, route: str) -> AsyncGenerator[bytes]:
        body = decode_request(call.payload).json()
        if not call.stream:
            status, document = await self._whole(route, body, Tally(call.progress))
            yield encode_response(HttpResponse(status, _JSON, document))
            return
        async with self._asked(route, body) as answer:
            yield encode_response(HttpResponse(answer.status, answer.headers))
            lines, tally = EventLines(), Tally(call.progress)
            async for chunk in _raw(answer):
                for data in lines.feed(chunk):
                    tally.event(data)
                yield chunk

    async def _operation(self, call: EngineCall, route: str) -> AsyncGenerator[bytes]:
        body = dict(codec.decode(call.payload)["body"])
        if not call.stream:
            status, document = await self._whole(route, body, Tally(call.progress))
            if status != httpx.codes.OK:
                raise EngineRefused(_reason(document))
            yield codec.encode_outcome(orjson.loads(document))
            return
        async with self._asked(route, {**body, "stream": True}) as answer:
            if answer.status != httpx.codes.OK:
                raise EngineRefused(_reason(await _read(answer)))
            tally = Tally(call.progress)
            async for data in _events(answer):
                tally.event(data)
                if data != DONE:
                    yield codec.encode_outcome(orjson.loads(data))

    async def _whole(self, route: str, body: Mapping[str, Any], tally: Tally) -> tuple[int, bytes]:
        """(status, document). Streamed underneath, because llama.cpp notices only there that its caller has left."""
        whole = WholeAnswer()
        async with self._asked(route, {**body, "stream": True, "stream_options": {"include_usage": True}}) as answer:
            if answer.status != httpx.codes.OK or not answer.headers["content-type"].startswith("text/event-stream"):
                return answer.status, await _read(answer)
            try:
                async for data in _events(answer):
                    tally.event(data)
                    if whole.add(data):
                        return answer.status, orjson.dumps(whole.document())
            except StreamError as error:
                return httpx.codes.INTERNAL_SERVER_ERROR, orjson.dumps(error.args[0])
        raise EngineDied("llama.cpp ended an answer in the middle")

    # -- llama.cpp -------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _asked(self, route: str, body: Mapping[str, Any]) -> AsyncIterator[_Answer]:
        """Send to one of the shards. A stale connection is tried again; nothing was computed then."""
        if self._closed or not self._shards:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        shards = self._shards
        shard = shards[self._affinity.choose(body, [s.running for s in shards], [s.slots for s in shards])]
        shard.running += 1
        try:
            response = await _send(shard.client, route, orjson.dumps(body), self._name)
            try:
                kept = {"content-type": response.headers.get("content-type", "application/json")}
                yield _Answer(response.status_code, kept, response)
            finally:
                await response.aclose()
        finally:
            shard.running -= 1

    def _load(self, path: Path, key: str, slots: int) -> _Shard:
        import xllamacpp

        options = self._options
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {self._name}
        params.n_parallel = slots
        params.n_ctx = options.n_ctx * slots
        params.kv_unified = False  # one buffer for all would let every token look over every sequence's cells
        params.n_batch, params.n_ubatch = options.n_batch, options.n_ubatch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.cache_prompt = options.cache_prompt
        params.cache_ram_mib = options.cache_ram_mib // (options.shards or 1)
        kinds = xllamacpp.llama_flash_attn_type
        params.flash_attn_type = (
            kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if options.flash_attention else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.n_gpu_layers = options.gpu_layers
        params.rope_freq_base, params.rope_freq_scale = options.rope_freq_base, options.rope_freq_scale
        params.fit_params = False
        params.api_keys = [key]
        params.endpoint_slots = False
        params.endpoint_metrics = True
        params.ui = False
        params.n_threads_http = slots + 2
        params.verbosity = 0
        try:
            server = xllamacpp.Server(params)
        except Exception as error:
            raise ModelCorrupt(
                f"llama.cpp cannot load {path} ({type(error).__name__}); fetch it again with `patchwork models pull --force`, "
                "or lower n_ctx or slots if memory is short"
            ) from error
        client = httpx.AsyncClient(
            base_url=server.listening_address, headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
            timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=10.0), trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=slots),
        )  # fmt: skip
        return _Shard(server, client, slots)

    async def _warm(self, shard: _Shard) -> None:
        body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 2, "temperature": 0}
        response = await _send(shard.client, "/v1/chat/completions", orjson.dumps(body), self._name)
        content = await response.aread()
        await response.aclose()
        if response.status_code != httpx.codes.OK:
            raise ModelCorrupt(f"{self._name} loads but does not answer: {_reason(content)}")


def _metric(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(name):
            return int(float(line.split()[-1]))
    return 0


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free(shards: list[_Shard]) -> None:
    """The servers stop when their last reference goes, which takes a while: not on the event loop."""
    for shard in shards:
        shard.server = None
    shards.clear()


async def _send(client: httpx.AsyncClient, route: str, body: bytes, name: str) -> httpx.Response:
    for attempt in range(_STALE_TRIES):
        try:
            return await client.send(client.build_request("POST", route, content=body), stream=True)
        except _RETRIED as error:
            if attempt + 1 == _STALE_TRIES:
                raise EngineDied(f"llama.cpp dropped the connection of a call to {name}; try again") from error
        except httpx.TransportError as error:
            raise EngineDied(f"llama.cpp, running {name}, does not answer ({type(error).__name__})") from error
    raise AssertionError("unreachable")


async def _read(answer: _Answer) -> bytes:
    try:
        return await answer.response.aread()
    except httpx.TransportError as error:
        raise EngineDied(f"llama.cpp stopped in the middle of an answer ({type(error).__name__})") from error


async def _raw(answer: _Answer) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.response.aiter_raw():
            yield chunk
    except httpx.TransportError as error:
        raise EngineDied(f"llama.cpp stopped in the middle of a stream ({type(error).__name__})") from error


async def _events(answer: _Answer) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    lines = EventLines()
    async for chunk in _raw(answer):
        for data in lines.feed(chunk):
            yield data


def _reason(content: bytes) -> str:
    """llama.cpp's own words; they tell lengths and names of parameters, never the prompt."""
    try:
        message = orjson.loads(content)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "the request was refused without a reason"
    return str(message)[:300]
