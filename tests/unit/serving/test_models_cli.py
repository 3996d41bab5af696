"""``patchwork models`` without loading a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xllamacpp

from patchwork_serving.cli import run
from patchwork_serving.components.llamacpp_engine import LlamaCppOptions
from patchwork_serving.models.server import ServeOptions


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_list_tells_what_is_here_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert {name: model["ready"] for name, model in models.items()} == {
        "all-minilm-l6-v2": True,
        "smollm2-135m-instruct": False,
    }
    assert models["smollm2-135m-instruct"]["license"] == "Apache-2.0"


def test_list_shows_the_models_of_the_folders_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "patchwork.yaml").write_text("models: {theirs: {source: 'https://models.invalid/v1'}}")
    assert run(["models", "list"]) == 0
    assert "theirs" in capsys.readouterr().out


def test_pulling_an_unknown_model_is_one_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "pull", "gpt-9"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: unknown model: 'gpt-9'")
    assert "smollm2-135m-instruct" in lines[0]


def test_pulling_the_embedder_checks_it_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "pull", "all-minilm-l6-v2", "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["models"][0]["ready"]


def test_a_bad_option_is_exit_2() -> None:
    assert run(["models", "serve", "--parallel", "0"]) == 2


def test_a_lone_sequence_is_served_as_llama_cpps_own_server_does_it() -> None:
    own = xllamacpp.CommonParams()
    lone = LlamaCppOptions(**ServeOptions((), parallel=1, threads=4).engine_args()["llm"]).resolved(cores=4)
    assert (lone.slots, lone.shards, lone.threads) == (1, 1, 4)
    assert lone.flash_attention is (
        own.flash_attn_type != xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    assert (lone.cache_prompt, lone.cache_ram_mib > 0) == (own.cache_prompt, own.cache_ram_mib > 0)
