"""Settings: command line over environment over ``patchwork.yaml`` over default, resolved once; a bad value names its place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from patchwork_scheduler.model import TARGET_SHARE
from patchwork_scheduler.policies import DEFAULT_POLICY, policy_names
from patchwork_serving.errors import ConfigError

CONFIG_NAME = "patchwork.yaml"

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def parse_seconds(value: object) -> object:
    """``"500ms"``, ``"2s"``, ``"1.5m"`` or a number, as seconds; anything else is left for pydantic to refuse."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a duration; write for example 500ms, 2s or 1m")
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(ms|s|m|h|)\s*", value)
        if match is None:
            raise ValueError(f"{value!r} is not a duration; write for example 500ms, 2s or 1m")
        return float(match[1]) * _UNITS_S[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0, allow_inf_nan=False)]


def _known_policy(name: str) -> str:
    if name not in policy_names():
        raise ValueError(f"no policy is called {name!r}; there are {', '.join(policy_names())}")
    return name


PolicyName = Annotated[str, AfterValidator(_known_policy), Field(json_schema_extra={"enum": list(policy_names())})]


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are kept. ``home`` holds what runs (state, logs, Postgres data), ``cache`` what can be made again."""

    home: Path
    cache: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Paths:
        """``PATCHWORK_HOME`` and ``PATCHWORK_CACHE``, or the platform's own folders."""
        home = env.get("PATCHWORK_HOME") or platformdirs.user_data_dir("patchwork")
        cache = env.get("PATCHWORK_CACHE") or platformdirs.user_cache_dir("patchwork")
        return cls(Path(home).expanduser().absolute(), Path(cache).expanduser().absolute())

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def postgres(self) -> Path:
        return self.home / "postgres"

    @property
    def models(self) -> Path:
        return self.cache / "models"

    @property
    def records(self) -> Path:
        return self.cache / "records"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Strict):
    """One entry of ``models``: adds a model name or overrides a known one."""

    source: str | None = Field(
        None,
        description="packaged:NAME, a local file or folder, hf:ORG/NAME on a hub, or the base URL of an OpenAI-compatible server",
    )
    engine: (
        Literal["llamacpp", "onnx", "openvino", "vllm", "reranker", "transformers", "external", "emulated"] | None
    ) = None
    engine_args: dict[str, Any] = Field(default_factory=dict)

    @field_validator("source")
    @classmethod
    def _holds_no_key(cls, source: str | None) -> str | None:
        """It is written into releases and shown. What else a URL may hold would not reach the server: only its path is added to."""
        if source is not None and source.startswith(("http://", "https://")):
            parts = urlsplit(source)
            if parts.username is not None or parts.query or parts.fragment:
                raise ValueError(
                    "write the server's base URL without a user, a password or a query: the key of your code's client goes along anyway"
                )
        return source


class EmulateConfig(_Strict):
    """A component's own replies, in the time that a profile says."""

    profile: str | None = Field(None, description="name of a bundled profile, or a JSON file with kind and rows")
    rows: list[dict[str, float]] | None = Field(
        None, description="instead of a profile: {batch, seconds} of whole batches"
    )
    slower: float = Field(1.0, gt=0, description="multiplies the seconds")


class ComponentConfig(_Strict):
    """Overrides for one component, by id as ``patchwork inspect`` shows it."""

    way: Literal["own", "protocol", "engine", "local"] | None = Field(
        None, description="how the leaf is run; local: stay in the orchestrator"
    )
    replicas: int | None = Field(None, ge=0)
    min_replicas: int | None = Field(
        None, ge=0, description="the autoscaler keeps so many; 0: none while nothing calls it"
    )
    max_replicas: int | None = Field(None, ge=1, description="the autoscaler starts no more than these")
    num_cpus: float | None = Field(None, ge=0)
    num_gpus: float | None = Field(None, ge=0)
    max_batch: int | None = Field(None, ge=1)
    max_wait_s: Seconds | None = None
    slots: int | None = Field(None, ge=1)
    emulate: EmulateConfig | None = Field(
        None,
        description="answer as it does, in the time that a profile says; for experiments, and everything it touches says so",
    )
    concurrency: int | None = Field(None, ge=1, description="calls in flight to an external API, per ingress replica")


