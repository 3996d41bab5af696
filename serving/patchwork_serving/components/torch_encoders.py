"""Embedders and cross-encoders on PyTorch, by sentence-transformers ([hf] extra): for models without an ONNX graph, and for GPUs.

A GPU takes about as long for one short text as for sixty-four, so all that the calls of a batch carry runs together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from patchwork_serving.components.embedder import OnnxEmbedder, Vectors
from patchwork_serving.errors import (
    EngineDied,
    EngineError,
    EngineRefused,
    GpuMissing,
    MissingExtra,
    ModelCorrupt,
    ModelTooLarge,
)
from patchwork_serving.models.registry import Locate

T = TypeVar("T")

#: Texts that go through the network at once: launching it costs a GPU more than its work does, up to about here.
AT_ONCE = 64


class TorchEmbedder(OnnxEmbedder):
    """A BatchEngine over a folder of sentence-transformers; methods and operations as ``OnnxEmbedder``."""

    def __init__(self, locate: Locate, *, name: str, device: str = "cpu", max_length: int | None = None) -> None:
        # what comes out has been through the model's whole pipeline, its own normalisation included
        super().__init__(locate, name=name, max_length=max_length, normalized=False, device=device)
        self._model: Any = None

    async def start(self) -> None:
        """Load and embed a word. Raises MissingExtra, GpuMissing or ModelCorrupt."""
        self._model = await asyncio.to_thread(self._load_model)
        vectors, _ = await asyncio.to_thread(self._embed, ["ready"])
        self._dim = vectors.shape[1]

    async def close(self) -> None:
        self._model = None

    def describe(self) -> Mapping[str, Any]:
        length = None if self._model is None else self._model.max_seq_length
        facts = {"engine": "transformers", "model": self._name, "device": self._device, "dimension": self._dim}
        return {**facts, "max_tokens": length}

    def _load_model(self) -> Any:
        path = self._locate().path
        model = loaded("SentenceTransformer", path, self._device)
        model.default_prompt_name = None  # who calls puts prompts before his texts himself
        if self._max_length is not None:
            model.max_seq_length = min(self._max_length, model.max_seq_length or self._max_length)
        return model

    def _embed(self, texts: Sequence[str], stop: Event | None = None) -> tuple[Vectors, NDArray[np.int64]]:
        model = self._model
        if model is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        if not texts:
            return np.empty((0, self._dim), dtype=np.float32), np.empty(0, dtype=np.int64)

        def vectors_of(piece: Sequence[str]) -> Vectors:
            found = model.encode(list(piece), batch_size=len(piece), show_progress_bar=False, convert_to_numpy=True)
            return np.asarray(found, dtype=np.float32)

        ids = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
        tokens = np.array([len(row) for row in ids], dtype=np.int64)
        # texts of like length together: the longest of a piece is what the others are padded to
        order = np.argsort(-tokens, kind="stable")
        sorted_vectors = np.concatenate(in_pieces([texts[row] for row in order], vectors_of, stop))
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        return vectors, tokens

    def _text_of(self, ids: list[object]) -> str:
        assert self._model is not None
        tokenizer = self._model.tokenizer
        if not all(type(item) is int and 0 <= item < len(tokenizer) for item in ids):
            raise EngineRefused(f"input holds token ids that {self._name} does not have; send text")
        return str(tokenizer.decode(ids, skip_special_tokens=True))


def cross_encoder(path: Path, device: str, max_length: int | None) -> Callable[..., NDArray[np.float32]]:
    """A scorer of pairs, from a cross-encoder's folder. Raises as :class:`TorchEmbedder` does at its start."""
    encoder = loaded("CrossEncoder", path, device, **({"max_length": max_length} if max_length else {}))

    def scores_of(piece: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        found = encoder.predict(list(piece), batch_size=len(piece), show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)

    def score(pairs: Sequence[tuple[str, str]], stop: Event | None = None) -> NDArray[np.float32]:
        return np.concatenate(in_pieces(list(pairs), scores_of, stop))

    return score


def loaded(kind: str, path: Path, device: str, **options: Any) -> Any:
    """One of sentence-transformers' classes over a folder, on a device that is there."""
    try:
        import sentence_transformers
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"{path} is in Hugging Face format; running it needs pip install 'patchwork-rag[hf]' (or export it to ONNX)"
        ) from error
    if device != "cpu" and not torch.cuda.is_available():
        raise GpuMissing(
            f"{path.name} is to run on {device}, and PyTorch sees no GPU here; set the component's num_gpus to 0, or its device to cpu"
        )
    try:
        return getattr(sentence_transformers, kind)(str(path), device=device, **options)
    except torch.OutOfMemoryError as error:
        raise ModelTooLarge(
            f"{path.name} does not fit into the memory that is free on {device}; give it a larger share of a GPU (num_gpus), let the "
            "others on it take less (gpu_memory_utilization), or run it on the CPU (num_gpus: 0)"
        ) from error
    except Exception as error:  # of transformers, safetensors, json and more, which share no base
        raise ModelCorrupt(
            f"{path.name} cannot be loaded as a {kind} ({type(error).__name__}); fetch it again"
        ) from error


def in_pieces(
    items: Sequence[T], run: Callable[[Sequence[T]], NDArray[np.float32]], stop: Event | None
) -> list[NDArray[np.float32]]:
    """``run`` over all, in pieces: halved as often as the GPU's memory makes it. EngineDied once ``stop`` is set."""
    import torch

    done: list[NDArray[np.float32]] = []
    start, at_once = 0, AT_ONCE
    while start < len(items):
        if stop is not None and stop.is_set():
            raise EngineDied("the callers of this batch have left")
        piece = items[start : start + at_once]
        try:
            done.append(run(piece))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(piece) == 1:
                raise EngineError("the GPU's memory does not hold one text of this length; lower max_length") from error
            at_once = len(piece) // 2
        else:
            start += len(piece)
    return done
