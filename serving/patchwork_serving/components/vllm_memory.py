"""Whether a model can fit into the GPUs that its component has, told from its folder in milliseconds instead of by a start of minutes.

Only what is certain is counted: the weights, and the cache of one request as long as the context. Activations and graphs come on top, so a
model that passes may still not fit, which vLLM then says; one that is refused here cannot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchwork_serving.errors import ModelTooLarge

#: vLLM's own share of a GPU for an engine that has it alone.
WHOLE_GPU = 0.92
_GIB = 1 << 30
_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


@dataclass(frozen=True, slots=True)
class Need:
    weights: int  #: bytes, over all GPUs
    per_token: int  #: bytes of cache for one token; 0 where the model's shape does not tell
    context: int  #: tokens of the longest request


def check_memory(name: str, folder: Path, arguments: Mapping[str, Any], gpu_bytes: int) -> None:
    """ModelTooLarge when the model in ``folder`` cannot fit; ``gpu_bytes`` is the memory of one GPU, 0 when it is not known."""
    need = need_of(folder, arguments)
    gpus = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    share = float(arguments.get("gpu_memory_utilization", WHOLE_GPU))
    room = gpu_bytes * share * gpus
    if need is None or not room:
        return
    cache = need.per_token * need.context
    if need.weights + cache <= room:
        return
    told = (
        f"{name} does not fit: {_gib(need.weights)} of weights and {_gib(cache)} of cache for one request of {need.context} tokens, where "
        f"vLLM may use {_gib(room)} ({share:g} of {_gib(gpu_bytes)}{f' on each of {gpus} GPUs' if gpus > 1 else ''})"
    )
    raise ModelTooLarge(f"{told}; {_remedy(need, room, gpus, gpu_bytes)}, or take a smaller or quantised model")


def _remedy(need: Need, room: float, gpus: int, gpu_bytes: int) -> str:
    tokens = math.floor((room - need.weights) / need.per_token / 16) * 16 if need.per_token else 0
    if tokens > 0:
        return f"set max_model_len to at most {tokens}"
    whole = 1.1 * need.weights / (gpu_bytes * WHOLE_GPU)  # a tenth for what is not counted
    if whole <= gpus:
        return "give it a larger share of the GPU (num_gpus, or gpu_memory_utilization)"
    return f"spread it over GPUs (tensor_parallel_size: {1 << math.ceil(math.log2(whole))})"


def need_of(folder: Path, arguments: Mapping[str, Any]) -> Need | None:
    """None where the folder does not tell. Errs on the small side."""
    config = _config(folder)
    weights = _weights(folder, config, arguments)
    if weights is None:
        return None
    offloaded = float(arguments.get("cpu_offload_gb", 0)) * _GIB * int(arguments.get("tensor_parallel_size", 1))
    per_token = 0 if "kv_cache_memory_bytes" in arguments else _cache_per_token(config, arguments)
    context = int(arguments.get("max_model_len") or config.get("max_position_embeddings") or 0)
    return Need(max(0, int(weights - offloaded)), per_token, context)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    inner = config.get("text_config")  # models that also see keep their language model's shape there
    return {**config, **inner} if isinstance(inner, dict) else config


def _weights(folder: Path, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> float | None:
    stored = str(config.get("dtype") or config.get("torch_dtype") or "")
    if arguments.get("load_format") == "dummy":
        parameters = _parameters(config)
        return None if parameters is None else parameters * _loaded_bytes(stored, arguments)
    size = sum(file.stat().st_size for file in _weight_files(folder))
    if not size:
        return None
    if config.get("quantization_config"):
        return float(size)
    if arguments.get("quantization"):
        return size / 4  # four bits of sixteen are the least that is made while loading
    return size * _loaded_bytes(stored, arguments) / _BYTES.get(stored, 2)


def _weight_files(folder: Path) -> list[Path]:
    """Those that are loaded: folders may hold the same weights in several forms."""
    files = list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            named = set()
        files = [file for file in files if file.name in named] or files
    return [file for file in files if not file.name.startswith("consolidated")] or files


def _loaded_bytes(stored: str, arguments: Mapping[str, Any]) -> int:
    """Of one parameter; vLLM loads numbers of 32 bits as 16 unless it is told to keep them."""
    return _BYTES.get(str(arguments.get("dtype", "auto")), min(2, _BYTES.get(stored, 2)))


def _parameters(config: Mapping[str, Any]) -> int | None:
    """Of a decoder with gated layers, which all of today's are; less than there are."""
    try:
        hidden, layers, vocabulary = (int(config[n]) for n in ("hidden_size", "num_hidden_layers", "vocab_size"))
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError):
        return None
    size = int(config.get("head_dim") or hidden // heads)
    attention = hidden * size * (2 * heads + 2 * int(config.get("num_key_value_heads") or heads))
    tables = 1 if config.get("tie_word_embeddings") else 2
    return vocabulary * hidden * tables + layers * (attention + 3 * hidden * inner)


def _cache_per_token(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> int:
    if config.get("sliding_window") or "layer_types" in config or "kv_lora_rank" in config:
        return 0  # their caches are smaller, each in its way
    try:
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        values = 2 * int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads) * size
    except (KeyError, TypeError, ValueError):
        return 0
    kind = str(arguments.get("kv_cache_dtype", "auto"))
    return values * (1 if kind.startswith("fp8") else _loaded_bytes("", arguments))


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
