"""Embeddings on ONNX Runtime: mean of the token vectors, scaled to length one. Calls that arrive together run together."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError
from patchwork_adapters.protocol import HttpResponse, decode_request, encode_response
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.onnx_texts import OnnxTexts, in_thread
from patchwork_serving.errors import EngineDied, EngineRefused
from patchwork_serving.models.registry import Locate

Vectors = NDArray[np.float32]

_JSON = {"content-type": "application/json"}
_NORM_FLOOR = 1e-12  #: the length by which sentence-transformers divides a zero vector


@dataclass(frozen=True, slots=True)
class _Request:
    """One call, read: its texts, and how its caller wants the vectors."""

    texts: list[str]
    normalize: bool
    protocol: bool
    base64: bool = False
    model: str = ""
    dimensions: int | None = None


class OnnxEmbedder:
    """A BatchEngine over one ONNX file. Methods ``POST /v1/embeddings`` (protocol way) and ``embed`` (engine way).

    Texts longer than the model's limit are cut, as sentence-transformers does. ``normalize`` of ``embed``: None means as the model's own
    pipeline ends, which ``normalized`` tells.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        name: str,
        threads: int = 1,
        max_length: int | None = None,
        default_max_length: int = 256,
        normalized: bool = True,
        device: str = "cpu",
    ) -> None:
        self._locate = locate
        self._file = ""
        self._name = name
        self._threads = threads
        self._max_length = max_length
        self._default_max_length = default_max_length
        self._normalized = normalized
        self._device = device
        self._texts: OnnxTexts | None = None
        self._dim = 0

    async def start(self) -> None:
        """Load and embed a word; ModelCorrupt when the file is none that ONNX Runtime can run."""
        self._texts = await asyncio.to_thread(self._load)
        vectors, _ = await asyncio.to_thread(self._embed, ["ready"])
        self._dim = vectors.shape[1]

    async def close(self) -> None:
        texts, self._texts = self._texts, None
        if texts is not None:
            texts.close()

    def describe(self) -> Mapping[str, Any]:
        return {
            "engine": "onnx",
            "model": self._name,
            "file": self._file,
            "dimension": self._dim,
            "threads": self._threads,
            "device": self._device,
            "max_tokens": self._texts.max_length if self._texts else None,
        }

    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        """One network run for the texts of all calls; a call that cannot be read fails alone. Cancelling stops between two pieces."""
        return await in_thread(lambda stop: self._run(batch, stop))

    def _load(self) -> OnnxTexts:
        files = self._locate()
        self._file = files.path.name
        return OnnxTexts(
            files.path, files.tokenizer, threads=self._threads, max_length=self._max_length,
            fallback_max_length=self._default_max_length, device=self._device,
        )  # fmt: skip

    def _run(self, batch: Sequence[EngineCall], stop: Event | None = None) -> list[bytes | Exception]:
        requests = [self._read(call) for call in batch]
        texts = [text for request in requests if isinstance(request, _Request) for text in request.texts]
        vectors, tokens = self._embed(texts, stop)
        replies: list[bytes | Exception] = []
        start = 0
        for request in requests:
            if not isinstance(request, _Request):
                replies.append(request)
                continue
            end = start + len(request.texts)
            replies.append(_reply(request, vectors[start:end], int(tokens[start:end].sum())))
            start = end
        return replies

    def _embed(self, texts: Sequence[str], stop: Event | None = None) -> tuple[Vectors, NDArray[np.int64]]:
        """(vectors of shape (len(texts), dim) as the network gives them, tokens of each text)."""
        engine = self._texts
        if engine is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        encodings = engine.encode(texts)
        tokens = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        vectors = engine.run(encodings, _pooled, stop) if texts else np.empty((0, self._dim), dtype=np.float32)
        return vectors, tokens

    # -- what callers send -------------------------------------------------------------------------------------------

    def _read(self, call: EngineCall) -> _Request | bytes | Exception:
        """The request; or the reply itself, when the request is at fault."""
        try:
            match call.method:
                case "embed":
                    return self._read_operation(call.payload)
                case "POST /v1/embeddings":
                    return self._read_protocol(call.payload)
                case _:
                    return EngineRefused(f"{self._name} answers POST /v1/embeddings and embed, not {call.method!r}")
        except EngineRefused as error:
            return _refusal(str(error)) if call.method.startswith("POST ") else error
        except CodecError as error:
            return EngineRefused(str(error))

    def _read_operation(self, payload: bytes) -> _Request:
        arguments = codec.decode(payload)
        texts = arguments["texts"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise EngineRefused("texts must be a list of strings")
        normalize = arguments.get("normalize")
        return _Request(texts, self._normalized if normalize is None else bool(normalize), protocol=False)

    def _read_protocol(self, payload: bytes) -> _Request:
        body = decode_request(payload).json()
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise EngineRefused("encoding_format must be float or base64")
        dimensions = body.get("dimensions")
        if dimensions is not None and not (type(dimensions) is int and 0 < dimensions <= self._dim):
            raise EngineRefused(f"dimensions must be an integer from 1 to {self._dim}")
        return _Request(
            texts=self._inputs(body.get("input")),
            normalize=True,
            protocol=True,
            base64=encoding == "base64",
            model=str(body.get("model") or self._name),
            dimensions=dimensions,
        )

    def _inputs(self, given: object) -> list[str]:
        """A string, strings, token ids, or lists of token ids (of this model's vocabulary: others' mean something else)."""
        match given:
            case str():
                return [given]
            case list() if given and all(isinstance(item, str) for item in given):
                return given
            case list() if given and all(type(item) is int for item in given):
                return [self._text_of(given)]
            case list() if given and all(isinstance(item, list) and item for item in given):
                return [self._text_of(item) for item in given]
            case _:
                raise EngineRefused("input must be a string, a list of strings, or token ids, and not empty")

    def _text_of(self, ids: list[object]) -> str:
        assert self._texts is not None
        if not all(type(item) is int and 0 <= item < self._texts.vocabulary for item in ids):
            raise EngineRefused(
                f"input holds token ids that {self._name} does not have; send text, or turn off the client's own tokenizer "
                "(OpenAIEmbeddings(check_embedding_ctx_length=False))"
            )
        return self._texts.decode([int(item) for item in ids])  # type: ignore[call-overload]


def _pooled(hidden: NDArray[Any], mask: NDArray[np.int64]) -> Vectors:
    """Mean of the real tokens' vectors; a graph that pools itself gives a matrix already."""
    if hidden.ndim == 2:
        return hidden.astype(np.float32)
    weights = mask[:, :, None].astype(np.float32)
    counted = np.maximum(weights.sum(axis=1), 1e-9)
    pooled: Vectors = np.einsum("btd,bt->bd", hidden.astype(np.float32, copy=False), mask.astype(np.float32)) / counted
    return pooled


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, _NORM_FLOOR)
    return scaled


def _reply(request: _Request, vectors: Vectors, tokens: int) -> bytes:
    if request.dimensions is not None:
        vectors = vectors[:, : request.dimensions]
    if request.normalize:
        vectors = _unit(vectors)
    if not request.protocol:
        return codec.encode_outcome(np.ascontiguousarray(vectors))
    rows: list[Any] = (
        [base64.b64encode(np.ascontiguousarray(row, dtype="<f4").tobytes()).decode("ascii") for row in vectors]
        if request.base64
        else [row.tolist() for row in vectors]
    )
    document = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return encode_response(HttpResponse(200, _JSON, orjson.dumps(document)))


def _refusal(message: str) -> bytes:
    """A refusal in the protocol's own way, which the client turns into its own exception."""
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return encode_response(HttpResponse(400, _JSON, orjson.dumps(error)))
