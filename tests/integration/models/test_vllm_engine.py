"""What vLLM does beyond the suite of all engines (``tests/contracts/test_llm_engines.py``), on the CPU."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import pytest_asyncio

from kit.llm_engines import ON_A_CPU, hugging_face_folder, needs_vllm, vllm_engine
from kit.models import CHAT
from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_serving.components.continuous_host import ContinuousHost
from patchwork_serving.components.engine import EngineCall, MortalEngine, PriorityEngine
from patchwork_serving.components.vllm_engine import STEP_TOKENS, VllmEngine
from patchwork_serving.errors import ConfigError, EngineDied, ModelTooLarge, ServingError, SetupError
from patchwork_serving.models.registry import ModelFiles

pytestmark = [
    pytest.mark.vllm, pytest.mark.models, pytest.mark.slow, needs_vllm, pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # fmt: skip

CAPITAL = [{"role": "user", "content": "Name the capital city of France."}]
LONG = {"messages": [{"role": "user", "content": "Tell a very long story."}], "max_tokens": 400, "ignore_eos": True}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hugging_face_folder(tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    """With room for one sequence, so that vLLM's own queue shows; the last test kills it."""
    engine = vllm_engine(folder, slots=1, max_model_len=512, tool_call_parser="hermes")
    await engine.start()
    yield engine
    await engine.close()


def post(call_id: str = "1", stream: bool = False, ahead: int = 0, **body: Any) -> EngineCall:
    document = {"model": CHAT, "messages": CAPITAL, "temperature": 0, "max_tokens": 24, "stream": stream, **body}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(document)))
    return EngineCall(call_id, "l", "POST /v1/chat/completions", payload, stream=stream, priority=ahead)


async def answered(engine: VllmEngine, call: EngineCall) -> dict[str, Any]:
    [frame] = [frame async for frame in engine.generate(call)]
    response = decode_response(frame)
    assert response.status == 200, response.body
    document: dict[str, Any] = json.loads(response.body)
    return document


async def test_it_tells_what_runs(engine: VllmEngine) -> None:
    facts = engine.describe()
    assert (facts["device"], facts["dtype"], facts["context_tokens"], facts["slots"]) == ("cpu", "float32", 512, 1)
    assert (facts["scheduling_policy"], facts["prefix_caching"]) == ("priority", True)
    assert facts["start_s"] > 1.0
    assert facts["cache_tokens"] >= 512
    assert isinstance(engine, PriorityEngine)
    assert isinstance(engine, MortalEngine)


async def test_the_engines_queue_goes_by_the_calls_priority_and_not_by_the_clients(engine: VllmEngine) -> None:
    order: list[str] = []

    async def ask(call: EngineCall) -> None:
        await answered(engine, call)
        order.append(call.id)

    first = asyncio.create_task(ask(post("first", max_tokens=40, ignore_eos=True)))
    while not engine.processing():
        await asyncio.sleep(0.02)
    later = [
        asyncio.create_task(ask(post(name, ahead=ahead, **body)))
        for name, ahead, body in (("late", 2_000, {"priority": -5}), ("soon", 1_000, {}))
    ]
    await asyncio.gather(first, *later)
    assert order.index("soon") < order.index("late")


async def test_several_answers_to_one_question(engine: VllmEngine) -> None:
    whole = await answered(engine, post(n=2, temperature=1.0, seed=3))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert all(choice["message"]["content"] for choice in whole["choices"])


async def test_a_penalty_changes_what_is_said(engine: VllmEngine) -> None:
    story = [{"role": "user", "content": "Repeat the word ship."}]
    plain, varied = [
        (await answered(engine, post(messages=story, max_tokens=40, ignore_eos=True, frequency_penalty=value)))[
            "choices"
        ][0]["message"]["content"]
        for value in (0.0, 2.0)
    ]
    assert plain != varied


