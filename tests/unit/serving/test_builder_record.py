"""What is kept of a module's import between builds is a cache: what cannot be read is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchwork_adapters.record import ImportRecord
from patchwork_serving.builder import _kept_record


def test_a_record_that_cannot_be_read_counts_as_none_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept.record").write_bytes(b"\xc1 nonsense")
    assert _kept_record(tmp_path / "kept.record").to_bytes() == ImportRecord().to_bytes()
    assert "recorded anew" in caplog.text
