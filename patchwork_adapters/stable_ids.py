"""Ids that come out equal in every process that imports the same module.

Builder, orchestrators and replicas import the user's module each on its own, and ingestion at import gives documents and nodes random
ids (``uuid.uuid4``). A store exported by one process is searched by another: their ids must agree. While a module is imported, the
importing thread draws its ids from sequences seeded by the target, one for each line that draws: a line that draws more or less often here
than there (a client that tries again, a library that was imported before) does not shift the ids of the others. All other threads, and
everything afterwards, get random ids.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_random_uuid4 = uuid.uuid4


@contextmanager
def stable_ids(seed: str) -> Iterator[None]:
    """``uuid.uuid4()`` in this thread follows ``seed``, the line and a count. A reference taken meanwhile gives random ids later."""
    thread = threading.get_ident()
    drawn: Counter[str] = Counter()
    active = True

    def uuid4() -> uuid.UUID:
        if not active or threading.get_ident() != thread:
            return _random_uuid4()
        caller = sys._getframe(1)
        line = f"{caller.f_globals.get('__name__')}:{caller.f_code.co_name}:{caller.f_lineno}"
        drawn[line] += 1
        return uuid.UUID(bytes=hashlib.sha256(f"{seed}:{line}:{drawn[line]}".encode()).digest()[:16], version=4)

    before, uuid.uuid4 = uuid.uuid4, uuid4
    try:
        yield
    finally:
        active = False
        uuid.uuid4 = before