async def test_a_tool_that_must_be_called_is_called_with_its_schema(engine: VllmEngine) -> None:
    forced = {"type": "function", "function": {"name": "weather"}}
    reply = await answered(engine, post(tools=[WEATHER], tool_choice=forced, max_tokens=64))
    [call] = reply["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) >= {"city"}
    free = await answered(engine, post(tools=[WEATHER], tool_choice="auto"))  # needs the parser of engine_args
    assert free["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


async def test_an_answer_from_one_of_several_choices(engine: VllmEngine) -> None:
    reply = await answered(engine, post(structured_outputs={"choice": ["yes", "no"]}))
    assert reply["choices"][0]["message"]["content"] in ("yes", "no")


async def test_a_host_serves_it_in_the_order_of_deadlines(engine: VllmEngine) -> None:
    """The engine that runs is what the host takes: token by token, in priority order."""
    policy = policy_by_name("least_slack")
    host = ContinuousHost(engine, CallQueue(policy, max_batch=1), policy, replica="r")
    await host.start()
    host.check()
    assert host.engine.scheduling_policy == "priority"  # type: ignore[attr-defined]
    assert host._step_tokens == engine.step_tokens != STEP_TOKENS  # its own, not what was assumed before it ran


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_model_lenn": 512}, "max-model-lenn"),  # misspelt: vLLM's own parser tells
        ({"dtype": "float3"}, "dtype"),
        ({"max_model_len": 1_000_000}, "max_model_len"),  # more than the model was made for
    ],
)
async def test_arguments_that_vllm_refuses_are_told_before_anything_is_loaded(
    folder: Path, arguments: dict[str, Any], match: str
) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"engine_args.*{match}"):
        await vllm_engine(folder, slots=1, **arguments).start()
    assert time.monotonic() - began < 20


async def test_a_model_that_does_not_fit_says_so_and_leaves_nothing_behind(folder: Path) -> None:
    before = children()
    small = vllm_engine(folder, slots=1, max_model_len=2048, kv_cache_memory_bytes=8 * 1024 * 1024)
    with pytest.raises(ModelTooLarge, match="KV cache.*max_model_len"):
        await small.start()
    assert await gone(children() - before)


async def test_a_folder_with_broken_weights_says_so(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    with (folder / "model.safetensors").open("rb") as whole:
        (tmp_path / "model.safetensors").write_bytes(whole.read(1_000_000))  # a download that ended early
    broken = VllmEngine(lambda: ModelFiles(tmp_path), name="broken", arguments={**ON_A_CPU, "max_model_len": 256})
    with pytest.raises(SetupError, match="vLLM cannot start broken .*Safetensor"):
        await broken.start()


PARENT = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {path!r}
from kit.llm_engines import vllm_engine

async def main():
    await vllm_engine(Path({folder!r}), slots=1, max_model_len=256).start()
    print("started", flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_a_replica_that_is_killed_takes_its_engine_along(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(path=sys.path, folder=str(folder)))
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.DEVNULL}
    parent = await asyncio.create_subprocess_exec(sys.executable, str(script), **pipes)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"started\n"
    engines = set(psutil.Process(parent.pid).children(recursive=True))
    parent.kill()
    await parent.wait()
    assert len(engines) >= 2
    assert await gone(engines)


async def test_an_engine_that_dies_fails_its_calls_and_its_health(engine: VllmEngine) -> None:
    """Last, because it is the end of the module's engine."""
    running = engine.generate(post(stream=True, **LONG))
    await anext(running)
    waiting = asyncio.create_task(answered(engine, post("2")))
    await asyncio.sleep(0.5)
    engine.check()
    cores = [child for child in psutil.Process().children() if "EngineCore" in " ".join(child.cmdline())]
    assert len(cores) == 1
    processes = set(psutil.Process().children(recursive=True))
    os.kill(cores[0].pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match="died"):
        async for _ in running:
            pass
    with pytest.raises(EngineDied):
        await waiting
    with pytest.raises(EngineDied) as told:
        engine.check()
    assert (told.value.status, told.value.retryable) == (503, True)
    with pytest.raises(ServingError, match="died"):
        await answered(engine, post("3"))
    await engine.close()
    assert await gone({p for p in processes if "VLLM" in _name(p) or "EngineCore" in _name(p)})


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def gone(processes: set[psutil.Process], within_s: float = 20.0) -> bool:
    """All but multiprocessing's own resource trackers, which live as long as their parent."""
    left = {p for p in processes if "resource_tracker" not in _name(p)}
    _, alive = await asyncio.to_thread(psutil.wait_procs, left, within_s)
    return not alive
