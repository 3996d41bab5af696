"""What llama-cpp-python's arguments are in the OpenAI protocol; pure. What has no counterpart raises Unmapped with its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from patchwork_adapters.leaves.huggingface_fields import Unmapped

#: ``Llama.create_completion`` and ``create_chat_completion`` where the caller says nothing.
_COMPLETION = {"max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "repeat_penalty": 1.0}
_CHAT = {"temperature": 0.2, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "repeat_penalty": 1.0}
_SAME = ("temperature", "top_p", "min_p", "top_k", "presence_penalty", "frequency_penalty", "seed", "logit_bias")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "suffix": (None, ""), "echo": (None, False), "logprobs": (None, False), "typical_p": (1.0,), "tfs_z": (1.0,), "mirostat_mode": (0,),
    "mirostat_tau": (5.0,), "mirostat_eta": (0.1,), "stopping_criteria": (None,), "logits_processor": (None,), "model": (None,),
    "functions": (None,), "function_call": (None,), "top_logprobs": (None,),
}  # fmt: skip
#: Arguments of ``Llama`` that change how fast it goes, not what comes out.
_RUNNING = frozenset(
    {
        *(
            "n_batch",
            "n_ubatch",
            "n_threads",
            "n_threads_batch",
            "n_gpu_layers",
            "main_gpu",
            "tensor_split",
            "split_mode",
        ),
        *(
            "use_mmap",
            "use_mlock",
            "offload_kqv",
            "flash_attn",
            "numa",
            "verbose",
            "seed",
            "logits_all",
            "f16_kv",
            "n_parts",
        ),
    }
)
_MAPPED = frozenset({"n_ctx", "rope_freq_base", "rope_freq_scale"})
_ANY_SEED = (None, -1, 0xFFFFFFFF)


def refuse_other_models(arguments: Mapping[str, Any]) -> None:
    """Unmapped when arguments of ``Llama`` make another model of the file than an engine would."""
    changing = sorted(
        name for name, value in arguments.items() if name not in _RUNNING | _MAPPED and value not in (None, False)
    )
    if changing:
        raise Unmapped(f"llama.cpp: {', '.join(changing)}")


def engine_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine must do alike; 0 leaves it to the model (of the context's length: to ``patchwork.yaml``)."""
    options: dict[str, Any] = {"n_ctx": int(arguments["n_ctx"])} if arguments.get("n_ctx") else {}
    for name in ("rope_freq_base", "rope_freq_scale"):
        if arguments.get(name):
            options[name] = float(arguments[name])
    return options


def completion_body(prompt: str, seed: int | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The request that ``Llama(seed=seed)(prompt, **arguments)`` would be."""
    return {"prompt": prompt, **_sampling(seed, {**_COMPLETION, **arguments})}


def chat_body(messages: Sequence[Any], seed: int | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The request that ``Llama(seed=seed).create_chat_completion(messages, **arguments)`` would be.

    A tool that must be called is, as there, an answer in the form of its arguments: see :func:`forced_tool`.
    """
    asked = {**_CHAT, **arguments}
    tools, choice = asked.pop("tools", None), asked.pop("tool_choice", None)
    wanted = asked.pop("response_format", None)
    body = {"messages": list(messages), **_sampling(seed, asked)}
    if isinstance(choice, dict):
        schema = _named(tools or (), choice)["function"].get("parameters") or {"type": "object"}
        wanted = {"type": "json_schema", "json_schema": {"name": "arguments", "schema": schema}}
    elif tools:
        body["tools"] = list(tools)
        if choice:
            body["tool_choice"] = choice
    if wanted:
        body["response_format"] = wanted
    return body


def forced_tool(arguments: Mapping[str, Any]) -> str | None:
    """Name of the one tool whose arguments the answer is."""
    choice = arguments.get("tool_choice")
    return str(choice["function"]["name"]) if isinstance(choice, dict) else None


def _named(tools: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]) -> Mapping[str, Any]:
    name = choice["function"]["name"]
    found = next((tool for tool in tools if tool["function"]["name"] == name), None)
    if found is None:
        raise ValueError(f"Tool choice '{name}' not found in tools.")  # as llama-cpp-python says it
    return found


def calling(name: str, reply: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer that is the arguments of a tool, as a call of it."""
    choice = reply["choices"][0]
    text = choice["message"].get("content") or ""
    call = {"id": _call_id(name, reply), "type": "function", "function": {"name": name, "arguments": text}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {**reply, "choices": [{**choice, "message": message, "finish_reason": "tool_calls"}]}


def calling_frames(name: str, frames: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """As :func:`calling`, of the frames of a stream."""
    opened = False
    for frame in frames:
        choice = frame["choices"][0]
        function: dict[str, Any] = {"arguments": choice["delta"].get("content") or ""}
        call: dict[str, Any] = {"index": 0, "function": function}
        if not opened:
            call |= {"id": _call_id(name, frame), "type": "function"}
            function["name"] = name
        delta = {"role": "assistant", "content": None, "tool_calls": [call]}
        reason = choice.get("finish_reason") and "tool_calls"
        opened = True
        yield {**frame, "choices": [{**choice, "delta": delta, "finish_reason": reason}]}


def _call_id(name: str, reply: Mapping[str, Any]) -> str:
    return f"call__0_{name}_{reply.get('id', '')}"


def _sampling(seed: int | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    asked = dict(arguments)
    body = {name: value for name in _SAME if (value := asked.pop(name, None)) is not None}
    if body.get("seed", seed) not in _ANY_SEED:
        body["seed"] = body.get("seed", seed)
    # the engines have different words for it, and ignore each other's
    body["repeat_penalty"] = body["repetition_penalty"] = asked.pop("repeat_penalty")
    limit = asked.pop("max_tokens", None)
    if limit is not None and limit > 0:  # otherwise: until the context is full
        body["max_tokens"] = limit
    if stop := asked.pop("stop", None):
        body["stop"] = [stop] if isinstance(stop, str) else list(stop)
    grammar = asked.pop("grammar", None)
    if grammar is not None:
        body["grammar"] = grammar if isinstance(grammar, str) else grammar._grammar
    unknown = sorted(name for name, value in asked.items() if value not in _NEUTRAL.get(name, ()))
    if unknown:
        raise Unmapped(f"sampling: {', '.join(unknown)}")
    return body
