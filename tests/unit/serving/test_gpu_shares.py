"""GPUs of components: what Ray is asked for, and how much memory and how many GPUs their engines then take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patchwork_adapters.graph import ComponentGraph
from patchwork_serving.bundle import Bundle
from patchwork_serving.components.factory import build_engine
from patchwork_serving.components.vllm_engine import VllmEngine
from patchwork_serving.components.vllm_memory import WHOLE_GPU
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ConfigError
from patchwork_serving.release import ComponentSpec, Release
from patchwork_serving.serve_app import build_app

PATHS = Paths(Path("/nowhere"), Path("/nowhere"))


def llm(name: str, gpus: float, **args: Any) -> ComponentSpec:
    return ComponentSpec(name, "llm", "protocol", "vllm", model=name, engine_args=args, num_gpus=gpus)


def engine(spec: ComponentSpec) -> VllmEngine:
    built = build_engine(spec, Config(), PATHS)
    assert isinstance(built, VllmEngine)
    return built


def asked_of_ray(*specs: ComponentSpec) -> dict[str, dict[str, float]]:
    """``ray_actor_options`` by component, of the application as Serve gets it."""
    app = build_app(Bundle(Release("app", "chain.py", "", ComponentGraph("chain.py", "langchain", ()), specs)))
    bound = app._bound_deployment.init_args[1].values()
    found = {one._bound_deployment.name: one._bound_deployment.ray_actor_options for one in bound}
    return {name: {"num_gpus": options["num_gpus"]} for name, options in found.items()}


def test_engines_that_share_a_gpu_share_its_memory_too() -> None:
    grader, generator = llm("grader", 0.25), llm("generator", 0.75)
    assert asked_of_ray(grader, generator) == {"grader": {"num_gpus": 0.25}, "generator": {"num_gpus": 0.75}}
    shares = [engine(spec)._arguments["gpu_memory_utilization"] for spec in (grader, generator)]
    assert shares == pytest.approx([WHOLE_GPU / 4, 3 * WHOLE_GPU / 4])
    assert sum(shares) <= WHOLE_GPU  # together they take no more than one engine alone


def test_an_encoder_beside_an_engine_takes_what_is_left() -> None:
    embedder = ComponentSpec("embedder", "embedder", "engine", "transformers", model="e", num_gpus=0.1)
    assert asked_of_ray(llm("generator", 0.9), embedder) == {
        "generator": {"num_gpus": 0.9},
        "embedder": {"num_gpus": 0.1},
    }
    assert engine(llm("generator", 0.9))._arguments["gpu_memory_utilization"] == 0.828


@pytest.mark.parametrize(
    ("gpus", "args", "spread"),
    [
        (2.0, {}, (2, 1)),  # the component says how many
        (4.0, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, (2, 2)),
        (4.0, {"pipeline_parallel_size": 2}, (2, 2)),  # the rest of them are for tensors
        (1.0, {}, (1, 1)),
    ],
)
def test_an_engine_spreads_over_the_gpus_that_ray_gives_it(
    gpus: float, args: dict[str, Any], spread: tuple[int, int]
) -> None:
    spec = llm("big", gpus, **args)
    assert asked_of_ray(spec) == {"big": {"num_gpus": gpus}}
    arguments = engine(spec)._arguments
    assert (arguments.get("tensor_parallel_size", 1), arguments.get("pipeline_parallel_size", 1)) == spread
    # in processes of its own: beside Ray, vLLM would ask Ray for the same GPUs again
    assert arguments.get("distributed_executor_backend") == ("mp" if spread[0] > 1 else None)
    assert "gpu_memory_utilization" not in arguments  # all of each


@pytest.mark.parametrize(
    ("gpus", "args", "told"),
    [
        (1.5, {}, r"components\.big\.num_gpus: a share of one GPU, or a whole number"),  # Ray has no halves beyond one
        (2.0, {"tensor_parallel_size": 4}, r"is 4, and components\.big has 2 GPU"),
        (0.5, {"tensor_parallel_size": 2}, r"is 2, and components\.big has 0\.5 GPU"),
        (4.0, {"tensor_parallel_size": 2}, r"is 2, and components\.big has 4 GPU"),  # two would be paid for and idle
        (3.0, {"pipeline_parallel_size": 2}, r"is 2, and components\.big has 3 GPU"),
    ],
)
def test_gpus_that_contradict_each_other_are_refused_before_anything_is_started(
    gpus: float, args: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        engine(llm("big", gpus, **args))


def test_without_a_gpu_nothing_is_said_of_spreading() -> None:
    assert engine(llm("small", 0.0, tensor_parallel_size=2))._arguments["tensor_parallel_size"] == 2