class SloConfig(_Strict):
    """One class of ``slo``: what is promised to the requests that name it."""

    deadline: Seconds = Field(description="from the door to the whole answer, for example 2s")
    first_token: Seconds | None = Field(None, description="from the door to the first chunk of a stream")
    target_share: float = Field(TARGET_SHARE, ge=0, le=1, description="of the requests let in, to be in time")
    priority: int = Field(0, description="higher is let in longer under load")
    share: float = Field(0.0, ge=0, le=1, description="of what is let in, kept for this class whatever its priority")
    default: bool = Field(False, description="the class of requests that name none")


def _slo_form(value: object) -> str:
    return _CLASSES if isinstance(value, dict) else _DURATION


_DURATION, _CLASSES = "a duration", "classes"
SloName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
SloClasses = Annotated[dict[SloName, SloConfig], Field(min_length=1)]
Slo = Annotated[Annotated[Seconds, Tag(_DURATION)] | Annotated[SloClasses, Tag(_CLASSES)], Discriminator(_slo_form)]


def _plain_off(value: object) -> object:
    """YAML reads a bare ``off`` as false."""
    return "off" if value is False else value


class SchedulerConfig(_Strict):
    policy: PolicyName = Field(DEFAULT_POLICY, description="the order in which waiting calls are served")
    admission: Annotated[Literal["refuse", "hold", "off"], BeforeValidator(_plain_off)] = Field(
        "refuse",
        description="what happens to a request that is predicted to be late: refuse it with 429, hold it at the door, or let it in",
    )
    share_llm_calls: bool = Field(
        False, description="answer equal LLM calls with temperature 0 that are in flight by one of them"
    )
    calls_per_request: int | None = Field(
        None,
        ge=1,
        description="calls of one request under way at once, streams not counted; default: as many as its chain makes",
    )
    prefix_routing: bool = Field(
        True,
        description="prefer the replica of an LLM that has seen a prompt's beginning, by what that was measured to save",
    )


class StoreConfig(_Strict):
    recall_floor: float = Field(0.95, gt=0, le=1, description="below this recall@10, searches scan exactly")
    ef_search: int | None = Field(
        None, ge=1, le=1000, description="HNSW candidates per query; default: the smallest that reaches the floor"
    )
    pool_size: int = Field(4, ge=1, le=64, description="connections per retriever replica")


def _plain_on_or_off(value: object) -> object:
    """YAML reads ``on`` and ``off`` as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class AutoscaleConfig(_Strict):
    """Following the load (docs/planning.md)."""

    mode: Annotated[Literal["off", "advisory", "on", "ray"] | None, BeforeValidator(_plain_on_or_off)] = Field(
        None,
        description="advisory: only say what would be done; ray: Ray Serve's own autoscaler; default: advisory for a deployment with a "
        "plan, else off",
    )
    min: int = Field(1, ge=0, description="replicas of a component that says nothing of its own; 0: none while idle")
    max: int | None = Field(None, ge=1, description="replicas of a component that says nothing of its own")
    cpus: float | None = Field(
        None, ge=0, description="cores that all components together may use; default: the cluster's"
    )
    gpus: int | None = Field(None, ge=0, description="GPUs that all components together may use")
    utilisation: float = Field(
        0.75, ge=0.2, le=0.95, description="share of the capacity to use; the rest absorbs bursts"
    )
    settle_s: Seconds = Field(
        20.0, description="a component keeps what it was given for so long at least, or for three of its cold starts"
    )
    idle_s: Seconds = Field(120.0, description="without a call for so long, a component that may have none has none")
    every_s: Seconds = Field(2.0, description="how often to decide")
    ray: dict[str, Any] = Field(
        default_factory=dict,
        description="for mode ray: fields of Ray Serve's AutoscalingConfig, such as target_ongoing_requests",
    )


class GatewayConfig(_Strict):
    max_body_bytes: int = Field(4 * 1024 * 1024, gt=0)
    request_timeout_s: Seconds = 120.0
    max_batch_inputs: int = Field(256, ge=1)
    capture_content: bool = Field(
        False, description="let a client that asks (x-patchwork-trace: content) have prompts and documents in its trace"
    )


class Config(_Strict):
    """The whole of ``patchwork.yaml``."""

    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    slo: Slo | None = Field(
        None, description="deadline of a request, for example 2s; or classes by name, which requests choose from"
    )
    ingress_replicas: int = Field(1, ge=1)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    components: dict[str, ComponentConfig] = Field(default_factory=dict)
    scheduler: SchedulerConfig = SchedulerConfig()
    autoscale: AutoscaleConfig = AutoscaleConfig()
    store: StoreConfig = StoreConfig()
    gateway: GatewayConfig = GatewayConfig()
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="merged into Ray's runtime environment")
    env: dict[str, str] = Field(default_factory=dict, description="environment variables of the deployed processes")

    @property
    def slo_classes(self) -> Mapping[str, SloConfig]:
        """Empty when ``slo`` is a duration, or not given."""
        return self.slo if isinstance(self.slo, dict) else {}

    @property
    def default_slo(self) -> str | None:
        """Name of the class of requests that name none; None without classes."""
        classes = self.slo_classes
        marked = [name for name, slo in classes.items() if slo.default]
        return next(iter([*marked, *(["default"] if "default" in classes else classes)]), None)

    @property
    def slo_s(self) -> float | None:
        """What is promised to a request that names no class."""
        return self.slo_classes[self.default_slo].deadline if self.default_slo else _number(self.slo)

    @model_validator(mode="after")
    def _slo_makes_sense(self) -> Config:
        classes = self.slo_classes
        marked = [name for name, slo in classes.items() if slo.default]
        if len(marked) > 1:
            raise ValueError(f"slo: only one class can be the default, not {', '.join(marked)}")
        if len(classes) > 1 and not marked and "default" not in classes:
            raise ValueError(
                f"slo: which of {', '.join(classes)} is for requests that name none? Give it default: true"
            )
        shares = sum(slo.share for slo in classes.values())
        if shares > 1.0:
            raise ValueError(f"slo: the shares of the classes add up to {shares:g}; they can be 1 at most")
        limit = self.gateway.request_timeout_s
        for name, slo in classes.items():
            if slo.deadline > limit:
                raise ValueError(
                    f"slo.{name}.deadline is {slo.deadline:g} s, and no request runs longer than gateway.request_timeout_s, {limit:g} s"
                )
        return self


def _number(slo: object) -> float | None:
    return slo if isinstance(slo, float) else None


def config_schema() -> dict[str, Any]:
    """The published JSON Schema of ``patchwork.yaml``."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = CONFIG_NAME
    return schema


