"""What can be known to be missing before anything is started: room on the disk, GPUs, the database, the cluster."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import DeployError, DiskFull, GpuMissing, MissingExtra
from patchwork_serving.gpus import gpu_names
from patchwork_serving.release import ComponentSpec

#: A server that is there answers in milliseconds; one behind a silent firewall never does.
ANSWER_S = 5.0


#: Ray ends without a word when it cannot write its logs.
LOG_BYTES = 64 * 1024 * 1024


def check(config: Config, paths: Paths, env: Mapping[str, str]) -> None:
    """DiskFull, GpuMissing, StoreUnreachable, StoreWithoutPgvector or DeployError, each with its remedy, within seconds."""
    address = env.get("RAY_ADDRESS")
    if address:
        _check_cluster(address)
    else:
        _check_gpus(config)
        _check_disk("PATCHWORK_HOME", paths.home)
        _check_disk("TMPDIR", Path(tempfile.gettempdir()))
    dsn = env.get("DATABASE_URL")
    if dsn:
        _check_database(dsn)


def _check_disk(variable: str, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < LOG_BYTES:
        raise DiskFull(
            f"{folder} has {free >> 20} MiB left and {LOG_BYTES >> 20} MiB are needed for logs; "
            f"free some, or set {variable} to a folder on another disk"
        )


def _check_gpus(config: Config) -> None:
    asking = [name for name, component in config.components.items() if component.num_gpus]
    if asking and not gpu_names():
        raise GpuMissing(
            f"patchwork.yaml: components.{asking[0]}.num_gpus: this machine has no GPU that nvidia-smi shows; "
            "leave it out, or set RAY_ADDRESS to a cluster that has one"
        )


def check_vllm(spec: ComponentSpec) -> None:
    """MissingExtra or GpuMissing for a component that cannot run on this machine."""
    if find_spec("vllm") is None:
        raise MissingExtra(
            f"{spec.model} runs on vLLM, which is not installed: pip install 'patchwork-rag[gpu]', or choose llamacpp and a GGUF file"
        )
    if spec.num_gpus and not gpu_names():
        raise GpuMissing(
            f"components.{spec.id} runs on vLLM, which takes {spec.num_gpus:g} GPU, and this machine has none that nvidia-smi shows; "
            "choose llamacpp and a GGUF file, or, with vLLM built for CPUs, set its num_gpus to 0 in patchwork.yaml"
        )


def check_openvino(spec: ComponentSpec) -> None:
    """MissingExtra for a component that cannot run on this machine."""
    if find_spec("openvino_genai") is None:
        raise MissingExtra(
            f"{spec.model} runs on OpenVINO, which is not installed: pip install 'patchwork-rag[openvino]', or choose llamacpp"
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
