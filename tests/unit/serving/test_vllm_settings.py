"""vLLM's arguments and failures, as far as they are ours: nothing here needs vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from patchwork_serving.components.vllm_arguments import gpus_of, vllm_arguments
from patchwork_serving.components.vllm_engine import VllmEngine, _completed, _without_values
from patchwork_serving.components.vllm_loading import Loaded, _explained, _first_error, command_line
from patchwork_serving.components.vllm_plugin import WATCHED
from patchwork_serving.errors import ConfigError, GpuMissing, ModelCorrupt, ModelTooLarge, SetupError
from patchwork_serving.models.registry import ModelFiles

WORKER_LOG = """ERROR 2026-11-27 05:00:00 Worker vllm.v1.executor: WorkerProc failed to start.
Traceback (most recent call last):
  File "worker.py", line 1, in load
torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
ERROR 2026-11-27 05:00:01 EngineCore vllm.v1.engine: EngineCore failed to start.
Traceback (most recent call last):
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
"""


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"max_model_len": "4096"}, "max_model_len: must be int"),  # YAML quotes
        ({"tensor_parallel_size": True}, "must be int"),  # bool is an int to Python
        ({"max_num_seqs": 0}, "at least 1"),
        ({"gpu_memory_utilization": 1.5}, "between 0 and 1"),
        ({"max-model-len": 4096}, "underscores"),  # as the command line writes it
        ({"port": 8000}, "no server is started"),
        ({"data_parallel_size": 2}, "replicas of the component"),
        ({"served_model_name": "x"}, "cannot be set"),
    ],
)
def test_an_argument_that_cannot_be_meant_names_its_place(args: Mapping[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.m\.engine_args\..*{match}"):
        vllm_arguments("m", args)


def test_arguments_that_only_vllm_knows_are_left_to_it() -> None:
    given = {"max_model_len": 4096, "gpu_memory_utilization": 1, "kv_sharing_fast_prefill": True}
    assert vllm_arguments("m", given) == given


def test_an_engine_occupies_as_many_gpus_as_it_spreads_over() -> None:
    assert [gpus_of({}), gpus_of({"tensor_parallel_size": 2, "pipeline_parallel_size": 2})] == [1.0, 4.0]


def test_a_share_of_a_gpu_is_a_share_of_its_memory() -> None:
    assert _completed({}, None, 0.5)["gpu_memory_utilization"] == 0.46
    assert "gpu_memory_utilization" not in _completed({}, None, 1.0)  # vLLM's own
    assert _completed({"gpu_memory_utilization": 0.3}, None, 0.5)["gpu_memory_utilization"] == 0.3


def test_several_gpus_share_one_engine_in_processes_of_its_own() -> None:
    completed = _completed({}, None, 2.0)
    assert (completed["tensor_parallel_size"], completed["distributed_executor_backend"]) == (2, "mp")
    assert "distributed_executor_backend" not in _completed({}, None, 1.0)


def test_order_and_prefixes_are_asked_for_and_slots_are_sequences() -> None:
    completed = _completed({}, 5, 0.0)
    assert (completed["scheduling_policy"], completed["enable_prefix_caching"]) == ("priority", True)
    engine = VllmEngine(lambda: ModelFiles(Path()), name="m", arguments={"max_num_seqs": 7}, slots=None)
    assert (completed["max_num_seqs"], engine.slots) == (5, 7)


def test_the_command_line_is_that_of_vllms_own_server() -> None:
    line = command_line(
        Path("/m"), "name",
        {"max_model_len": 64, "enforce_eager": True, "enable_prefix_caching": False, "dtype": None, "rope": {"a": 1},
         "tool_call_parser": "hermes"},
    )  # fmt: skip
    assert line[4:] == [
        "--disable-log-stats", "--max-model-len", "64", "--enforce-eager", "--no-enable-prefix-caching", "--rope", '{"a": 1}',
        "--tool-call-parser", "hermes", "--enable-auto-tool-choice",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "words", "error"),
    [
        ("ValueError", "No available memory for the cache blocks.", ModelTooLarge),
        ("ValueError", "To serve at least one request (8192), 0.7 GiB KV cache is needed", ModelTooLarge),
        ("ValueError", "Free memory on device (2/80 GiB) is less than desired GPU memory utilization", ModelTooLarge),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", ModelTooLarge),
        ("RuntimeError", "Failed to infer device type", GpuMissing),
        ("RuntimeError", "No CUDA GPUs are available", GpuMissing),
        ("ValidationError", "max_model_len (9) is greater than the derived", ConfigError),
        ("SafetensorError", "header too large", SetupError),
    ],
)
def test_a_start_that_failed_is_told_by_its_cause(kind: str, words: str, error: type[Exception]) -> None:
    told = _explained("m", kind, words)
    assert type(told) is error
    assert words[:20] in str(told)


def test_the_cause_is_what_was_logged_first(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    assert _first_error(log) is None
    log.write_text(WORKER_LOG)
    assert _first_error(log) == ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
    assert Loaded(None, None, log).why_it_died() == "it ran out of memory"


def test_why_an_engine_died_does_not_quote_what_it_was_asked(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    log.write_text("KeyError: 'my secret prompt'\n")
    assert Loaded(None, None, log).why_it_died() == "KeyError"


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (
            "1 validation error:\\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'a list', 'input': 'secret } prompt'}",
            "1 validation error:\\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'a list'}",
        ),
        ("top_p must be in (0, 1]. (parameter=top_p, value=3.0)", "top_p must be in (0, 1]. (parameter=top_p)"),
    ],
)
def test_a_refusal_does_not_quote_the_value(told: str, kept: str) -> None:
    assert _without_values(f'{{"error":{{"message":"{told}","code":400}}}}'.encode()) == (
        f'{{"error":{{"message":"{kept}","code":400}}}}'.encode()
    )


async def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    engine = VllmEngine(lambda: ModelFiles(tmp_path / "m.gguf"), name="m", arguments={})
    with pytest.raises(ModelCorrupt, match="Hugging Face folder"):
        await engine.start()


def test_an_engine_of_vllm_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """The plugin, in a child as vLLM starts its own; the parent is killed."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    # a plugin of ours that is not asked to watch must not: that one stays
    for watched, ends in (("1", True), (None, False)):
        environment = {name: value for name, value in os.environ.items() if name != WATCHED}
        parent = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            env={**environment, **({WATCHED: watched} if watched else {})},
        )
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        parent.stdout.close()
        gone, alive = psutil.wait_procs([child], timeout=5.0 if ends else 0.5)
        assert (bool(gone), bool(alive)) == (ends, not ends)
        for process in alive:
            process.kill()


PARENT = """
import multiprocessing, time
from patchwork_serving.components.vllm_plugin import end_with_parent

def engine():
    end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=engine).start()
    time.sleep(60)
"""
