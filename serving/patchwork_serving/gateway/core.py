"""What all requests of one app share."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from patchwork_serving.gateway.account import Account
from patchwork_serving.gateway.metrics import GatewayMetrics, door_families
from patchwork_serving.gateway.port import AskSiblings, CancelElsewhere, ChainRunner, Door, OpenDoor, Telemetry
from patchwork_serving.gateway.runs import RunRegistry
from patchwork_serving.gateway.serialize import check_messages, revive
from patchwork_serving.gateway.settings import GatewaySettings
from patchwork_serving.gateway.shape import Shape
from patchwork_serving.gateway.window import Window


class Gateway:
    """One app's runner, settings, and everything that is counted or in flight."""

    def __init__(
        self,
        runner: ChainRunner,
        settings: GatewaySettings,
        telemetry: Telemetry,
        metrics: GatewayMetrics,
        cancel_elsewhere: CancelElsewhere | None = None,
        ask_siblings: AskSiblings | None = None,
        replica: str = "",
        door: Door | None = None,
    ) -> None:
        self.runner = runner
        self.settings = settings
        self.telemetry = telemetry
        self.metrics = metrics
        self.cancel_elsewhere = cancel_elsewhere
        self.replica = replica
        self.door = door or OpenDoor()
        self.line = asyncio.Lock()  #: requests held at the door come in one by one, in the order in which they came
        self._ask_siblings = ask_siblings
        self.started_at = int(time.time())
        self.window = Window()
        self.runs = RunRegistry(settings.max_in_flight)

    def account(self) -> Account:
        """What this replica has counted."""
        now = time.monotonic()
        facts = self.door.facts(now)
        ago = time.time() - now
        decisions = [
            {
                "time": datetime.fromtimestamp(one.at + ago, UTC).isoformat(timespec="seconds"),
                "what": one.what,
                "why": one.why,
            }
            for one in self.door.told()
        ]
        families = (*self.metrics.families(), *door_families(self.settings.name, facts))
        return Account(self.replica, families, self.window.finished(now=now), len(self.runs), facts, tuple(decisions))

    async def accounts(self) -> list[Account]:
        """What all replicas of the ingress have counted, this one first."""
        others = [] if self._ask_siblings is None else await self._ask_siblings()
        return [self.account(), *(account for account in others if account.replica != self.replica)]

    @cached_property
    def input_shape(self) -> Shape:
        # made when first needed: the runner may not know its chain when the app is built
        return Shape(self.runner.input_schema())

    @cached_property
    def config_shape(self) -> Shape:
        return Shape(self.runner.config_schema())

    def accept_input(self, value: Any, where: str = "input") -> Any:
        """A client's input as the chain takes it; InvalidRequest when it does not fit the input schema."""
        self.input_shape.check(value, where)
        revived = revive(value)
        if self.input_shape.takes_messages and isinstance(revived, list):
            check_messages(revived, where)
        return revived
