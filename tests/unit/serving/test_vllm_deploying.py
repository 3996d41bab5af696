"""What a deployment with vLLM says before anything is started, and shows while it runs."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

import pytest

from patchwork_serving import preflight
from patchwork_serving.cli_status import _replicas
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import GpuMissing, MissingExtra
from patchwork_serving.models.hosts import ModelHosts
from patchwork_serving.models.registry import ResolvedModel
from patchwork_serving.orchestrator import _by_component
from patchwork_serving.release import ComponentSpec


def spec(num_gpus: float) -> ComponentSpec:
    return ComponentSpec("llm-m", "llm", "protocol", "vllm", "m", num_gpus=num_gpus)


def machine(monkeypatch: pytest.MonkeyPatch, *, vllm: bool, gpus: list[str]) -> None:
    found = importlib.machinery.ModuleSpec("vllm", None) if vllm else None
    monkeypatch.setattr(preflight, "find_spec", lambda name: found if name == "vllm" else None)
    monkeypatch.setattr(preflight, "gpu_names", lambda: gpus)


def test_a_machine_without_vllm_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, vllm=False, gpus=["H100"])
    with pytest.raises(MissingExtra, match=r"patchwork-rag\[gpu\]"):
        preflight.check_vllm(spec(1.0))


def test_a_machine_without_a_gpu_is_told_what_runs_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, vllm=True, gpus=[])
    with pytest.raises(GpuMissing, match=r"components\.llm-m .*takes 0.5 GPU.*llamacpp.*num_gpus to 0"):
        preflight.check_vllm(spec(0.5))
    preflight.check_vllm(spec(0.0))
    machine(monkeypatch, vllm=True, gpus=["H100"])
    preflight.check_vllm(spec(1.0))


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("llamacpp", {"slots": 4, "threads": 2}), ("vllm", {"max_num_seqs": 4}), ("emulated", {}), ("transformers", {})],
)
def test_engines_are_given_their_own_words(engine: str, expected: dict[str, int]) -> None:
    hosts = ModelHosts(Config(), Paths(Path("/n"), Path("/n")), engine_args={"llm": {"slots": 4, "threads": 2}})
    assert hosts._defaults(ResolvedModel("m", "llm", engine, "x")) == expected  # type: ignore[arg-type]


def test_how_long_a_start_takes_is_shown() -> None:
    entries = [{"component": "llm", "queued": 0, "running": 1, "start_s": start} for start in (31.5, 92.0)]
    rows = _by_component(entries, {"llm": 2, "other": 1})
    assert [row["start_s"] for row in rows] == [92.0, None]
    assert list(_replicas(rows).columns[-1].cells) == ["92.0 s", ""]
