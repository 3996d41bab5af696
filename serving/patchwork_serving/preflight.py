"""What can be known to be missing before anything is started: GPUs, the database, the cluster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from patchwork_serving.config import Config
from patchwork_serving.errors import DeployError, GpuMissing
from patchwork_serving.gpus import gpu_names

#: A server that is there answers in milliseconds; one behind a silent firewall never does.
ANSWER_S = 5.0


def check(config: Config, env: Mapping[str, str]) -> None:
    """GpuMissing, StoreUnreachable, StoreWithoutPgvector or DeployError, each with its remedy, within seconds."""
    address = env.get("RAY_ADDRESS")
    if address:
        _check_cluster(address)
    else:
        _check_gpus(config)
    dsn = env.get("DATABASE_URL")
    if dsn:
        _check_database(dsn)


def _check_gpus(config: Config) -> None:
    asking = [name for name, component in config.components.items() if component.num_gpus]
    if asking and not gpu_names():
        raise GpuMissing(
            f"patchwork.yaml: components.{asking[0]}.num_gpus: this machine has no GPU that nvidia-smi shows; "
            "leave it out, or set RAY_ADDRESS to a cluster that has one"
        )


def _check_cluster(address: str) -> None:
    """Ray itself asks for half a minute before it says that nobody is there."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray knows
    try:
        socket.create_connection((host.strip("[]") or "127.0.0.1", int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise DeployError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or 'no answer'}); "
            "start it, correct the address, or unset RAY_ADDRESS to use a local Ray"
        ) from error


def _check_database(dsn: str) -> None:
    from patchwork_serving.store.connect import check_server

    asyncio.run(check_server(dsn, timeout_s=ANSWER_S))
