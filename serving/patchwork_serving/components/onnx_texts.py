"""Texts through an ONNX encoder: tokenise once, sort by length, run in pieces of bounded size, give back in the order asked.

Shared by embedders and rerankers. All of it is plain computation for a worker thread; ONNX Runtime lets go of the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from patchwork_serving.errors import EngineDied, GpuMissing, ModelCorrupt

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

T = TypeVar("T")

#: Tokens, padding included, that go through the network at once on a thread. Measured for MiniLM, in tokens/s of a core: 3,370 at 512,
#: 3,400 at 1024, 3,100 at 2048, 2,370 at 8192: beyond about a thousand the activations fall out of the core's cache.
PADDED_TOKENS = 1024
_FALLBACK_MAX_LENGTH = 512
_SENTENCE_TRANSFORMERS = "sentence_bert_config.json"


#: (first output of the network, attention mask of shape (texts, tokens)) to one value or vector per text
Reduce = Callable[[NDArray[Any], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Texts of similar length that run together."""

    rows: tuple[int, ...]  #: positions in the whole batch
    feed: dict[str, NDArray[np.int64]]  #: each of shape (len(rows), longest)


class OnnxTexts:
    """A tokenizer and a session. The constructor loads both: seconds, so not on an event loop.

    ``threads`` pieces run side by side, each on one core. ONNX Runtime's own threads would share each operation instead, and wait for one
    another after every one of them.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Path | None,
        *,
        threads: int,
        max_length: int | None,
        fallback_max_length: int = 0,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self._tokenizer = _load_tokenizer(tokenizer or _beside(model, "tokenizer.json"))
        self._session = _load_session(model, device)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="patchwork-onnx")
        self._inputs = {node.name for node in self._session.get_inputs()}
        folder_limit = _model_max_length(model)
        limit = max_length or folder_limit or fallback_max_length or _FALLBACK_MAX_LENGTH
        self.max_length = min(limit, folder_limit) if folder_limit else limit
        self._tokenizer.enable_truncation(self.max_length)
        self._tokenizer.no_padding()
        padding = self._tokenizer.token_to_id("[PAD]")
        self._pad_id = padding if padding is not None else self._tokenizer.token_to_id("<pad>") or 0

    @property
    def vocabulary(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Encoding]:
        return self._tokenizer.encode_batch_fast(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def run(self, encodings: Sequence[Encoding], reduce: Reduce, stop: Event | None = None) -> NDArray[np.float32]:
        """``reduce`` of the first output, for every text, in the order given; shape (len(encodings), ...).

        Once ``stop`` is set no further piece begins, and EngineDied is raised: nobody waits for it any more.
        """
        whole: NDArray[np.float32] | None = None
        pieces = list(self._pieces(encodings))
        done = self._pool.map(lambda piece: self._run(piece, reduce, stop), pieces)
        for piece, values in zip(pieces, done, strict=True):
            if whole is None:
                whole = np.empty((len(encodings), *values.shape[1:]), dtype=np.float32)
            whole[list(piece.rows)] = values
        return np.empty((0,), dtype=np.float32) if whole is None else whole

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, piece: Piece, reduce: Reduce, stop: Event | None) -> NDArray[np.float32]:
        if stop is not None and stop.is_set():
            raise EngineDied("the callers of this batch have left")
        return reduce(self._session.run(None, piece.feed)[0], piece.feed["attention_mask"])

    def _pieces(self, encodings: Sequence[Encoding]) -> Iterator[Piece]:
        """Longest first, so that the last ones to end are short."""
        order = sorted(range(len(encodings)), key=lambda row: len(encodings[row].ids), reverse=True)
        start = 0
        while start < len(order):
            longest = max(1, len(encodings[order[start]].ids))
            rows = tuple(order[start : start + max(1, PADDED_TOKENS // longest)])
            yield Piece(rows, self._feed([encodings[row] for row in rows], longest))
            start += len(rows)

    def _feed(self, encodings: Sequence[Encoding], longest: int) -> dict[str, NDArray[np.int64]]:
        shape = (len(encodings), longest)
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            ids[row, :length] = encoding.ids
            mask[row, :length] = 1
            types[row, :length] = encoding.type_ids
        feed = {"input_ids": ids, "token_type_ids": types}
        return {"attention_mask": mask, **{name: array for name, array in feed.items() if name in self._inputs}}


def _load_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise ModelCorrupt(f"{path} is missing; an ONNX model needs the tokenizer.json of its model beside it")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelCorrupt(
            f"{path} is no tokenizer ({type(error).__name__}); take the tokenizer.json of the model"
        ) from error


def _load_session(model: Path, device: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle threads would take cores from the LLM
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise GpuMissing(
                f"{model.name} is to run on {device}, and this ONNX Runtime has no CUDA: install onnxruntime-gpu in its place, "
                "or set the component's num_gpus to 0"
            )
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ModelCorrupt(
            f"ONNX Runtime cannot load {model} ({type(error).__name__}); fetch or export the model again"
        ) from error


def _model_max_length(model: Path) -> int | None:
    """What the model was made for: sentence-transformers' own limit, else the size of its position table."""
    for folder in (model.parent, model.parent.parent):
        for file, key in ((_SENTENCE_TRANSFORMERS, "max_seq_length"), ("config.json", "max_position_embeddings")):
            path = folder / file
            if path.is_file():
                try:
                    found = json.loads(path.read_bytes()).get(key)
                except (ValueError, AttributeError):
                    continue
                if isinstance(found, int) and found > 0:
                    return found
    return None


def _beside(model: Path, name: str) -> Path:
    """In the model's folder, or the one above (exporters put the graph into ``onnx/``)."""
    here = model.parent / name
    return here if here.is_file() else model.parent.parent / name


async def in_thread(work: Callable[[Event], T]) -> T:
    """``work(stop)`` in a thread; ``stop`` is set when the caller is cancelled, since nothing else ends a thread."""
    stop = Event()
    try:
        return await asyncio.to_thread(work, stop)
    finally:
        stop.set()