def load_config(path: Path | None, beside: Path | None = None) -> Config:
    """Read ``path``, or ``patchwork.yaml`` in the folder ``beside``, or defaults; ConfigError names file, key and remedy."""
    if path is None:
        candidate = None if beside is None else beside / CONFIG_NAME
        if candidate is None or not candidate.is_file():
            return Config()
        path = candidate
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give an existing file to --config") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if document is not None and not isinstance(document, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of settings, not {type(document).__name__}")
    try:
        config = Config.model_validate(document or {})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_fault(error)}") from error
    folder = path.absolute().parent
    models = {name: _emulating(name, _beside(model, folder), folder) for name, model in config.models.items()}
    components = {name: _timed(name, component, folder) for name, component in config.components.items()}
    return config.model_copy(update={"models": models, "components": components})


def _emulating(name: str, model: ModelConfig, folder: Path) -> ModelConfig:
    """With the rows of its profile, so that no other machine needs the file."""
    if model.engine != "emulated":
        return model
    from patchwork_serving.components.emulated_profiles import emulation

    args = emulation(model.engine_args, folder, f"patchwork.yaml: models.{name}.engine_args")
    return model.model_copy(update={"engine_args": args})


def _timed(name: str, component: ComponentConfig, folder: Path) -> ComponentConfig:
    if component.emulate is None:
        return component
    from patchwork_serving.components.emulated_profiles import emulation

    wish = component.emulate.model_dump(exclude_none=True)
    known = {
        key: value
        for key, value in emulation(wish, folder, f"patchwork.yaml: components.{name}.emulate").items()
        if key in EmulateConfig.model_fields
    }
    return component.model_copy(update={"emulate": EmulateConfig(**known)})


def _beside(model: ModelConfig, folder: Path) -> ModelConfig:
    """``./`` and ``../`` in a file mean the file's own folder, wherever the command is run."""
    if model.source is None or not model.source.startswith(("./", "../")):
        return model
    return model.model_copy(update={"source": str((folder / model.source).resolve())})


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    where = _where(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where!r}; `patchwork version --schema` prints the keys that exist"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    told = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {told}{more}" if where else f"{told}{more}"


def _where(place: Sequence[int | str]) -> str:
    """The key as it is written in the file: pydantic adds which form of ``slo`` it took the value for."""
    if place[:1] == ("slo",) and place[1:2] in ((_DURATION,), (_CLASSES,)):
        place = (place[0], *place[2:])
    return ".".join(str(part) for part in place if part != "[key]")
