"""From a component's spec to its engine, without loading anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from patchwork_adapters.transport import Kind
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine, MortalEngine, PriorityEngine, TokenEngine
from patchwork_serving.components.factory import build_engine
from patchwork_serving.components.llamacpp_engine import LlamaCppOptions
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ConfigError, SetupError
from patchwork_serving.release import ComponentSpec


def spec(engine: str, args: Mapping[str, Any], kind: Kind = "llm", slots: int | None = None) -> ComponentSpec:
    return ComponentSpec(id="c", kind=kind, way="engine", engine=engine, model="m", engine_args=args, slots=slots)


def build(wish: ComponentSpec) -> BatchEngine | ContinuousEngine:
    return build_engine(wish, Config(), Paths(Path("/nowhere"), Path("/nowhere")))


def test_an_llm_is_continuous_and_has_the_slots_of_its_component() -> None:
    engine = build(spec("llamacpp", {"n_ctx": 1024}, slots=5))
    assert isinstance(engine, ContinuousEngine)
    assert engine.slots == 5


@pytest.mark.parametrize("engine", ["onnx", "reranker", "transformers"])
def test_encoders_run_batches(engine: str) -> None:
    assert isinstance(build(spec(engine, {"max_length": 64}, "embedder")), BatchEngine)


@pytest.mark.parametrize("engine", ["onnx", "reranker", "transformers"])
@pytest.mark.parametrize(
    ("gpus", "args", "device"),
    [(0.0, {}, "cpu"), (0.25, {}, "cuda"), (1.0, {"device": "cpu"}, "cpu"), (0.0, {"device": "cuda:1"}, "cuda:1")],
)
def test_an_encoder_runs_on_the_gpu_that_its_component_has(
    engine: str, gpus: float, args: Mapping[str, Any], device: str
) -> None:
    built: Any = build(dataclasses.replace(spec(engine, args, "embedder"), num_gpus=gpus))
    assert built.describe()["device"] == device


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: must be cpu or cuda, not 'gpu'"):
        build(spec("onnx", {"device": "gpu"}))


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"n_ctxx": 1}, "no such argument; it has"),  # a misspelt key
        ({"n_ctx": "1024"}, "must be int"),  # YAML quotes
        ({"threads": True}, "must be int"),  # bool is an int to Python
        ({"slots": 0}, "at least 1"),
    ],
)
def test_a_bad_engine_argument_names_its_place(args: Mapping[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.m\.engine_args\.\w+: .*{match}"):
        build(spec("llamacpp", args))


def test_an_engine_that_is_not_here_is_named() -> None:
    with pytest.raises(SetupError, match="no 'tensorrt' engine"):
        build(spec("tensorrt", {}))


def test_vllm_works_by_tokens_in_an_order_and_can_end_by_itself() -> None:
    engine = build(spec("vllm", {"max_model_len": 4096}, slots=5))
    assert isinstance(engine, TokenEngine)
    assert isinstance(engine, PriorityEngine)
    assert isinstance(engine, MortalEngine)
    assert engine.slots == 5
    with pytest.raises(ConfigError, match=r"models\.m\.engine_args\.max_model_len"):
        build(spec("vllm", {"max_model_len": "4096"}))


@pytest.mark.parametrize(
    ("cores", "options", "shards", "threads"),
    [
        (2, LlamaCppOptions(), 2, 1),
        (16, LlamaCppOptions(), 4, 4),  # more shards would each hold a few sequences only
        (8, LlamaCppOptions(slots=1), 1, 8),  # a single sequence gets every core
        (1, LlamaCppOptions(), 1, 1),
        (4, LlamaCppOptions(shards=1, threads=2), 1, 2),
    ],
)
def test_cores_are_shared_among_shards(cores: int, options: LlamaCppOptions, shards: int, threads: int) -> None:
    resolved = options.resolved(cores)
    assert (resolved.shards, resolved.threads) == (shards, threads)
