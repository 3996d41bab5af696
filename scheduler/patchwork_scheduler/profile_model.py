"""What is known of a chain's components by measuring them: seconds by batch and tokens, memory, cold start, visits per request.

``patchwork profile`` writes it, ``patchwork plan`` and the simulator read it. Times are seconds, sizes bytes; ``Profile.save`` and
``Profile.load`` are the file format, and :func:`patchwork_scheduler.document.read` refuses what does not fit it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from patchwork_scheduler import document
from patchwork_scheduler.errors import InvalidInput, ProfileMismatch

REMEDY = "measure again with 'patchwork profile', or correct the file"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: how long one replica takes for a whole batch."""

    batch: Annotated[int, Field(ge=1)]  #: calls that run together
    seconds: Positive  #: for the whole batch
    tokens: NotNegative | None = None  #: mean tokens of one call; None: the component does not depend on them
    memory_bytes: Bytes = 0  #: main memory of the replica at this batch

    __pydantic_config__ = document.CHECKED


@dataclass(frozen=True, slots=True)
class BatchPoint:
    """A measured batch at the token count of a workload."""

    batch: int
    seconds: float
    memory_bytes: int

    @property
    def calls_per_s(self) -> float:
        return self.batch / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """A component on one sort of hardware: what a replica occupies there and how fast it is."""

    hardware: Name  #: as nodes name what they offer: ``cpu``, ``gpu``, ``h200``
    points: Annotated[tuple[Point, ...], Field(min_length=1)]
    cpus: NotNegative = 1.0  #: cores that one replica takes: as many as it keeps busy, or the share that it is given
    busy_cpus: NotNegative | None = None  #: cores that it keeps busy, where it is given another number; None: ``cpus``
    gpus: NotNegative = 0.0  #: whole GPUs, or a fraction of one
    cold_start_s: NotNegative = 0.0  #: from the wish for a replica to its first answer
    fit_error: NotNegative | None = None  #: mean relative error of the piecewise-linear fit through the points
    #: of an LLM, as ``cost.fit_cost`` reads them: ``n_in`` and ``n_out`` tokens, ``batch`` requests at once, ``seconds`` for all
    rows: tuple[Mapping[str, NotNegative], ...] = ()

    __pydantic_config__ = document.CHECKED

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise InvalidInput(
                f"gpus of {self.hardware} is {self.gpus}: more than one GPU must be a whole number of them"
            )
        if self.gpus == 0 and self.cpus == 0:
            raise InvalidInput(f"a replica on {self.hardware} occupies neither cpus nor gpus; give one of them")
        twice = _twice((point.batch, point.tokens) for point in self.points)
        if twice:
            raise InvalidInput(f"points of {self.hardware} hold (batch, tokens) {twice[0]} twice")
        for batch in {point.batch for point in self.points}:
            alike = [point.tokens is None for point in self.points if point.batch == batch]
            if any(alike) and len(alike) > 1:
                raise InvalidInput(
                    f"points of {self.hardware} with batch {batch} are measured both with and without tokens"
                )

    @property
    def busy(self) -> float:
        """Cores that one replica keeps busy."""
        return self.cpus if self.busy_cpus is None else self.busy_cpus

    def given(self, *, cpus: float | None = None, gpus: float | None = None) -> Measured:
        """With other shares of a node than it was seen to use; None leaves one as it is."""
        return replace(
            self,
            cpus=self.cpus if cpus is None else cpus,
            gpus=self.gpus if gpus is None else gpus,
            busy_cpus=self.busy,
        )

    def batch_points(self, tokens: float | None) -> tuple[BatchPoint, ...]:
        """One point per measured batch, smallest first, at ``tokens`` per call (None: at the fewest measured)."""
        batches = sorted({point.batch for point in self.points})
        return tuple(_at(tokens, [p for p in self.points if p.batch == batch]) for batch in batches)


@dataclass(frozen=True, slots=True)
class ComponentProfile:
    """A component as requests use it, and as it was measured."""

    id: Name
    visits: NotNegative  #: mean calls per request: 0.1 for a branch that one request in ten takes, 3 for a loop run three times
    measured: tuple[Measured, ...] = ()  #: none for an external component
    kind: str = ""
    serial_visits: NotNegative | None = None  #: mean calls that follow one another in a request; None: all of them
    tokens: NotNegative | None = None  #: mean tokens per call in the sample runs
    external: bool = False  #: a hosted API: it takes time but none of our resources
    external_s: NotNegative = 0.0  #: mean seconds per call of an external component
    prompt_tokens: NotNegative | None = (
        None  #: of ``tokens``, per call of an LLM; with both, its continuous batching is simulated
    )
    output_tokens: NotNegative | None = None
    call_sites: tuple[Name, ...] = ()  #: by which ``Profile.branches`` name it; none: by its id

    __pydantic_config__ = document.CHECKED

    def __post_init__(self) -> None:
        if not self.external and not self.measured:
            raise InvalidInput(f"component {self.id!r} has no measurements")
        twice = _twice((m.hardware, m.cpus, m.gpus) for m in self.measured)
        if twice:
            raise InvalidInput(f"component {self.id!r} is measured twice on {twice[0]}")

    @property
    def path_visits(self) -> float:
        """Calls that follow one another in a request."""
        return self.visits if self.serial_visits is None else self.serial_visits


