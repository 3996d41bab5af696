"""A release as one Ray Serve application: an ingress deployment and one deployment per component."""

from __future__ import annotations

import dataclasses
from typing import Any

from patchwork_serving.autoscale_setup import MANY, bounds_of, mode_of, release_key
from patchwork_serving.bundle import Bundle, version_of
from patchwork_serving.config import Config
from patchwork_serving.ingress import Ingress, keeps_state
from patchwork_serving.release import ComponentSpec
from patchwork_serving.replica import ComponentReplica

INGRESS = "ingress"
#: Ray bookkeeping, not a limit: a plan gives all cores to components, and an ingress that asked for some would wait for ever.
INGRESS_CPUS = 0.0
#: Serve's own queue is first in, first out, and knows no deadlines: keep it empty, so that order is decided in our queues (design D8).
MAX_ONGOING = 10_000
#: Sends a call to the replica that our own router chose.
ROUTER = "patchwork_serving.replica_router.NamedReplicaRouter"
GRACEFUL_SHUTDOWN_S = 10.0
HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 30.0


def build_app(bundle: Bundle, *, components_only: bool = False) -> Any:
    """A ``ray.serve.Application``; deployment versions are digests, so that only what differs is replaced when it is run again.

    ``components_only`` leaves out the ingress's chain: it is what ``PatchworkRunnable`` runs, whose chain stays in the user's process.
    """
    from ray import serve

    handles = {
        spec.id: _component(serve, spec, bundle, fixed=components_only)
        for spec in bundle.release.components
        if spec.way != "external"
    }
    if components_only:
        holder = serve.deployment(_Holder, **_options(INGRESS, 1, INGRESS_CPUS, 0.0))
        return _versioned(holder, "holder").bind(handles)
    options = _options(INGRESS, bundle.release.ingress_replicas, INGRESS_CPUS, 0.0)
    if keeps_state(bundle.release):  # a request may have to go on to the replica that has its state
        options["request_router_config"] = _named_router()
    ingress = serve.deployment(serve.ingress()(Ingress), **options)
    return _versioned(ingress, ingress_version(bundle)).bind(bundle, handles)


def ingress_version(bundle: Bundle) -> str:
    """A digest that changes when ingress replicas must be replaced. What ``release_board`` tells them is not part of it."""
    release = bundle.release
    settings = {k: v for k, v in release.settings.items() if k != "built_at"}
    engines = [
        (spec.id, spec.max_batch, spec.slots, spec.cost) for spec in release.components
    ]  # the door counts with them
    promises = [release.slo_s, release.ingress_replicas, mode_of(bundle.config, release)]
    spec = ComponentSpec(id=INGRESS, kind="function", way="own", engine="own")
    return version_of(
        spec, bundle, settings, release.graph.to_json(), bundle.config.model_dump(), sorted(bundle.env.items()),
        engines, promises,
    )  # fmt: skip


class _Holder:
    """Keeps the handles of components reachable in an application that has no chain of its own."""

    def __init__(self, handles: dict[str, Any]) -> None:
        self._handles = handles

    def components(self) -> list[str]:
        return sorted(self._handles)


def _component(serve: Any, spec: ComponentSpec, bundle: Bundle, *, fixed: bool) -> Any:
    options = _options(spec.id, spec.replicas, spec.num_cpus, spec.num_gpus)
    if not fixed and (autoscaling := _autoscaling(spec, bundle)) is not None:
        options = {**options, "num_replicas": "auto", "autoscaling_config": autoscaling}
    deployment = serve.deployment(ComponentReplica, request_router_config=_named_router(), **options)
    mine = bundle if spec.engine == "own" else _without_user_code(bundle, with_store=spec.engine == "pgvector")
    return _versioned(deployment, version_of(spec, bundle)).bind(_without_replicas(spec), mine)


def _named_router() -> Any:
    from ray.serve.config import RequestRouterConfig

    return RequestRouterConfig(request_router_class=ROUTER)


def _autoscaling(spec: ComponentSpec, bundle: Bundle) -> dict[str, Any] | None:
    """Ray Serve's autoscaling configuration; None for a fixed number. Our decisions are followed at once: they have settled already."""
    mode, bounds = mode_of(bundle.config, bundle.release), bounds_of(spec, bundle.config)
    most = bounds.most if bounds.most is not None else MANY
    limits = {
        "min_replicas": bounds.least,
        "max_replicas": max(most, 1),
        "initial_replicas": min(max(spec.replicas, bounds.least), most),
    }
    if mode == "ray":
        return {**limits, **bundle.config.autoscale.ray}
    if mode != "on":
        return None
    key = release_key(bundle.release, bundle.config)
    policy = {
        "policy_function": "patchwork_serving.autoscale_policy:FollowDecisions",
        "policy_kwargs": {"release": key},
    }
    return {**limits, "policy": policy, "upscale_delay_s": 0.0, "downscale_delay_s": 0.0}


def _without_replicas(spec: ComponentSpec) -> ComponentSpec:
    """What a replica is told must not change when only their number does."""
    return dataclasses.replace(spec, replicas=1)


def _without_user_code(bundle: Bundle, with_store: bool) -> Bundle:
    """Replicas that never import the user's module need neither its environment nor its record."""
    env = {
        name: value for name, value in bundle.env.items() if name.startswith(("OTEL_", "PATCHWORK_", "HF_", "VLLM_"))
    }
    config = Config(models=bundle.config.models, store=bundle.config.store)
    release = dataclasses.replace(
        bundle.release, components=(), settings={}, created_at="", slo_s=None, ingress_replicas=1, plan=None,
        collections=bundle.release.collections if with_store else (),
    )  # fmt: skip
    kept = Bundle(release, env=env, config=config)
    return dataclasses.replace(kept, dsn=bundle.dsn, postgres_home=bundle.postgres_home) if with_store else kept


def _options(name: str, replicas: int, num_cpus: float, num_gpus: float) -> dict[str, Any]:
    return {
        "name": name,
        "num_replicas": replicas,
        "max_ongoing_requests": MAX_ONGOING,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
    }


def _versioned(deployment: Any, version: str) -> Any:
    # Serve gives a deployment without a version a random one and so replaces every replica at every deploy; its public
    # ``version=`` was removed, the attribute that it set was not
    deployment._version = version
    return deployment
