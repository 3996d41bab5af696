"""What is kept of a module's import between builds is a cache: what cannot be read is made again."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest

from patchwork_adapters.record import ImportRecord
from patchwork_serving.builder import _kept_record


@pytest.mark.parametrize("content", [b"\xc1 nonsense", msgpack.packb(["patchwork-record-0", {"key": [b"reply"]}])])
def test_a_record_that_cannot_be_read_counts_as_none_and_is_told(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept.record").write_bytes(content)
    assert _kept_record(tmp_path / "kept.record").to_bytes() == ImportRecord().to_bytes()
    assert "recorded anew" in caplog.text
