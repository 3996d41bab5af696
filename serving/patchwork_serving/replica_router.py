"""Serve's request router of our components: a call goes to the replica that its ``session_id`` names (docs/decisions/routing.md).

Serve pickles this module by value into each deployment's configuration, so it holds no state. Its HTTP proxies run this router for
ingresses; on another machine they are without our package.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter


class NamedReplicaRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray has no types here
    """Falls back to the other replicas when the named one is gone, full or silent, and to Serve's own choice without a name."""

    def update_replicas(self, replicas: list[Any]) -> None:
        super().update_replicas(replicas)
        self._tell()

    def on_replica_actor_died(self, replica_id: Any) -> None:
        super().on_replica_actor_died(replica_id)
        self._tell()

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        wanted = pending_request.metadata.session_id if pending_request is not None else ""
        named = [one for one in candidate_replicas if one.replica_id.unique_id == wanted] if wanted else []
        if not named:
            found: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
            return found
        # else Serve asks again at once, without a pause, when nobody has room
        pending_request.routing_context.should_backoff = True
        return [named, [one for one in candidate_replicas if one is not named[0]]]

    def _tell(self) -> None:
        try:
            from patchwork_serving import replicas_seen
        except ImportError:  # a proxy, which asks for no names
            return
        deployment = self._deployment_id
        names = tuple(sorted(replica_id.unique_id for replica_id in self.curr_replicas))
        replicas_seen.tell(deployment.app_name, deployment.name, names)
