"""Whether a model fits is told from its folder: shapes of known models, and GPUs of known sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchwork_serving import gpus
from patchwork_serving.components import vllm_engine
from patchwork_serving.components.vllm_engine import VllmEngine
from patchwork_serving.components.vllm_memory import check_memory, need_of
from patchwork_serving.errors import ModelTooLarge
from patchwork_serving.models.registry import ModelFiles

GIB = 1 << 30
H100, L4 = 80 * GIB, 24 * GIB
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip
DUMMY = {"load_format": "dummy"}


def folder(path: Path, weights_gib: float = 0.0, **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA_8B, **config}))
    if weights_gib:
        with (path / "model.safetensors").open("wb") as file:
            file.truncate(int(weights_gib * GIB))  # takes no room on the disk
    return path


def test_the_need_of_a_known_model_is_what_is_published(tmp_path: Path) -> None:
    need = need_of(folder(tmp_path), DUMMY)
    assert need is not None
    assert need.weights / 2 == pytest.approx(8.03e9, rel=0.001)  # its parameters
    assert (need.per_token, need.context) == (128 * 1024, 131072)  # 128 KiB of cache per token


@pytest.mark.parametrize(
    ("gpu", "arguments", "told"),
    [
        (H100, {}, None),
        (L4, {"max_model_len": 8192}, None),
        (L4, {}, r"15\.0 GiB of weights and 16\.0 GiB of cache for one request of 131072 tokens.*max_model_len to at most 58[0-9]{3}"),
        (L4, {"kv_cache_dtype": "fp8", "max_model_len": 65536}, None),
        (8 * GIB, {}, r"vLLM may use 7\.4 GiB \(0\.92 of 8\.0 GiB\).*tensor_parallel_size: 4"),
        (8 * GIB, {"tensor_parallel_size": 4, "max_model_len": 8192}, None),
        (L4, {"gpu_memory_utilization": 0.46}, r"may use 11\.0 GiB.*larger share of the GPU"),
        (L4, {"dtype": "float32", "max_model_len": 64}, r"29\.9 GiB of weights"),
        (8 * GIB, {"cpu_offload_gb": 10, "max_model_len": 4096}, None),
        (0, {}, None),  # nobody knows how much there is
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_with_what_would(
    tmp_path: Path, gpu: int, arguments: dict[str, Any], told: str | None
) -> None:
    path = folder(tmp_path)
    if told is None:
        check_memory("m", path, {**DUMMY, **arguments}, gpu)
    else:
        with pytest.raises(ModelTooLarge, match=f"^m does not fit: .*{told}"):
            check_memory("m", path, {**DUMMY, **arguments}, gpu)


@pytest.mark.parametrize(
    ("config", "arguments", "gib"),
    [
        ({}, {}, 16.0),  # as they are stored
        ({"torch_dtype": "float32"}, {}, 8.0),  # 32 bits are loaded as 16
        ({"torch_dtype": "float32"}, {"dtype": "float32"}, 16.0),
        ({"quantization_config": {"bits": 4}}, {}, 16.0),
        ({}, {"quantization": "bitsandbytes"}, 4.0),  # made while loading
    ],
)
def test_weights_are_counted_as_they_will_be_loaded(
    tmp_path: Path, config: dict[str, Any], arguments: dict[str, Any], gib: float
) -> None:
    need = need_of(folder(tmp_path, 16.0, **config), arguments)
    assert need is not None
    assert need.weights == gib * GIB


@pytest.mark.parametrize("indexed", [True, False])
def test_weights_that_are_there_twice_are_counted_once(tmp_path: Path, indexed: bool) -> None:
    path = folder(tmp_path)
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        with (path / name).open("wb") as file:
            file.truncate(GIB)
    if indexed:
        with (path / "adapter.safetensors").open("wb") as file:
            file.truncate(GIB)
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (path / "pytorch_model.bin").write_bytes(b"older")
    need = need_of(path, {})
    assert need is not None
    assert need.weights == 2 * GIB


def test_what_a_folder_does_not_tell_is_not_guessed(tmp_path: Path) -> None:
    assert need_of(tmp_path, {}) is None
    assert need_of(folder(tmp_path / "no weights"), {}) is None
    sliding = need_of(folder(tmp_path / "sliding", 1.0, sliding_window=4096), {})
    assert sliding is not None
    assert sliding.per_token == 0


async def test_an_engine_says_so_before_it_loads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "gpu_bytes", lambda: L4)
    path = folder(tmp_path)
    half = VllmEngine(lambda: ModelFiles(path), name="m", arguments=DUMMY, gpus=0.5)
    with pytest.raises(ModelTooLarge, match="larger share"):
        await half.start()
    on_a_cpu = VllmEngine(lambda: ModelFiles(path), name="m", arguments=DUMMY)
    on_a_cpu.check_fit(path)


def test_the_largest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_asked", lambda what, form: ["81559", " 24564", "[N/A]"])
    assert gpus.gpu_bytes() == 81559 << 20
    monkeypatch.setattr(gpus, "_asked", lambda what, form: [])
    assert gpus.gpu_bytes() == 0
