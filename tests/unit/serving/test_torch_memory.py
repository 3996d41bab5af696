"""What encoders on a GPU do when its memory is full. No PyTorch: its error and its cache are all that this is about."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patchwork_serving.components import torch_encoders
from patchwork_serving.components.torch_encoders import AT_ONCE, in_pieces
from patchwork_serving.errors import EngineError, ModelTooLarge


class OutOfMemoryError(RuntimeError):
    """As PyTorch's, which is a RuntimeError too."""


class Gpu:
    """Holds so many texts at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []
        self.emptied = 0

    def run(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.tried.append(len(texts))
        if len(texts) > self.room:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return np.array([len(text) for text in texts], dtype=np.float32)

    def empty_cache(self) -> None:
        self.emptied += 1


def gpu(monkeypatch: pytest.MonkeyPatch, room: int) -> Gpu:
    made = Gpu(room)
    torch: Any = ModuleType("torch")
    torch.OutOfMemoryError = OutOfMemoryError
    torch.cuda = SimpleNamespace(empty_cache=made.empty_cache, is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    return made


def test_what_does_not_fit_runs_in_halves_and_every_text_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    full = gpu(monkeypatch, room=20)
    texts = ["x" * n for n in range(100)]
    assert np.concatenate(in_pieces(texts, full.run, None)).tolist() == [float(n) for n in range(100)]
    assert full.tried[:3] == [AT_ONCE, AT_ONCE // 2, AT_ONCE // 4]
    assert set(full.tried[3:-1]) == {AT_ONCE // 4}  # it does not try what failed again
    assert full.emptied == 2  # what the attempts had taken is given back


def test_a_text_that_does_not_even_fit_alone_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    full = gpu(monkeypatch, room=0)
    with pytest.raises(EngineError, match="lower max_length"):
        in_pieces(["too long", "another"], full.run, None)
    assert full.tried == [2, 1]
    full.room = 64
    assert in_pieces(["x"], full.run, None)[0].tolist() == [1.0]  # the next call is served


def test_another_error_is_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, room=1)

    def broken(texts: Sequence[str]) -> NDArray[np.float32]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        in_pieces(["x"], broken, None)


def test_a_model_that_does_not_fit_is_not_called_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, room=1)
    library: Any = ModuleType("sentence_transformers")

    def load(path: str, device: str) -> Any:
        raise OutOfMemoryError("CUDA out of memory")

    library.SentenceTransformer = load
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    with pytest.raises(ModelTooLarge, match=r"bge-m3 does not fit into the memory that is free on cuda:0.*num_gpus: 0"):
        torch_encoders.loaded("SentenceTransformer", Path("/models/bge-m3"), "cuda:0")
