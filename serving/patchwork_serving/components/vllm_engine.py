"""LLMs on vLLM's ``AsyncLLM``, whose work is done in processes of its own, behind vLLM's own OpenAI application.

That application is called in this process, without a server or a socket: what a request may ask for (tools, structured output, logprobs,
stops, seeds, penalties, chat templates) and how it is refused is then vLLM's own, whichever release is installed
(``docs/decisions/vllm.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpResponse, decode_request, encode_response
from patchwork_serving.components.asgi_call import AsgiAnswer, asgi_post
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.llm_routes import routed
from patchwork_serving.components.openai_chunks import DONE, EventLines
from patchwork_serving.components.vllm_loading import TOLD, Loaded, Told, load, unload
from patchwork_serving.components.vllm_memory import WHOLE_GPU, check_memory
from patchwork_serving.errors import EngineDied, EngineError, EngineRefused, ModelCorrupt, SetupError
from patchwork_serving.gpus import gpu_bytes
from patchwork_serving.models.registry import Locate

DEFAULT_SLOTS = 256  #: sequences at once; what deadlines can bear bounds them further
STEP_TOKENS = 8192  #: assumed until the engine has started and tells its own ``max_num_batched_tokens``

_OK, _SERVER_FAULT = 200, 500
#: vLLM quotes the value that it refuses; a message is not to hold what was asked.
_QUOTED = re.compile(r", 'input': .*(?=\}$)|, value=.*(?=\)$)", re.MULTILINE)


class VllmEngine:
    """A TokenEngine, PriorityEngine and MortalEngine over one model folder.

    Methods and operations as ``LlamaCppEngine``. ``arguments`` are those of vLLM's server, with underscores. ``gpus`` is the share of a
    GPU, or the number of GPUs, that the component has: it says how much memory to take, and over how many to spread, unless they do.
    """

    def __init__(
        self, locate: Locate, *, name: str, arguments: Mapping[str, Any], slots: int | None = None, gpus: float = 0.0
    ) -> None:
        self._locate = locate
        self._name = name
        self._on_gpu = gpus > 0.0
        self._arguments = _completed(arguments, slots, gpus)
        self.slots: int = self._arguments["max_num_seqs"]
        self.step_tokens: int = self._arguments.get("max_num_batched_tokens") or STEP_TOKENS
        self.scheduling_policy = ""
        self._loaded: Loaded | None = None
        self._loading: asyncio.Task[Loaded] | None = None
        self._start_s = 0.0

    async def start(self) -> None:
        """Load the model and answer a call. Raises MissingExtra, ConfigError, ModelTooLarge, GpuMissing, ModelCorrupt or SetupError."""
        if self._loaded is not None:
            return
        began = time.monotonic()
        files = await asyncio.to_thread(self._locate)
        if not files.path.is_dir():
            raise ModelCorrupt(
                f"{files.path.name} is no Hugging Face folder, which is what vLLM loads; give one, or choose llamacpp"
            )
        await asyncio.to_thread(self.check_fit, files.path)
        self._loading = asyncio.create_task(load(files.path, self._name, self._arguments, asyncio.to_thread))
        # a thread cannot be cancelled: what it started is stopped by close()
        self._loaded = await asyncio.shield(self._loading)
        self._loading = None
        config = self._loaded.llm.vllm_config
        self.scheduling_policy = str(config.scheduler_config.policy)
        self.step_tokens = int(config.scheduler_config.max_num_batched_tokens)
        try:
            await self._warm()
        except BaseException:
            await self.close()
            raise
        self._start_s = time.monotonic() - began

    def check_fit(self, folder: Path) -> None:
        """ModelTooLarge when the model cannot fit into the GPUs that are here; costs milliseconds."""
        if self._on_gpu:
            check_memory(self._name, folder, self._arguments, gpu_bytes())

    async def close(self) -> None:
        """Stop vLLM's processes, whatever they are doing; idempotent."""
        loading, self._loading = self._loading, None
        if loading is not None:
            with contextlib.suppress(Exception):
                self._loaded = await loading
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            await asyncio.to_thread(unload, loaded)

    def check(self) -> None:
        if self._loaded is not None and self._loaded.errored:
            raise self._died(self._loaded)

    def describe(self) -> Mapping[str, Any]:
        facts: dict[str, Any] = {"engine": "vllm", "model": self._name, "slots": self.slots}
        if self._loaded is None:
            return facts
        config = self._loaded.llm.vllm_config
        cache, model = config.cache_config, config.model_config
        return {
            **facts,
            "device": str(config.device_config.device_type),
            "dtype": str(model.dtype).removeprefix("torch."),
            "context_tokens": model.max_model_len,
            "step_tokens": self.step_tokens,
            "cache_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
            "prefix_caching": bool(cache.enable_prefix_caching),
            "tensor_parallel": config.parallel_config.tensor_parallel_size,
            "scheduling_policy": self.scheduling_policy,
            "start_s": round(self._start_s, 1),
        }

    def processing(self) -> int:
        """Sequences inside vLLM now, by its own count."""
        return 0 if self._loaded is None else int(self._loaded.llm.get_num_unfinished_requests())

    def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        """Frames of one reply. Closing the iterator aborts the request in vLLM."""
        return routed(self._name, call, protocol=self._protocol, operation=self._operation)

    # -- the two ways ----------------------------------------------------------------------------------------------

    async def _protocol(self, call: EngineCall, route: str) -> AsyncGenerator[bytes]:
        async with self._asked(call, route, decode_request(call.payload).json()) as (answer, told):
            headers = {"content-type": answer.headers.get("content-type", "application/json")}
            if answer.status != _OK or not call.stream:
                document = await self._read(answer, told)
                if call.stream:
                    yield encode_response(HttpResponse(answer.status, headers))
                    yield document
                else:
                    yield encode_response(HttpResponse(answer.status, headers, document))
                return
            yield encode_response(HttpResponse(answer.status, headers))
            async for piece in answer.body:
                self._alive(told)
                yield piece

    async def _operation(self, call: EngineCall, route: str) -> AsyncGenerator[bytes]:
        body = {**codec.decode(call.payload)["body"], "stream": call.stream}
        async with self._asked(call, route, body) as (answer, told):
            if answer.status != _OK:
                reason = _reason(await self._read(answer, told))
                raise EngineError(reason) if answer.status >= _SERVER_FAULT else EngineRefused(reason)
            if not call.stream:
                yield codec.encode_outcome(orjson.loads(await self._read(answer, told)))
                return
            lines = EventLines()
            async for piece in answer.body:
                self._alive(told)
                for data in lines.feed(piece):
                    if data != DONE:
                        yield codec.encode_outcome(_chunk(data))

    # -- vLLM ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _asked(
        self, call: EngineCall, route: str, body: Mapping[str, Any]
    ) -> AsyncIterator[tuple[AsgiAnswer, Told]]:
        loaded = self._loaded
        if loaded is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        self.check()
        told = Told(call)
        asked = orjson.dumps({**body, "model": self._name})  # clients ask for it by other names, too
        try:
            async with asgi_post(loaded.app, route, asked, within=lambda: TOLD.set(told)) as answer:
                yield answer, told
        finally:
            await told.end()

    async def _read(self, answer: AsgiAnswer, told: Told) -> bytes:
        document = await answer.read()
        if answer.status >= _SERVER_FAULT:
            self.check()
        self._alive(told)
        return document if answer.status == _OK else _without_values(document)

    def _alive(self, told: Told) -> None:
        """vLLM answers a call whose engine died with an error of its own; it is ours to say that it may be tried elsewhere."""
        if told.died:
            assert self._loaded is not None
            raise self._died(self._loaded)

    def _died(self, loaded: Loaded) -> EngineDied:
        return EngineDied(f"the vLLM engine of {self._name} died ({loaded.why_it_died()}); its replica is replaced")

    async def _warm(self) -> None:
        assert self._loaded is not None
        body = {"model": self._name, "prompt": "yes", "max_tokens": 2, "temperature": 0}
        async with asgi_post(self._loaded.app, "/v1/completions", orjson.dumps(body)) as answer:
            document = await answer.read()
        if answer.status != _OK:
            raise SetupError(f"{self._name} loads but does not answer: {_reason(_without_values(document))}")