@dataclass(frozen=True, slots=True)
class Branch:
    """How often requests went from one call-site to another in the sample runs."""

    source: str
    target: str
    probability: Annotated[float, Field(ge=0, le=1)]
    kind: Literal["data", "cond", "loop", "map"] = "data"

    __pydantic_config__ = document.CHECKED


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and when the measurements were taken."""

    date: str = ""  #: ISO 8601, UTC
    machine: str = ""  #: processor, cores, GPUs
    versions: Mapping[str, str] = field(default_factory=dict)  #: package to version
    samples: Annotated[int, Field(ge=0)] = 0  #: requests run

    __pydantic_config__ = document.CHECKED


@dataclass(frozen=True, slots=True)
class Profile:
    """All that planning needs to know about a chain."""

    chain: Name  #: the TARGET that was profiled
    components: Annotated[tuple[ComponentProfile, ...], Field(min_length=1)]
    branches: tuple[Branch, ...] = ()
    glue_s: NotNegative = 0.0  #: mean seconds per request that the chain spends outside its components
    origin: Origin = Origin()
    version: Literal[1] = 1

    __pydantic_config__ = document.CHECKED

    def __post_init__(self) -> None:
        twice = _twice(c.id for c in self.components)
        if twice:
            raise InvalidInput(f"component {twice[0]!r} occurs twice")

    def component(self, component_id: str) -> ComponentProfile:
        """The component with this id; InvalidInput names those that exist."""
        for component in self.components:
            if component.id == component_id:
                return component
        known = ", ".join(c.id for c in self.components)
        raise InvalidInput(f"the profile of {self.chain} has no component {component_id!r}; it has {known}")

    def check_components(self, component_ids: Collection[str]) -> None:
        """ProfileMismatch unless the profile is of exactly these components."""
        mine = {c.id for c in self.components}
        if mine != set(component_ids):
            missing = ", ".join(sorted(set(component_ids) - mine)) or "none"
            foreign = ", ".join(sorted(mine - set(component_ids))) or "none"
            raise ProfileMismatch(
                f"the profile is of another chain ({self.chain}): components not profiled: {missing}; components that the"
                f" chain does not have: {foreign}; run 'patchwork profile' for this chain"
            )

    def observed(
        self, *, visits: Mapping[str, float] | None = None, slower: Mapping[str, float] | None = None
    ) -> Profile:
        """The profile with visit ratios and service times as observed; ``slower`` multiplies a component's seconds."""
        for component_id in {*(visits or {}), *(slower or {})}:
            self.component(component_id)
        return replace(
            self,
            components=tuple(_observed(c, (visits or {}).get(c.id), (slower or {}).get(c.id)) for c in self.components),
        )

    def to_json(self) -> dict[str, Any]:
        return document.write(self)

    @classmethod
    def from_json(cls, value: object, *, what: str = "the profile") -> Profile:
        """The inverse of :meth:`to_json`; InvalidInput names field, value and remedy."""
        return document.read(cls, value, what=what, remedy=REMEDY)

    def save(self, path: Path) -> None:
        document.write_file(self, path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """InvalidInput names file, field, value and remedy."""
        return document.read_file(cls, path, remedy=REMEDY)


def _observed(component: ComponentProfile, visits: float | None, slower: float | None) -> ComponentProfile:
    if visits is not None:
        serial = component.serial_visits
        if serial is not None and component.visits > 0:
            serial *= visits / component.visits
        component = replace(component, visits=visits, serial_visits=serial)
    if slower is None:
        return component
    measured = tuple(
        replace(
            m,
            points=tuple(replace(p, seconds=p.seconds * slower) for p in m.points),
            rows=tuple({**row, "seconds": row["seconds"] * slower} for row in m.rows),
        )
        for m in component.measured
    )
    return replace(component, measured=measured, external_s=component.external_s * slower)


def _at(tokens: float | None, points: list[Point]) -> BatchPoint:
    """Points of one batch at ``tokens``: piecewise linear, on the last line beyond the most, constant below the fewest."""
    points = sorted(points, key=lambda p: p.tokens or 0.0)
    batch, memory = points[0].batch, max(p.memory_bytes for p in points)
    if tokens is None or len(points) == 1 or tokens <= (points[0].tokens or 0.0):
        return BatchPoint(batch, points[0].seconds, memory)
    above = next((i for i, p in enumerate(points) if (p.tokens or 0.0) >= tokens), len(points) - 1)
    low, high = points[above - 1], points[above]
    slope = (high.seconds - low.seconds) / ((high.tokens or 0.0) - (low.tokens or 0.0))
    at = low.seconds + slope * (tokens - (low.tokens or 0.0))
    # beyond the last point a falling line (noise of measuring) would cross zero
    return BatchPoint(batch, max(at, high.seconds) if tokens > (high.tokens or 0.0) else at, memory)


def _twice(keys: Iterable[Any]) -> list[Any]:
    return [key for key, count in Counter(keys).items() if count > 1]
