"""Ids that come out equal in every process that imports the same module.

Builder, orchestrators and replicas import the user's module each on its own, and ingestion at import gives documents and nodes random
ids (``uuid.uuid4``). A store exported by one process is searched by another: their ids must agree. While a module is imported, the
importing thread draws its ids from a sequence seeded by the target; all other threads, and everything afterwards, get random ones.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

_random_uuid4 = uuid.uuid4


@contextmanager
def stable_ids(seed: str) -> Iterator[None]:
    """``uuid.uuid4()`` in this thread follows ``seed`` and a count. Who has taken a reference to it meanwhile gets random ids later."""
    thread = threading.get_ident()
    drawn = 0
    active = True

    def uuid4() -> uuid.UUID:
        nonlocal drawn
        if not active or threading.get_ident() != thread:
            return _random_uuid4()
        drawn += 1
        return uuid.UUID(bytes=hashlib.sha256(f"{seed}:{drawn}".encode()).digest()[:16], version=4)

    before, uuid.uuid4 = uuid.uuid4, uuid4
    try:
        yield
    finally:
        active = False
        uuid.uuid4 = before
