"""The ingress deployment on Ray Serve: gateway and orchestrator in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from patchwork_scheduler.learned import cost_of
from patchwork_serving import board
from patchwork_serving.autoscaling import AutoscaleLoop, RayBoards
from patchwork_serving.bundle import Bundle, apply_environment
from patchwork_serving.conversations import Place
from patchwork_serving.forwarding import NOT_HERE, Forwarding, serve_here
from patchwork_serving.gateway import Account, GatewayMetrics, GatewaySettings, build_gateway
from patchwork_serving.metered import MeteredCalls
from patchwork_serving.orchestrator import Orchestrator
from patchwork_serving.per_request import CallsPerRequest
from patchwork_serving.release import Release
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.sharing import Sharing
from patchwork_serving.slo import classes_of
from patchwork_serving.telemetry import RequestTelemetry, open_tracing
from patchwork_serving.transport import RayTransport, serve_replicas

log = logging.getLogger(__name__)

SIBLINGS_TIMEOUT_S = 2.0


def keeps_state(release: Release) -> bool:
    """Whether it matters which of several ingress replicas serves a request."""
    return release.graph.affinity is not None and release.ingress_replicas > 1


class Ingress:
    """Started by Serve; ready when the user's module is imported and its leaves are swapped.

    ``handles`` are Serve handles of the component deployments, by component id.
    """

    async def __init__(self, bundle: Bundle, handles: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        from ray import serve

        apply_environment(bundle.env)  # before tracing reads OTEL_* variables
        context = serve.get_replica_context()
        self._replica = f"ingress#{context.replica_id.unique_id}"
        self._bundle = bundle
        self._tracing = open_tracing(bundle.release.name, "ingress")
        components = {spec.id: spec for spec in bundle.release.components}
        self._telemetry = RequestTelemetry(self._tracing, components)
        self._metrics = GatewayMetrics(bundle.release.name)
        observer = MeteredCalls(self._telemetry, self._metrics, components)
        self._door = self._scheduling()
        transport = RayTransport(
            handles.__getitem__, observer, scheduling=self._door,
            sharing=Sharing(components, llm=bundle.config.scheduler.share_llm_calls),
            per_request=CallsPerRequest(bundle.config.scheduler.calls_per_request),
        )  # fmt: skip
        self._orchestrator = Orchestrator(bundle, transport, observer)
        await asyncio.to_thread(self._orchestrator.start)  # an import of seconds must not fail Serve's health check
        self._publisher = asyncio.create_task(self._publish())
        autoscaling = AutoscaleLoop(bundle, self._replica, RayBoards(bundle.release.name))
        self._autoscaling = asyncio.create_task(autoscaling.run()) if autoscaling.is_needed else None

    def _scheduling(self) -> Scheduling:
        release, config = self._bundle.release, self._bundle.config
        return Scheduling(
            classes_of(config, release.slo_s),
            {spec.id: spec.replicas for spec in release.components if spec.way != "external"},
            admission=config.scheduler.admission,
            ingresses=release.ingress_replicas,
            graph=release.graph,
            costs={spec.id: cost_of(spec.cost) for spec in release.components if spec.cost is not None},
            replicas_of=serve_replicas(release.name),
            slots={spec.id: spec.slots for spec in release.components if spec.slots is not None},
            batches={spec.id: spec.max_batch for spec in release.components},
            llms=[spec.id for spec in release.components if spec.kind == "llm" and config.scheduler.prefix_routing],
        )

    def __serve_build_asgi_app__(self) -> Any:
        config = self._bundle.config
        settings = GatewaySettings(
            name=self._bundle.release.name,
            api_key=self._bundle.api_key,
            max_body_bytes=config.gateway.max_body_bytes,
            request_timeout_s=config.gateway.request_timeout_s,
            max_batch_inputs=config.gateway.max_batch_inputs,
            default_slo_s=self._bundle.release.slo_s,
            emulated=self._bundle.release.emulated,
            slo_classes=classes_of(config, self._bundle.release.slo_s),
            default_slo=config.default_slo,
            capture_content=config.gateway.capture_content,
            server_echoes_request_id=True,
        )
        app = build_gateway(
            self._orchestrator,
            settings,
            self._telemetry,
            metrics=self._metrics,
            cancel_elsewhere=self._cancel_elsewhere,
            ask_siblings=self._ask_siblings,
            replica=self._replica,
            door=self._door,
        )
        self._gateway = app.state.gateway
        self._app = app
        return self._forwarding(app) if keeps_state(self._bundle.release) else app

    def _forwarding(self, app: Any) -> Forwarding:
        from ray import serve

        release, config = self._bundle.release, self._bundle.config.gateway
        handle = serve.get_deployment_handle("ingress", app_name=release.name)

        async def send_to(name: str, scope: Any, body: bytes) -> Any:
            named = handle.options(method_name="serve_here", stream=True, session_id=name.partition("#")[2])
            answer = named.remote(name, scope, body)
            try:
                async for message in answer:
                    yield message
            finally:
                answer.cancel()

        return Forwarding(
            app, affinity=release.graph.affinity or "", count=release.ingress_replicas, me=self._replica, places=self._places,
            send_to=send_to, max_body_bytes=config.max_body_bytes, body_timeout_s=config.request_timeout_s,
        )  # fmt: skip

    async def _places(self) -> list[Place]:
        entries = await asyncio.to_thread(board.read, self._bundle.release.name)
        return [Place(one["replica"], one["rank"]) for one in entries if one["component"] == "ingress"]

    async def serve_here(self, name: str, scope: Any, body: bytes) -> AsyncIterator[Any]:
        """A request that came to another ingress replica and is about what the replica of this name keeps; its answer's messages."""
        if name != self._replica:
            yield NOT_HERE
            return
        async with contextlib.aclosing(serve_here(self._app, scope, body)) as messages:
            async for message in messages:
                yield message

    async def cancel_run(self, run_id: str) -> bool:
        """Cancel a run of this process; called by the other ingress replicas."""
        return bool(self._gateway.runs.cancel(run_id))

    async def account(self) -> Account:
        """What this process has counted; called by the other ingress replicas."""
        found: Account = self._gateway.account()
        return found

    async def _cancel_elsewhere(self, run_id: str) -> bool:
        return any(await self._ask_all("cancel_run", run_id))

    async def _ask_siblings(self) -> list[Account]:
        return [answer for answer in await self._ask_all("account") if isinstance(answer, Account)]

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What each ingress replica answers, this one included; nothing when it is alone, or when the others cannot be asked."""
        try:
            answers = await asyncio.to_thread(self._broadcast, method, *arguments)
        except Exception as error:  # noqa: BLE001  a page about the app must not fail because a replica does
            log.warning("could not ask the other ingress replicas: %s", type(error).__name__)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        app = self._bundle.release.name
        if sum(entry["component"] == "ingress" for entry in board.read(app)) < 2:
            return []
        from ray import serve

        handle = serve.get_deployment_handle("ingress", app_name=app)
        answers: list[Any] = handle.broadcast(method, *arguments).results(
            timeout_s=SIBLINGS_TIMEOUT_S, return_exceptions=True
        )
        return answers

    async def _publish(self) -> None:
        from ray import serve

        while True:
            try:
                rank = serve.get_replica_context().rank.rank
                facts = {"component": "ingress", "rank": rank, **self._metrics.traffic.report()}
                await asyncio.to_thread(board.publish, self._bundle.release.name, self._replica, facts)
            except Exception as error:  # noqa: BLE001  telemetry must not end a replica
                log.warning("could not publish the state of %s: %s", self._replica, type(error).__name__)
            await asyncio.sleep(board.PUBLISH_EVERY_S)

    async def __del__(self) -> None:
        publisher = getattr(self, "_publisher", None)
        if publisher is None:
            return
        publisher.cancel()
        if self._autoscaling is not None:
            self._autoscaling.cancel()
        await asyncio.to_thread(self._orchestrator.close)
        await asyncio.to_thread(self._tracing.close)
        with contextlib.suppress(Exception):  # Ray may be going down around us
            await asyncio.to_thread(board.withdraw, self._bundle.release.name, self._replica)
