"""What a model's name means, on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchwork_serving.config import ModelConfig, Paths
from patchwork_serving.errors import ModelUnknown
from patchwork_serving.models import registry
from patchwork_serving.models.packaged import MINILM, SMOLLM2
from patchwork_serving.models.registry import can_host, known_models, resolve


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


@pytest.mark.parametrize(
    "name",
    [
        "smollm2-135m-instruct",
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",  # the hub's name: users' code holds it
        "packaged:smollm2-135m-instruct",
    ],
)
def test_a_packaged_llm_is_found_under_each_of_its_names(name: str, paths: Paths) -> None:
    model = resolve(name, {}, paths)
    assert (model.name, model.kind, model.engine, model.license) == (SMOLLM2.name, "llm", "llamacpp", "Apache-2.0")
    assert model.path is None  # nothing was fetched into this cache


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_packaged_embedder_is_here_without_fetching(name: str, paths: Paths) -> None:
    model = resolve(name, {}, paths)
    assert (model.name, model.kind, model.engine) == (MINILM.name, "embedder", "onnx")
    assert model.path is not None
    assert model.path.is_file()
    assert model.tokenizer is not None
    assert model.tokenizer.is_file()


def test_a_gguf_file_is_an_llm_under_its_whole_path(tmp_path: Path, paths: Paths) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    model = resolve(str(file), {}, paths)
    assert (model.name, model.kind, model.engine, model.path, model.size) == (str(file), "llm", "llamacpp", file, 4)


@pytest.mark.parametrize(
    ("architecture", "kind", "engine"),
    [
        ("BertModel", "embedder", "onnx"),
        ("BertForSequenceClassification", "reranker", "reranker"),
        (None, "embedder", "onnx"),
    ],
)
def test_a_folder_with_an_onnx_graph_is_what_its_config_says(
    architecture: str | None, kind: str, engine: str, tmp_path: Path, paths: Paths
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"x")
    if architecture:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    model = resolve(str(tmp_path), {}, paths)
    assert (model.kind, model.engine, model.path) == (kind, engine, tmp_path / "onnx" / "model.onnx")


def test_a_hugging_face_llm_folder_needs_a_gpu(tmp_path: Path, paths: Paths) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelUnknown, match="need a GPU, or vLLM built for CPUs"):
        resolve(str(tmp_path), {}, paths, gpu=False)
    assert resolve(str(tmp_path), {}, paths, gpu=True).engine == "vllm"
    asked = {"m": ModelConfig(source=str(tmp_path), engine="vllm")}
    assert resolve("m", asked, paths, gpu=False).engine == "vllm"


def test_whether_there_is_a_gpu_is_looked_up(tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    monkeypatch.setattr(registry, "_gpus", lambda: ("NVIDIA H100, 81559 MiB",))
    assert resolve(str(tmp_path), {}, paths).engine == "vllm"


def test_an_unknown_name_tells_what_exists_and_how_to_add_it(paths: Paths) -> None:
    with pytest.raises(ModelUnknown) as caught:
        resolve("gpt-9", {"mine": ModelConfig(source="http://localhost:1/v1")}, paths)
    message = str(caught.value)
    assert "all-minilm-l6-v2, mine, smollm2-135m-instruct" in message
    assert "patchwork.yaml" in message


def test_a_hub_model_that_was_not_fetched_asks_to_be(paths: Paths) -> None:
    with pytest.raises(ModelUnknown, match="models pull hf:org/name"):
        resolve("hf:org/name", {}, paths)


def test_a_hub_model_with_an_engine_is_known_before_it_is_fetched(paths: Paths) -> None:
    model = resolve("judge", {"judge": ModelConfig(source="hf:org/name", engine="reranker")}, paths)
    assert (model.kind, model.engine, model.path) == ("reranker", "reranker", None)


def test_an_entry_of_the_configuration_overrides_a_packaged_model(tmp_path: Path, paths: Paths) -> None:
    file = tmp_path / "better.gguf"
    file.write_bytes(b"GGUF")
    models = {"smollm2-135m-instruct": ModelConfig(source=str(file), engine_args={"n_ctx": 4096})}
    model = resolve("smollm2-135m-instruct", models, paths)
    assert (model.name, model.path, model.engine_args) == ("smollm2-135m-instruct", file, {"n_ctx": 4096})


def test_an_entry_may_only_add_arguments(paths: Paths) -> None:
    models = {"all-minilm-l6-v2": ModelConfig(engine_args={"threads": 2})}
    assert resolve("all-minilm-l6-v2", models, paths).engine_args == {"threads": 2}


def test_an_external_server_is_known_but_not_hosted(paths: Paths) -> None:
    models = {"theirs": ModelConfig(source="https://models.invalid/v1")}
    assert resolve("theirs", models, paths).engine == "external"
    assert not can_host("theirs", models, paths)
    assert can_host("smollm2-135m-instruct", models, paths)
    assert not can_host("gpt-9", models, paths)


def test_known_models_are_the_packaged_ones_and_the_configured(paths: Paths) -> None:
    models = {"broken": ModelConfig(source="/no/such.gguf"), "theirs": ModelConfig(source="https://models.invalid/v1")}
    assert [model.name for model in known_models(models, paths)] == [
        "all-minilm-l6-v2",
        "smollm2-135m-instruct",
        "theirs",
    ]
