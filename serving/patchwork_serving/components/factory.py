"""From a component's spec to its engine. Each engine's packages are imported only when it starts."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from patchwork_serving.components.embedder import OnnxEmbedder
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions
from patchwork_serving.components.openvino_engine import OpenVinoEngine, OpenVinoOptions
from patchwork_serving.components.reranker import RerankerEngine
from patchwork_serving.components.vllm_arguments import check_spread, vllm_arguments
from patchwork_serving.components.vllm_engine import VllmEngine
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ConfigError, SetupError
from patchwork_serving.models.fetch import files_of
from patchwork_serving.models.registry import Locate
from patchwork_serving.release import ComponentSpec

_LLAMACPP_ARGS: Mapping[str, type] = {
    field.name: int if field.default is None else type(field.default) for field in dataclasses.fields(LlamaCppOptions)
}
_OPENVINO_ARGS: Mapping[str, type] = {field.name: type(field.default) for field in dataclasses.fields(OpenVinoOptions)}
_ONNX_ARGS: Mapping[str, type] = {"threads": int, "max_length": int, "normalized": bool, "device": str}
_RERANKER_ARGS: Mapping[str, type] = {"threads": int, "max_length": int, "device": str}
_TORCH_ARGS: Mapping[str, type] = {"max_length": int, "device": str}


def build_engine(spec: ComponentSpec, config: Config, paths: Paths | None = None) -> BatchEngine | ContinuousEngine:
    """The engine of a component that runs a model; constructed, not started.

    The model is found, and fetched if need be, on the machine where the engine starts. Raises ConfigError for an engine argument that
    does not exist, and SetupError for an engine that this build does not have.
    """
    if spec.model is None:
        raise ConfigError(f"component {spec.id} has the engine {spec.engine} but no model")
    locate = functools.partial(files_of, spec.model, config.models, paths or Paths.from_env())
    return _build(spec, spec.model, locate)


def _build(spec: ComponentSpec, name: str, locate: Locate) -> BatchEngine | ContinuousEngine:
    match spec.engine:
        case "llamacpp":
            arguments = _checked(spec, _LLAMACPP_ARGS)
            if spec.slots is not None:
                arguments["slots"] = spec.slots
            return LlamaCppEngine(locate, name=name, options=LlamaCppOptions(**arguments))
        case "openvino":
            arguments = _checked(spec, _OPENVINO_ARGS)
            if spec.slots is not None:
                arguments["slots"] = spec.slots
            return OpenVinoEngine(locate, name=name, options=OpenVinoOptions(**arguments))
        case "vllm":
            check_spread(spec.id, name, spec.engine_args, spec.num_gpus)
            return VllmEngine(
                locate,
                name=name,
                arguments=vllm_arguments(name, spec.engine_args),
                slots=spec.slots,
                gpus=spec.num_gpus,
            )
        case "onnx":
            return OnnxEmbedder(locate, name=name, **_on_device(spec, _checked(spec, _ONNX_ARGS)))
        case "transformers":
            from patchwork_serving.components.torch_encoders import TorchEmbedder

            return TorchEmbedder(locate, name=name, **_on_device(spec, _checked(spec, _TORCH_ARGS)))
        case "emulated":
            from patchwork_serving.components.emulated_factory import build_emulated

            return build_emulated(spec, name)
        case "reranker":
            return RerankerEngine(locate, name=name, **_on_device(spec, _checked(spec, _RERANKER_ARGS)))
        case _:
            raise SetupError(
                f"component {spec.id}: this version has no {spec.engine!r} engine; choose llamacpp, openvino, vllm, onnx, transformers, "
                f"reranker or emulated for {name} in patchwork.yaml (models), or a source of another kind"
            )


def _on_device(spec: ComponentSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    """Where the component has a GPU, or a part of one, it is used; an engine that then finds none does not start."""
    device = arguments.setdefault("device", "cuda" if spec.num_gpus else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"models.{spec.model}.engine_args.device: must be cpu or cuda, not {device!r}")
    return arguments


def _checked(spec: ComponentSpec, known: Mapping[str, type]) -> dict[str, Any]:
    for argument, value in spec.engine_args.items():
        where = f"models.{spec.model}.engine_args.{argument}"
        if argument not in known:
            raise ConfigError(
                f"{where}: the {spec.engine} engine has no such argument; it has {', '.join(sorted(known))}"
            )
        # bool is an int to isinstance, and true threads are nobody's intent
        if type(value) is not known[argument]:
            raise ConfigError(f"{where}: must be {known[argument].__name__}, not {type(value).__name__}")
        if type(value) is int and value < (0 if argument in ("cache_ram_mib", "gpu_layers") else 1):
            raise ConfigError(f"{where}: must be at least 1")
    return dict(spec.engine_args)
