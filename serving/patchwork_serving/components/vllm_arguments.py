"""``engine_args`` of a vLLM model, as far as they can be judged without vLLM, which judges the rest when it starts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from patchwork_serving.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_.]*")
#: The ones that deployments set, so that a slip is told before anything is loaded. vLLM has some two hundred more.
_KNOWN: Mapping[str, type] = {
    **dict.fromkeys(("max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"), int),
    **dict.fromkeys(("pipeline_parallel_size", "block_size", "kv_cache_memory_bytes", "max_logprobs"), int),
    **dict.fromkeys(("gpu_memory_utilization", "cpu_offload_gb"), float),
    **dict.fromkeys(("enforce_eager", "enable_prefix_caching", "trust_remote_code", "enable_auto_tool_choice"), bool),
    **dict.fromkeys(
        ("dtype", "quantization", "kv_cache_dtype", "load_format", "chat_template", "tool_call_parser"), str
    ),
    **dict.fromkeys(("reasoning_parser", "generation_config"), str),
}
#: Names that are the component's own business, and what to set instead.
_OURS: Mapping[str, str] = {
    **dict.fromkeys(("model", "model_tag", "served_model_name"), "it is the name and source of the model"),
    **dict.fromkeys(("host", "port", "uds", "root_path", "api_key", "middleware"), "no server is started"),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "config", "headless", "api_server_count"), "no server is started"),
    **dict.fromkeys(("data_parallel_size", "data_parallel_backend"), "set replicas of the component"),
    "disable_log_stats": "the metrics are those of the replica",
}


def vllm_arguments(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """ConfigError for an argument that cannot be meant; the message names its place."""
    for name, value in given.items():
        where = f"models.{model}.engine_args.{name}"
        if name in _OURS:
            raise ConfigError(f"{where}: cannot be set; {_OURS[name]}")
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: vLLM's arguments are written with underscores, such as max_model_len")
        wanted = _KNOWN.get(name)
        if wanted is not None and not _is_a(value, wanted):
            raise ConfigError(f"{where}: must be {wanted.__name__}, not {type(value).__name__}")
        if wanted is int and value < 1:
            raise ConfigError(f"{where}: must be at least 1")
        if name == "gpu_memory_utilization" and not 0.0 < value <= 1.0:
            raise ConfigError(f"{where}: must be a share between 0 and 1, not {value:g}")
    return dict(given)


def gpus_of(given: Mapping[str, Any]) -> float:
    """GPUs that such an engine occupies, where the component does not say."""
    return float(given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1))


def check_spread(component: str, model: str, given: Mapping[str, Any], gpus: float) -> None:
    """ConfigError when the GPUs of a component and those that its engine spreads over contradict each other."""
    if gpus > 1.0 and gpus != int(gpus):
        raise ConfigError(
            f"components.{component}.num_gpus: a share of one GPU, or a whole number of them; not {gpus:g}"
        )
    spread = int(gpus_of(given))
    if (
        gpus > 0.0
        and spread > 1
        and spread != gpus
        and (gpus < 1.0 or gpus % spread or "tensor_parallel_size" in given)
    ):
        raise ConfigError(
            f"models.{model}.engine_args: tensor_parallel_size × pipeline_parallel_size is {spread}, and components.{component} has "
            f"{gpus:g} GPU; leave num_gpus out, or make them equal"
        )


def _is_a(value: object, wanted: type) -> bool:
    if wanted is float:
        return type(value) in (int, float)
    return type(value) is wanted  # true sequences are nobody's intent, and bool is an int to isinstance
