"""LangChain's ``VLLM``, which holds an engine in its process: its calls become completions of a shared one (design, D4).

The prompt goes out as it is, with the sampling parameters that the class would make; its constructor builds no engine in deployed
processes. How the engine runs (``tensor_parallel_size``, memory, dtype) is then ``patchwork.yaml``'s to say.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.leaves import langchain as _langchain  # noqa: F401  registers the base classes
from patchwork_adapters.leaves.deferred import Deferred, constructed_with
from patchwork_adapters.leaves.huggingface_calls import Methods, ask_all, register_like, text_of
from patchwork_adapters.leaves.huggingface_fields import Unmapped
from patchwork_adapters.leaves.spec import ConstructHook, Facts, register_construct_hook

_SENT = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens", "min_tokens",
    "seed", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
)  # fmt: skip
#: They have no influence on the one text that the class returns.
_MEANINGLESS = frozenset({"n", "logprobs", "prompt_logprobs", "detokenize", "skip_special_tokens"})
#: Engine arguments that change how fast it goes, not what comes out.
_RUNNING = frozenset(
    {
        *(
            "gpu_memory_utilization",
            "swap_space",
            "enforce_eager",
            "max_num_seqs",
            "max_num_batched_tokens",
            "enable_prefix_caching",
        ),
        *(
            "enable_chunked_prefill",
            "disable_log_stats",
            "distributed_executor_backend",
            "pipeline_parallel_size",
            "block_size",
        ),
        *("max_model_len", "cpu_offload_gb", "disable_custom_all_reduce"),
    }
)


def completion_body(model: str, prompt: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAI completion for ``LLM(model).generate(prompt, SamplingParams(**sampling))``. Raises Unmapped."""
    asked = dict(sampling)
    if asked.pop("use_beam_search", False):
        raise Unmapped("beam search")
    if asked.pop("lora_request", None) is not None:
        raise Unmapped("a LoRA adapter")
    if asked.pop("best_of", None) not in (None, 1):
        raise Unmapped("best_of")
    unknown = sorted(name for name in asked if name not in _SENT and name not in _MEANINGLESS)
    if unknown:
        raise Unmapped(f"sampling: {', '.join(unknown)}")
    body = {name: asked[name] for name in _SENT if asked.get(name) is not None}
    if body.get("top_k") in (-1, 0):  # vLLM's words for all of them
        del body["top_k"]
    return {"model": model, "prompt": prompt, **body}


def refuse_other_models(vllm_kwargs: Mapping[str, Any]) -> None:
    """Unmapped when arguments of the engine change what comes out of it."""
    changing = sorted(name for name in vllm_kwargs if name not in _RUNNING)
    if changing:
        raise Unmapped(f"vllm_kwargs: {', '.join(changing)}")


def _body(obj: Any, prompt: str, stop: Sequence[str] | None, call: Mapping[str, Any]) -> dict[str, Any]:
    """What ``VLLM._generate`` asks of its engine: the constructor's parameters below the call's; ``stop`` is the call's alone, as there."""
    return {"body": completion_body(obj.model, prompt, {**obj._default_params, **call, "stop": stop})}


def _facts(leaf: Any) -> Facts:
    _body(leaf, "", None, {})
    refuse_other_models(leaf.vllm_kwargs)
    return Facts(model=leaf.model)


def _methods(cls: type) -> Methods:
    def _generate(leaf: Bound, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return _result(ask_all(leaf, [_body(leaf.obj, prompt, stop, kwargs) for prompt in prompts]))

    async def _agenerate(
        leaf: Bound, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        calls = [leaf.aask("complete", _body(leaf.obj, prompt, stop, kwargs)) for prompt in prompts]
        return _result(await asyncio.gather(*calls))

    return {f.__name__: f for f in (_generate, _agenerate)}


def _result(replies: Sequence[Any]) -> Any:
    from langchain_core.outputs import Generation, LLMResult

    return LLMResult(generations=[[Generation(text=text_of(reply))] for reply in replies])


# ---- a constructor that builds no engine


def lazy_engine(class_name: str) -> Callable[[ModuleType], Undo]:
    """The class imports ``vllm.LLM`` in its constructor: for so long, that name means an engine that is built when it is used."""
    return constructed_with(class_name, "vllm", LLM=_deferred_engine)


def _deferred_engine(**arguments: Any) -> Deferred:
    return Deferred(functools.partial(_engine, arguments), settings=arguments)


def _engine(arguments: Mapping[str, Any]) -> Any:
    from vllm import LLM

    return LLM(**arguments)


_MODULE = "langchain_community.llms.vllm"
register_like("langchain_core.language_models.llms.BaseLLM", f"{_MODULE}.VLLM", _facts, "vllm", _methods)
register_construct_hook(ConstructHook(_MODULE, lazy_engine("VLLM")))
