"""A file's checksum, kept beside it: says whether the file is still what was written, at the cost of a ``stat`` when nothing touched it."""

from __future__ import annotations

import json
from pathlib import Path

from patchwork_serving.errors import ModelCorrupt
from patchwork_serving.models.download import sha256_of


def seal(path: Path) -> None:
    """Note what ``path`` is now."""
    status = path.stat()
    note = {"sha256": sha256_of(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    partial = _beside(path, ".sha256.partial")
    partial.write_text(json.dumps(note), encoding="utf-8")
    partial.replace(_beside(path, ".sha256"))


def is_sealed(path: Path) -> bool:
    return _beside(path, ".sha256").is_file()


def verify(path: Path, remedy: str, *, thorough: bool = False) -> None:
    """ModelCorrupt, with ``remedy``, when a sealed file is not what it was. Hashes only a file that was touched, unless ``thorough``."""
    if not is_sealed(path):
        return
    try:
        note = json.loads(_beside(path, ".sha256").read_text(encoding="utf-8"))
        status = path.stat()
        if status.st_size != note["bytes"]:
            raise ModelCorrupt(f"{path} has {status.st_size} bytes instead of {note['bytes']}; {remedy}")
        if (thorough or status.st_mtime_ns != note["mtime_ns"]) and sha256_of(path) != note["sha256"]:
            raise ModelCorrupt(f"{path} is not what was fetched (its checksum differs); {remedy}")
    except (ValueError, KeyError, OSError) as error:
        raise ModelCorrupt(f"{path} or its checksum cannot be read; {remedy}") from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
