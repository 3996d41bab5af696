"""OpenTelemetry in one process: a provider of our own, configured by the standard ``OTEL_*`` variables.

The global provider is left alone: the user's module may set one up for its own spans. Without an exporter nothing is exported, and only
spans of requests whose client asked for them are recorded at all.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler, _get_from_env_or_default
from opentelemetry.trace import Tracer

from patchwork_adapters.redaction import redacted
from patchwork_serving.errors import ConfigError, MissingExtra
from patchwork_serving.telemetry import names
from patchwork_serving.telemetry.collector import Collector, RecordWanted

logger = logging.getLogger(__name__)

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURE_ON = {"true", "span_only", "span_and_event"}
_CAPTURE_OFF = {"", "false", "no_content", "event_only"}
_SAMPLERS = {
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
}  # fmt: skip
DEFAULT_SERVICE = "patchwork"
CLOSE_TIMEOUT_S = 3.0


def exporter_names(env: Mapping[str, str]) -> tuple[str, ...]:
    """What ``OTEL_TRACES_EXPORTER`` asks for; unset, ``otlp`` when an OTLP endpoint is named and nothing otherwise."""
    chosen = env.get("OTEL_TRACES_EXPORTER", "").strip()
    if chosen:
        return tuple(name for name in (part.strip().lower() for part in chosen.split(",")) if name not in ("", "none"))
    named = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return ("otlp",) if named else ()


def check_environment(env: Mapping[str, str] = os.environ) -> None:
    """Refuse ``OTEL_*`` values that we cannot honour; ConfigError names the variable. For the command line, before anything starts."""
    for name in exporter_names(env):
        if name not in ("otlp", "console"):
            raise ConfigError(f"OTEL_TRACES_EXPORTER: {name!r} is not supported; use otlp, console or none")
    protocol_variable, protocol = _protocol(env)
    if protocol not in ("http/protobuf", "grpc"):
        raise ConfigError(f"{protocol_variable}: {protocol!r} is not supported; use http/protobuf")
    for variable in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        endpoint = env.get(variable, "")
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"{variable}: give a URL that starts with http:// or https://")
    sampler = env.get("OTEL_TRACES_SAMPLER", "parentbased_always_on").lower()
    if sampler not in _SAMPLERS:
        raise ConfigError(f"OTEL_TRACES_SAMPLER: {sampler!r} is unknown; use one of {', '.join(sorted(_SAMPLERS))}")
    if env.get(CAPTURE_VARIABLE, "").lower() not in _CAPTURE_ON | _CAPTURE_OFF:
        raise ConfigError(f"{CAPTURE_VARIABLE}: use NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT")


def captures_content(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for prompts and documents in every trace."""
    return env.get(CAPTURE_VARIABLE, "").lower() in _CAPTURE_ON


def forwarded_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The ``OTEL_*`` variables, to hand to processes that do not inherit this environment (a cluster elsewhere)."""
    return {name: value for name, value in env.items() if name.startswith("OTEL_")}


@dataclass(frozen=True, slots=True)
class Tracing:
    """The tracer of one process. Close it before the process ends, or spans that wait for export are lost."""

    tracer: Tracer
    provider: TracerProvider
    collector: Collector
    exporting: bool  #: whether spans leave this process
    capture_content: bool = False  #: prompts and documents in every trace

    def flush(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Send what waits; false when that took longer than ``timeout_s``."""
        return _within(timeout_s, self.provider.force_flush)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what waits and stop; gives up after ``timeout_s`` when the backend does not answer. Idempotent."""
        _within(timeout_s, self.provider.shutdown)


def open_tracing(app: str, process: str, exporters: Sequence[SpanExporter] | None = None) -> Tracing:
    """Tracing for this process, from the environment; never raises: what cannot be set up is logged once and left out.

    ``app`` and ``process`` (``ingress``, or a component's id) become resource attributes. ``exporters`` replace those of the environment.
    """
    chosen = _exporters_from_environment() if exporters is None else list(exporters)
    collector = Collector()
    inner: Sampler = _get_from_env_or_default() if chosen else ALWAYS_OFF
    # the collector comes first: a processor added earlier sees a span before exporters can delay it
    provider = TracerProvider(
        sampler=RecordWanted(inner, collector), resource=_resource(app, process), shutdown_on_exit=False
    )
    provider.add_span_processor(collector)
    for exporter in chosen:
        provider.add_span_processor(_processor(exporter))
    tracer = provider.get_tracer("patchwork", _version())
    return Tracing(tracer, provider, collector, bool(chosen), captures_content())


def _processor(exporter: SpanExporter) -> SpanProcessor:
    return BatchSpanProcessor(exporter)


def _exporters_from_environment() -> list[SpanExporter]:
    exporters = []
    for name in exporter_names(os.environ):
        try:
            exporters.append(ConsoleSpanExporter() if name == "console" else _otlp_exporter())
        except Exception as error:  # noqa: BLE001 telemetry cannot hurt: serving goes on without this exporter
            logger.warning("no trace export to %s: %s", name, redacted(str(error)))
    return exporters


def _otlp_exporter() -> SpanExporter:
    _, protocol = _protocol(os.environ)
    if protocol == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # type: ignore[import-not-found, unused-ignore]
                OTLPSpanExporter as GrpcExporter,
            )
        except ImportError as error:
            raise MissingExtra(
                "OTLP over gRPC needs the package opentelemetry-exporter-otlp-proto-grpc; install it, "
                "or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
            ) from error
        exporter: SpanExporter = GrpcExporter()
        return exporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _protocol(env: Mapping[str, str]) -> tuple[str, str]:
    """The variable that decides the protocol, and its value."""
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if env.get(variable):
            return variable, env[variable].strip().lower()
    return "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"


def _resource(app: str, process: str) -> Resource:
    attributes: dict[str, str | int] = {names.APP: app, names.PROCESS: process, "process.pid": os.getpid()}
    # given attributes win over the environment's, so the service name is given only where the environment has none
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        attributes[SERVICE_NAME] = DEFAULT_SERVICE
    return Resource.create(attributes)


def _version() -> str:
    try:
        return version("patchwork-rag")
    except Exception:  # noqa: BLE001 an unpacked source tree has no metadata; a version is not worth a failure
        return "0"


def _within(timeout_s: float, action: object) -> bool:
    """Run ``action`` in a thread and wait at most ``timeout_s``: an exporter may sit in a retry against a dead backend."""
    worker = threading.Thread(target=action, daemon=True)  # type: ignore[arg-type]
    worker.start()
    worker.join(timeout_s)
    return not worker.is_alive()
