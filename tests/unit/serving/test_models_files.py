"""Conversion and checksums of model files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kit.models import write_gguf
from patchwork_serving.errors import DiskFull, ModelCorrupt
from patchwork_serving.models import checksum
from patchwork_serving.models.download import require_space, sha256_of
from patchwork_serving.models.packaged import MINILM_TOKENIZER_SHA256, minilm_tokenizer
from patchwork_serving.models.requant import requantize


def test_requantizing_keeps_values_within_half_a_step_and_the_rest_exactly(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    values = write_gguf(tmp_path / "in.gguf")
    requantize(tmp_path / "in.gguf", tmp_path / "out.gguf")
    reader = GGUFReader(str(tmp_path / "out.gguf"))
    found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"blk.0.w.weight": "Q8_0", "token_embd.weight": "Q8_0", "norm.weight": "F32"}
    blocks = values["blk.0.w.weight"].reshape(4, 2, 32)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    # half a step of rounding, and the step itself is stored in 16 bits
    assert (np.abs(found["blk.0.w.weight"].reshape(4, 2, 32) - blocks) <= step * 0.5 + np.abs(blocks) * 1e-3).all()
    np.testing.assert_array_equal(found["token_embd.weight"], values["token_embd.weight"])
    np.testing.assert_array_equal(found["norm.weight"], values["norm.weight"])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.name"] == "tiny"
    assert fields["tokenizer.ggml.tokens"] == ["a", "b", "ü"]
    assert fields["general.file_type"] == 7


def test_a_file_that_is_no_gguf_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(ModelCorrupt, match="models pull"):
        requantize(tmp_path / "in.gguf", tmp_path / "out.gguf")


def test_a_sealed_file_is_trusted_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    checksum.verify(file, "fetch it")  # not sealed: nothing is known of it
    checksum.seal(file)
    checksum.verify(file, "fetch it")
    file.write_bytes(b"weightz")
    os.utime(file, ns=(1, 1))
    with pytest.raises(ModelCorrupt, match="fetch it"):
        checksum.verify(file, "fetch it")


def test_a_file_that_was_only_touched_is_still_good(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    checksum.seal(file)
    os.utime(file, ns=(1, 1))
    checksum.verify(file, "fetch it")


def test_a_truncated_file_is_corrupt_at_a_glance(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    checksum.seal(file)
    file.write_bytes(b"wei")
    with pytest.raises(ModelCorrupt, match="3 bytes instead of 7"):
        checksum.verify(file, "fetch it")


def test_space_that_is_not_there_is_a_full_disk(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(DiskFull, match="PATCHWORK_CACHE"):
        require_space(tmp_path, 1 << 60)


def test_the_tokenizer_that_we_carry_is_the_published_one() -> None:
    assert sha256_of(minilm_tokenizer()) == MINILM_TOKENIZER_SHA256
