"""LLMs on OpenVINO GenAI, in this process, with continuous batching: on a CPU several times as fast as llama.cpp with many calls inside.

What it lacks (tools, several answers a call, alternatives to a token) it refuses by name (``docs/decisions/llm-on-cpu.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpResponse, decode_request, encode_response
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.llm_routes import routed
from patchwork_serving.components.openai_chunks import WholeAnswer
from patchwork_serving.components.openvino_loop import Inside, Piece, StepLoop, last_line
from patchwork_serving.components.openvino_requests import Asked, asked
from patchwork_serving.components.openvino_schemas import Schemas
from patchwork_serving.components.openvino_text import Detokenizer, Stops
from patchwork_serving.errors import EngineDied, EngineRefused, MissingExtra, ModelCorrupt
from patchwork_serving.models.registry import Locate

_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_BLOCK = 32  #: tokens of a block of the cache, on a CPU
#: A prompt alone in its cache needs a block beyond its own.
_SPARE_BLOCKS = 8

#: With these a sequence's answer does not depend on its company. By itself OpenVINO computes in 16 bits where the CPU can, and quantises
#: activations and cache.
_EXACT: Mapping[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f16",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


@dataclass(frozen=True, slots=True)
class OpenVinoOptions:
    """How OpenVINO runs."""

    slots: int = 16  #: sequences at once
    n_ctx: int = 2048  #: tokens of context per sequence
    threads: int = 0  #: 0: all cores
    n_batch: int = 512  #: tokens of a step, prompts and answers together
    cache_prompt: bool = True  #: keep the blocks of prompts, for those that begin the same
    #: Off: a third to a half of the time is saved, and at temperature 0 answers change with the company that a sequence has.
    exact: bool = True


class OpenVinoEngine:
    """A TokenEngine and MortalEngine over a GGUF file of the Llama or Qwen family, or a folder with a model in OpenVINO's format.

    Methods and operations as ``LlamaCppEngine``, without the Responses API.
    """

    def __init__(self, locate: Locate, *, name: str, options: OpenVinoOptions | None = None) -> None:
        self._locate = locate
        self._name = name
        self._options = options or OpenVinoOptions()
        self._file = ""
        self.slots = self._options.slots
        self.step_tokens = self._options.n_batch
        self._steps: StepLoop | None = None
        self._tokenizer: Any = None
        self._defaults: Any = None  # the model's own GenerationConfig
        self._vocabulary = 0
        self._schemas: Schemas | None = None
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Load the model and answer a call; MissingExtra without OpenVINO, ModelCorrupt when it cannot load the file."""
        if self._steps is not None:
            return
        files = await asyncio.to_thread(self._locate)
        self._file = files.path.name
        options = self._options
        pipeline = await asyncio.to_thread(self._load, files.path, slots=options.slots, n_ctx=options.n_ctx)
        self._tokenizer, self._defaults = pipeline.get_tokenizer(), pipeline.get_config()
        self._vocabulary = len(self._tokenizer.get_vocab())
        self._schemas = Schemas(lambda: self._load(files.path, slots=1, n_ctx=_BLOCK))
        self._steps = StepLoop(pipeline, self._name)
        try:
            await self._warm()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop after the step under way and free the model; idempotent."""
        steps, self._steps = self._steps, None
        if steps is not None:
            await asyncio.to_thread(steps.close)
        if self._schemas is not None:
            self._schemas.close()

    def check(self) -> None:
        if self._steps is not None and self._steps.died is not None:
            raise EngineDied(f"the OpenVINO engine of {self._name} died ({self._steps.died}); its replica is replaced")

    def describe(self) -> Mapping[str, Any]:
        options = self._options
        return {
            "engine": "openvino",
            "model": self._name,
            "file": self._file,
            "slots": options.slots,
            "context_tokens": options.n_ctx,
            "step_tokens": options.n_batch,
            "threads": options.threads,
            "cache_prompt": options.cache_prompt,
            "exact": options.exact,
        }

    def processing(self) -> int:
        """Sequences inside now."""
        return 0 if self._steps is None else len(self._steps)

    def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        """Frames of one reply. Closing the iterator drops the sequence before the engine's next step."""
        return routed(self._name, call, protocol=self._protocol, operation=self._operation)

    # -- the two ways ----------------------------------------------------------------------------------------------

    async def _protocol(self, call: EngineCall, route: str) -> AsyncGenerator[bytes]:
        try:
            request, inside = await self._asked(call, route, decode_request(call.payload).json())
        except EngineRefused as refusal:
            yield encode_response(HttpResponse(400, _JSON, _error(str(refusal))))
            return
        chunks = self._chunks(call, request, inside, wants_usage=not call.stream or request.wants_usage)
        async with contextlib.aclosing(chunks):
            if not call.stream:
                yield encode_response(HttpResponse(200, _JSON, orjson.dumps(await _whole(chunks))))
                return
            yield encode_response(HttpResponse(200, _EVENTS))
            async for chunk in chunks:
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
            yield b"data: [DONE]\n\n"

    async def _operation(self, call: EngineCall, route: str) -> AsyncGenerator[bytes]:
        request, inside = await self._asked(call, route, codec.decode(call.payload)["body"])
        chunks = self._chunks(call, request, inside, wants_usage=not call.stream or request.wants_usage)
        async with contextlib.aclosing(chunks):
            if not call.stream:
                yield codec.encode_outcome(await _whole(chunks))
                return
            async for chunk in chunks:
                yield codec.encode_outcome(chunk)

    async def _asked(self, call: EngineCall, route: str, body: object) -> tuple[Asked, Inside]:
        """The request and its sequence, not yet in the engine. EngineRefused for what is wrong with it."""
        if self._steps is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        if route not in (_CHAT, _COMPLETIONS):
            raise EngineRefused(
                f"the openvino engine does not answer {route}; choose engine: llamacpp for {self._name}"
            )
        request = asked(body, chat=route == _CHAT)
        return request, await asyncio.to_thread(self._sequence, call, request)

    def _sequence(self, call: EngineCall, request: Asked) -> Inside:
        ids = self._encoded(request)
        room = self._options.n_ctx - ids.shape[1]
        if room < 1:
            raise EngineRefused(
                f"the prompt has {ids.shape[1]} tokens, and the context size is {self._options.n_ctx}; send less, or set n_ctx in "
                "engine_args"
            )
        config = self._config(request, min(request.most_tokens or room, room))
        if request.schema is not None and self._schemas is not None:
            self._schemas.check(request.schema, config, self._tokenizer.encode("a").input_ids)
        text = Detokenizer(self._tokenizer.decode)
        return Inside(next(self._numbers), ids, config, text, Stops(request.stops), call.progress.generated)

    def _encoded(self, request: Asked) -> Any:
        """Ids of the prompt's tokens, (1, tokens) int64."""
        import numpy as np
        import openvino as ov

        if request.messages is not None:
            try:
                prompt = self._tokenizer.apply_chat_template(list(request.messages), add_generation_prompt=True)
            except (RuntimeError, TypeError) as error:
                raise EngineRefused("messages: the model's chat template cannot put them into a prompt") from error
            return self._tokenizer.encode(prompt, add_special_tokens=False).input_ids
        if isinstance(request.prompt, str):
            return self._tokenizer.encode(request.prompt or " ", add_special_tokens=True).input_ids
        if not all(0 <= one < self._vocabulary for one in request.prompt):
            raise EngineRefused(f"prompt: this model's tokens are numbered from 0 to {self._vocabulary - 1}")
        return ov.Tensor(np.array([request.prompt], dtype=np.int64))

    def _config(self, request: Asked, most_tokens: int) -> Any:
        import openvino_genai as genai

        config = genai.GenerationConfig()
        config.eos_token_id, config.stop_token_ids = self._defaults.eos_token_id, self._defaults.stop_token_ids
        config.apply_chat_template = False  # it is done
        config.max_new_tokens = most_tokens
        config.logprobs = int(request.wants_logprobs)
        for name, value in request.settings.items():
            setattr(config, name, value)
        if request.schema is not None:
            config.structured_output_config = genai.StructuredOutputConfig(json_schema=request.schema)
        try:
            config.validate()
        except RuntimeError as error:
            raise EngineRefused(last_line(error)) from error
        return config

    # -- answers ---------------------------------------------------------------------------------------------------

    async def _chunks(
        self, call: EngineCall, request: Asked, inside: Inside, *, wants_usage: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of the answer as the protocol has them."""
        head = {
            "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if request.is_chat else "text_completion",
            "created": int(time.time()),
            "model": self._name,
        }

        def chunk(text: str | None, scores: Any = None, finish: str | None = None, **delta: str) -> dict[str, Any]:
            said = {} if text is None else {"content": text}
            part: dict[str, Any] = {"delta": {**delta, **said}} if request.is_chat else {"text": text or ""}
            return {**head, "choices": [{"index": 0, **part, "logprobs": scores, "finish_reason": finish}]}

        count = 0
        async with contextlib.aclosing(self._pieces(inside)) as pieces:
            if request.is_chat:
                yield chunk("", role="assistant")
            unsaid: list[tuple[int, float]] = []  # tokens whose text is still to come
            async for piece in pieces:
                count += len(piece.tokens)
                unsaid.extend(piece.tokens)
                if piece.text:
                    scores = self._scores(unsaid, chat=request.is_chat) if request.wants_logprobs else None
                    unsaid.clear()
                    yield chunk(piece.text, scores)
                if piece.finish is not None:
                    yield chunk(None, finish=piece.finish)
        prompt = int(inside.ids.shape[1])
        call.progress.used(prompt, count)
        if wants_usage:
            usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
            yield {**head, "choices": [], "usage": usage}

    async def _pieces(self, inside: Inside) -> AsyncGenerator[Piece]:
        """What came since it was last asked, in one piece; whoever reads slowly holds up nobody."""
        steps = self._steps
        if steps is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        steps.enter(inside)
        try:
            while True:
                await inside.news.wait()
                inside.news.clear()
                pieces, inside.pieces = inside.pieces, []
                if pieces:
                    yield _joined(pieces)
                    if pieces[-1].finish is not None:
                        return
                if inside.fault is not None:
                    raise inside.fault
        finally:
            steps.leave(inside)

    def _scores(self, tokens: Sequence[tuple[int, float]], *, chat: bool) -> dict[str, Any]:
        texts = [self._tokenizer.decode([number]) for number, _ in tokens]
        if not chat:
            return {"tokens": texts, "token_logprobs": [score for _, score in tokens], "top_logprobs": None}
        return {
            "content": [
                {"token": text, "logprob": score, "bytes": list(text.encode()), "top_logprobs": []}
                for text, (_, score) in zip(texts, tokens, strict=True)
            ]
        }

    # -- OpenVINO --------------------------------------------------------------------------------------------------

    def _load(self, path: Path, *, slots: int, n_ctx: int) -> Any:
        try:
            import openvino_genai as genai
        except ImportError as error:
            raise MissingExtra(
                f"{self._name} runs on OpenVINO, which is not installed: pip install 'patchwork-rag[openvino]', or choose llamacpp"
            ) from error
        options = self._options
        scheduling = genai.SchedulerConfig()
        scheduling.max_num_seqs = slots
        scheduling.max_num_batched_tokens = options.n_batch
        scheduling.num_kv_blocks = slots * -(-n_ctx // _BLOCK) + _SPARE_BLOCKS
        scheduling.enable_prefix_caching = options.cache_prompt
        properties: dict[str, Any] = {"ENABLE_CPU_PINNING": False}  # other replicas share the cores
        if options.exact:
            properties.update(_EXACT)
        if options.threads:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        try:
            return genai.ContinuousBatchingPipeline(str(path), scheduling, "CPU", properties)
        except Exception as error:
            raise ModelCorrupt(
                f"OpenVINO cannot load {path} ({last_line(error)}); of GGUF files it reads the Llama and Qwen families. Choose "
                "engine: llamacpp, or fetch the file again with `patchwork models pull --force`"
            ) from error

    async def _warm(self) -> None:
        body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 2, "temperature": 0}
        payload = codec.encode({"body": body})
        async for _ in self.generate(EngineCall("warm", "", "chat", payload)):
            pass


async def _whole(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    whole = WholeAnswer()
    async for chunk in chunks:
        whole.add(orjson.dumps(chunk))
    return whole.document()


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces), tuple(token for piece in pieces for token in piece.tokens), pieces[-1].finish
    )  # fmt: skip


def _error(message: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
