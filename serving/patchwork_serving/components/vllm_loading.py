"""vLLM in this process: its arguments, how it is started, and what to tell when it does not start. Nothing of vLLM is imported before."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.vllm_plugin import WATCHED
from patchwork_serving.errors import ConfigError, GpuMissing, MissingExtra, ModelTooLarge, ServingError, SetupError

log = logging.getLogger(__name__)

#: Where releases of vLLM keep what is used of it; the first place that has it counts.
_PARSERS = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
_APPS = ("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server")
_STATES = ("vllm.entrypoints.launchers.api_server.app_state", "vllm.entrypoints.openai.api_server")

_NO_MEMORY = re.compile(
    r"out of memory|no available memory|kv cache is needed|memory utilization|larger than the (maximum|available)",
    re.IGNORECASE,
)
_NO_DEVICE = re.compile(r"failed to infer device|no cuda gpus|no nvidia driver|libcuda|device type", re.IGNORECASE)
_RAISED = re.compile(r"^(?:\S+\.)?(\w+(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)
_TOLD_LENGTH = 400


@dataclass(slots=True, eq=False)
class Told:
    """One call inside vLLM, as far as its engine told of it."""

    call: EngineCall
    prompt_tokens: int = 0
    output_tokens: int = 0
    died: bool = False
    outputs: list[Any] = field(default_factory=list)  #: what vLLM's handlers read of the engine, one for each prompt

    async def end(self) -> None:
        """Abort what still runs. vLLM leaves a stream that nobody reads any more to the garbage collector."""
        for outputs in self.outputs:
            with contextlib.suppress(RuntimeError):  # its reader is at it just now, and ends it
                await outputs.aclose()

    def generated(self, tokens: int) -> None:
        if tokens > 0:
            self.output_tokens += tokens
            self.call.progress.generated(tokens)

    def used(self, prompt_tokens: int) -> None:
        """One of the call's prompts is done."""
        self.prompt_tokens += prompt_tokens
        self.call.progress.used(self.prompt_tokens, self.output_tokens)


#: The call on whose behalf vLLM's own request handlers run.
TOLD: ContextVar[Told | None] = ContextVar("patchwork_vllm_call", default=None)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A started engine and vLLM's own OpenAI application over it."""

    llm: Any
    app: Any
    log_file: Path | None = field(repr=False)

    @property
    def errored(self) -> bool:
        return bool(self.llm.errored)

    def why_it_died(self) -> str:
        """The kind of error, without its words: those of a call that failed could quote it."""
        found = _first_error(self.log_file)
        if found is None:
            return "its process ended without a word"
        kind, words = found
        return "it ran out of memory" if _NO_MEMORY.search(words) or kind == "OutOfMemoryError" else kind


