"""The nouns that all scheduling decisions share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One leaf call waiting for, or inside, a replica."""

    id: str
    arrived: float  #: seconds, same clock as ``deadline``
    deadline: float | None = None  #: absolute seconds; None: no deadline
    size: int = 1  #: work items inside (texts of a batch embedding)
    site: str = ""  #: call-site id
