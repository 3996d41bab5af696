"""What all requests of one app share."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from patchwork_serving.gateway.account import Account
from patchwork_serving.gateway.metrics import GatewayMetrics
from patchwork_serving.gateway.port import AskSiblings, CancelElsewhere, ChainRunner, Telemetry
from patchwork_serving.gateway.runs import RunRegistry
from patchwork_serving.gateway.serialize import revive
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
    ) -> None:
        self.runner = runner
        self.settings = settings
        self.telemetry = telemetry
        self.metrics = metrics
        self.cancel_elsewhere = cancel_elsewhere
        self.replica = replica
        self._ask_siblings = ask_siblings
        self.started_at = int(time.time())
        self.window = Window()
        self.runs = RunRegistry(settings.max_in_flight)

    def account(self) -> Account:
        """What this replica has counted."""
        finished = self.window.finished(now=time.monotonic())
        return Account(self.replica, self.metrics.families(), finished, len(self.runs))

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
        return revive(value)
