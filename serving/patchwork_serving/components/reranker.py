"""Cross-encoders: a score for each (query, text) pair, from an ONNX graph or, with the [hf] extra, a Hugging Face folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.onnx_texts import OnnxTexts, in_thread
from patchwork_serving.errors import EngineDied, EngineRefused, ModelCorrupt
from patchwork_serving.models.registry import Locate

Scores = NDArray[np.float32]
Pair = tuple[str, str]


class _Scorer(Protocol):
    def __call__(self, pairs: Sequence[Pair], stop: Event | None = None) -> Scores:
        """One score per pair; blocks, and where it can, gives up once ``stop`` is set."""
        ...


class RerankerEngine:
    """A BatchEngine over one cross-encoder; operation ``score``. Pairs of calls that arrive together run together.

    The model is an ``.onnx`` file with ``tokenizer.json`` beside it, or a Hugging Face folder (``[hf]`` extra). As
    sentence-transformers does, a model with one label gives the sigmoid of its output; with several labels, the last one's probability
    is taken, which is the positive class of two.
    """

    def __init__(
        self, locate: Locate, *, name: str, threads: int = 1, max_length: int | None = None, device: str = "cpu"
    ) -> None:
        self._locate = locate
        self._form = ""
        self._name = name
        self._threads = threads
        self._device = device
        self._max_length = max_length
        self._score: _Scorer | None = None

    async def start(self) -> None:
        """Load and score a pair; ModelCorrupt when the files do not fit, MissingExtra when a folder needs ``[hf]``, GpuMissing."""
        self._score = await asyncio.to_thread(self._load)
        scores = await asyncio.to_thread(self._score, [("ready", "ready")])
        if scores.shape != (1,):
            raise ModelCorrupt(f"{self._name} gives no score per pair; it is not a cross-encoder")

    async def close(self) -> None:
        scorer, self._score = self._score, None
        if isinstance(scorer, _OnnxScorer):
            scorer.close()

    def describe(self) -> Mapping[str, Any]:
        return {
            "engine": "reranker",
            "model": self._name,
            "form": self._form,
            "threads": self._threads,
            "device": self._device,
        }

    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        return await in_thread(lambda stop: self._run(batch, stop))

    def _run(self, batch: Sequence[EngineCall], stop: Event | None = None) -> list[bytes | Exception]:
        if self._score is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        requests = [self._read(call) for call in batch]
        pairs = [pair for request in requests if isinstance(request, list) for pair in request]
        scores = self._score(pairs, stop) if pairs else np.empty(0, dtype=np.float32)
        replies: list[bytes | Exception] = []
        start = 0
        for request in requests:
            if isinstance(request, Exception):
                replies.append(request)
                continue
            replies.append(codec.encode_outcome(scores[start : start + len(request)].copy()))
            start += len(request)
        return replies

    def _read(self, call: EngineCall) -> list[Pair] | Exception:
        if call.method != "score":
            return EngineRefused(f"{self._name} answers score, not {call.method!r}")
        try:
            pairs = codec.decode(call.payload)["pairs"]
        except CodecError as error:
            return EngineRefused(str(error))
        if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
            return EngineRefused("pairs must be pairs of strings")
        return [(query, text) for query, text in pairs]

    def _load(self) -> _Scorer:
        files = self._locate()
        if files.path.suffix == ".onnx":
            self._form = "onnx"
            return _OnnxScorer(
                OnnxTexts(
                    files.path, files.tokenizer, threads=self._threads, max_length=self._max_length, device=self._device
                )
            )
        self._form = "transformers"
        from patchwork_serving.components.torch_encoders import cross_encoder

        return cross_encoder(files.path, self._device, self._max_length)


class _OnnxScorer:
    def __init__(self, texts: OnnxTexts) -> None:
        self._texts = texts

    def __call__(self, pairs: Sequence[Pair], stop: Event | None = None) -> Scores:
        return self._texts.run(self._texts.encode(pairs), self._reduce, stop)

    def close(self) -> None:
        self._texts.close()

    def _reduce(self, logits: NDArray[Any], mask: NDArray[np.int64]) -> Scores:
        if logits.ndim != 2:
            raise ModelCorrupt(
                f"{self._texts.model} gives {logits.ndim} dimensions instead of (pairs, labels); it is not a cross-encoder"
            )
        return _scores(logits.astype(np.float32, copy=False))


def _scores(logits: NDArray[np.float32]) -> Scores:
    if logits.shape[1] == 1:
        return (1.0 / (1.0 + np.exp(-logits[:, 0]))).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    positive: Scores = powers[:, -1] / powers.sum(axis=1)
    return positive