def _completed(arguments: Mapping[str, Any], slots: int | None, gpus: float) -> dict[str, Any]:
    """With what follows from the component's settings, under what was asked for."""
    derived: dict[str, Any] = {
        "scheduling_policy": "priority",
        "enable_prefix_caching": True,
        "max_num_seqs": slots or DEFAULT_SLOTS,
    }
    if 0.0 < gpus < 1.0:
        derived["gpu_memory_utilization"] = round(WHOLE_GPU * gpus, 3)
    elif gpus > 1.0:
        derived["tensor_parallel_size"] = int(gpus / arguments.get("pipeline_parallel_size", 1))
    completed = {**derived, **arguments}
    if completed.get("tensor_parallel_size", 1) > 1:
        # beside Ray, vLLM would ask Ray for GPUs of its own
        completed.setdefault("distributed_executor_backend", "mp")
    return completed


def _chunk(data: bytes) -> Any:
    chunk = orjson.loads(data)
    if isinstance(chunk, dict) and "error" in chunk:
        raise EngineError(_reason(_without_values(data)))
    return chunk


def _without_values(document: bytes) -> bytes:
    """An error document without the values that it quotes."""
    try:
        answer = orjson.loads(document)
        answer["error"]["message"] = _QUOTED.sub("", answer["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return document
    return orjson.dumps(answer)


def _reason(document: bytes) -> str:
    try:
        message = orjson.loads(document)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "the request was refused without a reason"
    return str(message)[:300]
