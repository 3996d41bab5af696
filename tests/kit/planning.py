"""Small profiles for planning tests: ``component("grader", gpu={1: 0.5})`` is measured on GPUs, a batch of one taking half a second."""

from __future__ import annotations

from collections.abc import Mapping

from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile


def component(
    name: str,
    *,
    cpu: Mapping[int, float] | None = None,
    gpu: Mapping[int, float] | None = None,
    visits: float = 1.0,
    serial_visits: float | None = None,
    gpu_share: float = 1.0,
    memory_per_call: int = 0,
) -> ComponentProfile:
    """A component with seconds by batch on a core, on a GPU (or a share of one), or on both."""
    measured = []
    if cpu:
        measured.append(Measured("cpu", _points(cpu, memory_per_call), cpus=1.0))
    if gpu:
        measured.append(Measured("gpu", _points(gpu, memory_per_call), cpus=0.0, gpus=gpu_share))
    return ComponentProfile(name, visits, tuple(measured), serial_visits=serial_visits)


def profile(*components: ComponentProfile, chain: str = "chain.py") -> Profile:
    return Profile(chain, components)


def _points(seconds: Mapping[int, float], memory_per_call: int) -> tuple[Point, ...]:
    return tuple(Point(batch, s, memory_bytes=batch * memory_per_call) for batch, s in seconds.items())