def command_line(model: Path, name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The arguments as vLLM's own server takes them, so that it reads and checks them itself."""
    line = ["--model", str(model), "--served-model-name", name, "--disable-log-stats"]
    for key, value in arguments.items():
        option = key.replace("_", "-")
        match value:
            case None:
                continue
            case bool():
                line.append(f"--{option}" if value else f"--no-{option}")
            case dict() | list():
                line += [f"--{option}", json.dumps(value)]
            case _:
                line += [f"--{option}", str(value)]
    if arguments.get("tool_call_parser") and "enable_auto_tool_choice" not in arguments:
        line.append("--enable-auto-tool-choice")
    return line


async def load(model: Path, name: str, arguments: Mapping[str, Any], in_thread: Callable[..., Any]) -> Loaded:
    """Start the engine: minutes. ``in_thread`` runs what blocks. Raises ServingError with what stood in the way."""
    log_file = _prepare_environment()
    args, llm = await in_thread(_start, command_line(model, name, arguments), name, log_file)
    try:
        tasks = await llm.get_supported_tasks()
        app = _found("build_app", _APPS)(args, tasks, llm.model_config)
        await _found("init_app_state", _STATES)(llm, app.state, args, tasks)
        app.state.server = _NoServer()
    except BaseException:
        await in_thread(unload, Loaded(llm, None, log_file))
        raise
    return Loaded(llm, app, log_file)


def unload(loaded: Loaded) -> None:
    """Stop the engine's processes. Blocks until they are gone."""
    loaded.llm.shutdown()


class _NoServer:
    """vLLM tells its HTTP server to end when the engine is dead; here the replica's health check does."""

    should_exit = False


def _start(line: list[str], name: str, log_file: Path | None) -> tuple[Any, Any]:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise MissingExtra(
            f"{name} runs on vLLM, which cannot be imported ({error.name or type(error).__name__}); "
            "install it: pip install 'patchwork-rag[gpu]'"
        ) from error

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> None:
            raise ConfigError(f"models.{name}.engine_args: vLLM says: {message[:_TOLD_LENGTH]}")

    args = _found("make_arg_parser", _PARSERS)(Parser()).parse_args(line)
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except Exception as error:  # pydantic's, and whatever a model's configuration raises
        raise _explained(name, type(error).__name__, _last_line(error)) from error
    try:
        return args, _told_class().from_vllm_config(config, disable_log_stats=True)
    except Exception as error:  # of a process: its own words are in its log
        raise _explained(name, *(_first_error(log_file) or (type(error).__name__, _last_line(error)))) from error


def _explained(name: str, kind: str, words: str) -> ServingError:
    told = f"{kind}: {words[:_TOLD_LENGTH]}"
    if kind == "OutOfMemoryError" or _NO_MEMORY.search(words):
        return ModelTooLarge(
            f"{name} does not fit into the memory that vLLM may use ({told}); lower max_model_len or max_num_seqs, give it more "
            "(gpu_memory_utilization, num_gpus, tensor_parallel_size), or take a smaller or quantised model"
        )
    if _NO_DEVICE.search(words):
        return GpuMissing(
            f"{name}: vLLM finds no GPU that it can use ({told}); run nvidia-smi, or choose another engine"
        )
    if kind in ("ValidationError", "ValueError"):
        return ConfigError(f"models.{name}: vLLM refuses the model with these engine_args ({told})")
    return SetupError(f"vLLM cannot start {name} ({told}); its log has more")


def _told_class() -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    class ToldLLM(AsyncLLM):  # type: ignore[misc]
        """vLLM's engine, which gives each request the priority of its call, whatever the request says, and tells the call of its tokens."""

        def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncIterator[Any]:
            told = TOLD.get()
            if told is None:
                outputs: AsyncIterator[Any] = super().generate(prompt, sampling_params, request_id, **kwargs)
                return outputs
            kwargs["priority"] = told.call.priority
            mine = _telling(super().generate, prompt, sampling_params, request_id, kwargs, told)
            told.outputs.append(mine)
            return mine

    return ToldLLM


async def _telling(
    generate: Any, prompt: Any, params: Any, request_id: str, kwargs: Mapping[str, Any], told: Told
) -> AsyncIterator[Any]:
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.exceptions import EngineDeadError

    final_only = params.output_kind == RequestOutputKind.FINAL_ONLY
    if final_only and params.n == 1:
        # an answer that is wanted whole tells how far it is, too; of what comes, only the end is given on
        params.output_kind = RequestOutputKind.CUMULATIVE
    deltas = params.output_kind == RequestOutputKind.DELTA
    outputs = generate(prompt, params, request_id, **kwargs)
    seen = 0
    try:
        async for output in outputs:
            tokens = sum(len(one.token_ids) for one in output.outputs)
            told.generated(tokens if deltas else tokens - seen)
            seen = tokens
            if output.finished:
                told.used(len(output.prompt_token_ids or ()))
            if output.finished or not final_only:
                yield output
    except EngineDeadError:
        told.died = True
        raise
    finally:
        await outputs.aclose()


def _found(name: str, places: tuple[str, ...]) -> Any:
    for place in places:
        try:
            return getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError):
            continue
    raise SetupError(
        f"this release of vLLM has no {name} where it is looked for ({', '.join(places)}); install vLLM 0.32 or 0.33"
    )


# -- what its processes said ---------------------------------------------------------------------------------------------


_LOG_PREFIX = "patchwork-vllm-"


@functools.cache
def _log_folder() -> tempfile.TemporaryDirectory[str]:
    """Until this process ends: its own vLLM logger goes on writing to the file of the engine that was started last."""
    return tempfile.TemporaryDirectory(prefix=_LOG_PREFIX, ignore_cleanup_errors=True)


def _prepare_environment() -> Path | None:
    """Read by vLLM when it is imported and by the processes that it starts."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault(
        "VLLM_WORKER_MULTIPROC_METHOD", "spawn"
    )  # this process has threads, which a fork would not copy
    os.environ[WATCHED] = "1"
    known = os.environ.get("VLLM_LOGGING_CONFIG_PATH")
    folder = Path(_log_folder().name)
    if known and Path(known).parent != folder:
        return None  # the user's own
    errors = folder / f"errors-{next(_numbers)}.log"
    config = errors.with_suffix(".json")
    config.write_text(json.dumps(_log_config(errors)), encoding="utf-8")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(config)
    return errors


_numbers = itertools.count()


def _log_config(errors: Path) -> dict[str, Any]:
    """As vLLM logs by default, and errors into a file besides: the cause of a failed start is known only to the process that failed."""
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    plain = {"format": "%(levelname)s %(asctime)s %(processName)s %(name)s: %(message)s"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": plain},
        "handlers": {
            "stream": {"class": "logging.StreamHandler", "formatter": "plain", "level": level, "stream": "ext://sys.stderr"},
            "errors": {"class": "logging.FileHandler", "formatter": "plain", "level": "ERROR", "filename": str(errors), "delay": True},
        },
        "loggers": {"vllm": {"handlers": ["stream", "errors"], "level": level, "propagate": False}},
    }  # fmt: skip


def _first_error(log_file: Path | None) -> tuple[str, str] | None:
    """(kind, words) of the first exception in the log: those after it are about its process having ended."""
    if log_file is None or not log_file.is_file():
        return None
    found = _RAISED.search(log_file.read_text(encoding="utf-8", errors="replace"))
    return None if found is None else (found[1], found[2].strip())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return lines[-1].partition(" [type=")[0] if lines else "no reason given"
