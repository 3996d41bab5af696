"""The autoscaler at work: one ingress replica of an application observes, decides every few seconds, and writes the decision down.

The replica with the first name decides; when it goes, the next one does, from the targets it finds. Ray Serve's controller follows what is
written (``autoscale_policy``). In advisory mode nobody follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Change, Decision
from patchwork_scheduler.autoscale_watch import INGRESS, Watch
from patchwork_scheduler.errors import SchedulerError
from patchwork_serving import autoscale_board, board, release_board
from patchwork_serving.autoscale_setup import Mode, autoscaler_of, mode_of, release_key, scaled
from patchwork_serving.bundle import Bundle
from patchwork_serving.config import Config
from patchwork_serving.release import Release

log = logging.getLogger(__name__)

KEPT_DECISIONS = 50
#: The same advice is given again after this long.
REPEAT_ADVICE_S = 600.0


def told(release: Release, config: Config) -> dict[str, Any]:
    """The last decision for this release; empty when there is none, or while it cannot be read. Blocks: call it from a thread."""
    if mode_of(config, release) not in ("advisory", "on"):
        return {}
    try:
        document = autoscale_board.read(release.name)
    except Exception as error:  # noqa: BLE001  a status page must not fail because Ray's head is busy
        log.warning("could not read the autoscaler's decisions: %s", type(error).__name__)
        return {}
    return document if document.get("release") == release_key(release, config) else {}


class Boards(Protocol):
    """What is read and written on Ray's head."""

    def current(self, release: Release) -> Release: ...
    def replicas(self) -> list[dict[str, Any]]: ...
    def nodes(self) -> Iterable[Mapping[str, Any]]: ...
    def decided(self) -> dict[str, Any]: ...
    def decide(self, document: dict[str, Any]) -> None: ...


class RayBoards:
    """Blocks: called from a thread."""

    def __init__(self, app: str) -> None:
        self._app = app

    def current(self, release: Release) -> Release:
        return release_board.current(release)

    def replicas(self) -> list[dict[str, Any]]:
        return board.read(self._app)

    def nodes(self) -> Iterable[Mapping[str, Any]]:
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()
        return nodes

    def decided(self) -> dict[str, Any]:
        return autoscale_board.read(self._app)

    def decide(self, document: dict[str, Any]) -> None:
        autoscale_board.write(self._app, document)


class AutoscaleLoop:
    """``run`` it as a task of an ingress replica; cancel it to stop."""

    def __init__(
        self,
        bundle: Bundle,
        replica: str,
        boards: Boards,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = bundle.config
        self._release = bundle.release
        self._replica = replica
        self._boards = boards
        self._clock = clock
        self._wall = wall
        self._mode: Mode = mode_of(bundle.config, bundle.release)
        self._deciding: _Deciding | None = None

    @property
    def is_needed(self) -> bool:
        return self._mode in ("advisory", "on")

    async def run(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(self._config.autoscale.every_s)
            try:
                await asyncio.to_thread(self.step)
            except Exception as error:  # noqa: BLE001  the loop top: requests are served without new decisions
                fault = str(error) if isinstance(error, SchedulerError) else type(error).__name__
                if fault != told:  # once, not every two seconds
                    log.warning("autoscaling could not decide: %s", fault)
                told = fault

    def step(self) -> None:
        """Observe and decide, if it is this replica's turn."""
        entries = self._boards.replicas()
        first = min((str(e["replica"]) for e in entries if e["component"] == INGRESS), default=None)
        if first != self._replica:
            self._deciding = None
            return
        release = self._boards.current(self._release)
        if release != self._release:  # deployed again with other numbers, which replaced no ingress
            self._release, self._deciding = release, None
        if self._deciding is None:
            self._deciding = self._begin()
        self._deciding.step(entries, self._clock(), self._wall())

    def _begin(self) -> _Deciding:
        key = release_key(self._release, self._config)
        autoscaler = autoscaler_of(self._release, self._config, self._boards.nodes())
        before = self._boards.decided()
        if before.get("release") != key:
            targets = {spec.id: spec.replicas for spec in scaled(self._release)}
            before = {"targets": targets, "decisions": [], "changes": {}}
        return _Deciding(autoscaler, self._mode, key, self._boards, before)


class _Deciding:
    """What is remembered while this replica decides."""

    def __init__(
        self, autoscaler: Autoscaler, mode: Mode, release: str, boards: Boards, before: Mapping[str, Any]
    ) -> None:
        self._autoscaler = autoscaler
        self._mode = mode
        self._release = release
        self._boards = boards
        self._watch = Watch()
        self._targets: dict[str, int] = dict(before["targets"])
        self._decisions: deque[dict[str, str]] = deque(before["decisions"], maxlen=KEPT_DECISIONS)
        self._changes: Counter[str] = Counter(before["changes"])
        self._advised: dict[str, tuple[int, float]] = {}

    def step(self, entries: Iterable[Mapping[str, Any]], now: float, wall: datetime) -> None:
        seen = self._watch.observe(entries, now)
        if seen is None:
            return
        decision = self._autoscaler.step(seen, self._targets, now)
        self._record(decision, wall)
        if self._mode == "on":
            self._targets = dict(decision.targets)
        self._boards.decide(
            {
                "release": self._release,
                "mode": self._mode,
                "targets": self._targets,
                "decisions": list(self._decisions),
                "changes": dict(self._changes),
                "numbers": decision.to_json(),
            }
        )

    def _record(self, decision: Decision, wall: datetime) -> None:
        for warning in decision.warnings:
            log.warning("autoscaling: %s", warning)
            self._add(wall, "warning", warning)
        for change in decision.changes:
            if self._mode == "on":
                log.info("autoscaling %s: %s", change.what, change.why)
                self._changes["up" if change.after > change.before else "down"] += 1
                self._add(wall, change.what, change.why)
            elif self._is_new(change, decision.at):
                log.info("autoscaling would scale %s: %s", change.what, change.why)
                self._add(wall, f"advice: {change.what}", change.why)

    def _is_new(self, change: Change, now: float) -> bool:
        after, at = self._advised.get(change.component, (None, 0.0))
        if after == change.after and now - at < REPEAT_ADVICE_S:
            return False
        self._advised[change.component] = (change.after, now)
        return True

    def _add(self, wall: datetime, what: str, why: str) -> None:
        self._decisions.append({"time": wall.isoformat(timespec="seconds"), "what": what, "why": why})
