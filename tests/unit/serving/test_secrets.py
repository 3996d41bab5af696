"""A chain that holds secrets in every place where people put them, and everything of ours that is shown, written or logged about it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kit.planning import component, profile
from patchwork_adapters import codec, redaction
from patchwork_adapters.errors import AdapterError
from patchwork_adapters.inspection import inspect_chain
from patchwork_adapters.record import ImportRecord, RecordingTransport
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import find_leaves
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.resources import Resources
from patchwork_serving import cli_inspect
from patchwork_serving.applying import apply_plan
from patchwork_serving.assign import assign
from patchwork_serving.cli import run
from patchwork_serving.cli_faults import report
from patchwork_serving.components.host import error_frame
from patchwork_serving.config import Config, load_config
from patchwork_serving.errors import ConfigError, UsageError
from patchwork_serving.gateway.faults import fault_of, log_unexpected
from patchwork_serving.models.registry import ResolvedModel
from patchwork_serving.release import ComponentSpec, Release
from patchwork_serving.telemetry import RequestTelemetry, open_tracing

MARK = "Zq81xK"  #: in every secret below
CHAIN = f'''
import os, httpx, openai, psycopg
from langchain_core.documents import Document
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

hosted = ChatOpenAI(model="gpt-x", api_key="sk-{MARK}-explicit", base_url="https://ann:pw-{MARK}@api.example/v1",
    default_headers={{"X-Api-Key": "header-{MARK}"}}, openai_proxy="http://u:proxy-{MARK}@proxy.example:3128")
by_environment = OpenAIEmbeddings(model="embed-x")
raw = openai.OpenAI(api_key="sk-{MARK}-raw", default_headers={{"Authorization": "Bearer bearer-{MARK}"}})
session = httpx.Client(auth=("ann", "basic-{MARK}"), proxy="http://u:second-{MARK}@proxy.example:3128")


class Mine(BaseChatModel):
    """Of the user's own, with a client's habits."""
    api_key: str = "plain-{MARK}-key"
    token: SecretStr = SecretStr("token-{MARK}-secret")
    attempts: int = 0

    @property
    def _llm_type(self):
        return "mine"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.attempts += 1
        raise ValueError(f"attempt {{self.attempts}} {{os.getpid()}}: {{self.api_key}} refused, {{self.token.get_secret_value()}} too")


class Rows(BaseRetriever):
    connection: str = "postgresql+psycopg://rag:db-{MARK}@db.example/rag"
    conninfo: str = "host=db.example password=info-{MARK} dbname=rag"

    def _get_relevant_documents(self, query, *, run_manager):
        raise psycopg.OperationalError(f"connection failed: {{self.conninfo}} or {{self.connection}}")


mine, rows = Mine(), Rows()


def ask(text):
    if text == "raw":
        return raw.chat.completions.create(model="gpt-x", messages=[])
    if text == "http":
        return session.get("https://api.example")
    return (hosted if text == "hosted" else mine).invoke(text)


chain = rows | RunnableLambda(str) | RunnableLambda(ask) | RunnableLambda(lambda text: by_environment.embed_query(text))
'''


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    monkeypatch.setenv("OPENAI_API_KEY", f"environment-{MARK}")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "chain_of_secrets.py"
    file.write_text(CHAIN, encoding="utf-8")
    yield str(file)
    sys.modules.pop("chain_of_secrets", None)


def released(target: str, find_model: Any = lambda name, kind: None) -> Release:
    loaded = load_target(parse_target(target))
    walk = find_leaves(loaded.chain, loaded.module, loaded.root)
    assigned = assign(walk.leaves, Config(), find_model)
    graph = inspect_chain(loaded.chain, loaded.module, target=target, root=loaded.root)
    return Release("app", target, "", graph, assigned.specs)


def test_graph_tables_diagrams_and_releases_have_none(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    release = released(target)
    classes = {c.cls.rpartition(".")[2] for c in release.graph.components}
    assert {"ChatOpenAI", "OpenAIEmbeddings", "Mine", "Rows"} <= classes
    assert any("HTTP client" in opaque.why for opaque in release.graph.opaque)
    cli_inspect._show(release.graph)
    shown = capsys.readouterr().out
    assert "Mine" in shown
    for text in (shown, cli_inspect.to_mermaid(release.graph), json.dumps(release.to_json()), repr(release)):
        assert MARK not in text


LEAF = f"""
import os
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda
from pydantic import SecretStr

class Mine(Embeddings):
    api_key, token = "plain-{MARK}-key", SecretStr("token-{MARK}-secret")

    def __init__(self):
        self.password, self.key = "self-{MARK}-word", SecretStr("held-{MARK}-secret")

    def embed_documents(self, texts):
        raise NotImplementedError

    def embed_query(self, text):
        raise ValueError(f"{{os.getpid()}}: {{self.password}} refused, {{self.key.get_secret_value()}} too, at https://a:in-{MARK}@host/")

mine = Mine()
chain = RunnableLambda(lambda text: mine.embed_query(text))
"""


def test_a_check_shows_how_errors_differ_and_nothing_of_the_keys_in_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaf_of_secrets.py").write_text(LEAF, encoding="utf-8")
    (tmp_path / "inputs.jsonl").write_text('"mine"\n', encoding="utf-8")
    assert (
        run(["check", str(tmp_path / "leaf_of_secrets.py"), "--inputs", str(tmp_path / "inputs.jsonl"), "--json"]) == 1
    )
    out = capfd.readouterr()
    assert "refused" in out.out
    assert MARK not in out.out + out.err


def test_a_module_that_fails_to_import_is_told_without_its_keys(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "failing_of_secrets.py"
    file.write_text(
        f'raise RuntimeError("cannot reach postgresql://rag:db-{MARK}@db/rag with key sk-{MARK}-abcdef")',
        encoding="utf-8",
    )
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text('"x"\n', encoding="utf-8")
    assert run(["check", str(file), "--inputs", str(inputs), "--verbose"]) == 2
    out = capfd.readouterr()
    assert "line 1: RuntimeError: cannot reach postgresql://***@db/rag with key ***" in out.err
    assert "Traceback" in out.err
    assert MARK not in out.out + out.err


def denied() -> openai.AuthenticationError:
    """As a server that quotes the key would have it; the request carries it in a header, and the proxy's in its URL."""
    request = httpx.Request(
        "POST", f"https://ann:pw-{MARK}@h/v1", headers={"authorization": f"Bearer environment-{MARK}"}
    )
    message = f"Error code: 401 - Incorrect API key provided: environment-{MARK}"
    return openai.AuthenticationError(message, response=httpx.Response(401, request=request), body=None)


@pytest.mark.parametrize("error", [
    denied(), UsageError(f"https://ann:pw-{MARK}@h/v1 is no URL of a model"), AdapterError(f"password=info-{MARK} is wrong"),
    KeyError(f"sk-{MARK}-abcdef"),
])  # fmt: skip
def test_neither_http_bodies_nor_logs_nor_the_command_line_have_any(
    error: Exception, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        fault = fault_of(raised)
        with caplog.at_level(logging.DEBUG):
            log_unexpected(fault, raised, "run")
            frame = error_frame(raised)
        report(raised, verbose=True)
    out = capsys.readouterr()
    assert type(error).__name__ in out.err
    assert MARK not in json.dumps(fault.body("run")) + caplog.text + out.err + out.out
    assert type(error).__name__ == frame.kind
    assert MARK not in frame.message


def test_spans_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    memory = InMemorySpanExporter()
    tracing = open_tracing("app", "ingress", exporters=[memory])
    spec = ComponentSpec("llm", "llm", "external", "external", model="gpt-x")
    request = RequestTelemetry(tracing, {"llm": spec})
    with (
        pytest.raises(openai.AuthenticationError),
        request.observe(LeafCall("llm", "mod.llm", "_generate", codec.encode([]))),
    ):
        raise denied()
    tracing.provider.force_flush()
    spans = memory.get_finished_spans()
    tracing.close()
    assert [span.attributes["error.type"] for span in spans if span.attributes] == ["AuthenticationError"]
    assert all(MARK not in span.to_json() for span in spans)


async def test_import_records_keep_errors_without_the_keys_in_them() -> None:
    call = LeafCall("own", "mine", "_generate", codec.encode([{}, [], {}]))

    class Failing:
        async def call(self, call: LeafCall) -> bytes:
            return codec.encode_outcome(denied())

        async def stream(self, call: LeafCall) -> Any:
            yield codec.encode_outcome("a chunk")
            yield codec.encode_outcome(denied())

    record = ImportRecord()
    transport = RecordingTransport(Failing(), record)  # type: ignore[arg-type]
    with pytest.raises(openai.AuthenticationError, match=MARK):  # the chain sees what was raised
        codec.decode_outcome(await transport.call(call))
    assert (
        len([frame async for frame in transport.stream(LeafCall("own", "mine", "_stream", call.payload, stream=True))])
        == 2
    )
    assert MARK.encode() not in record.to_bytes()
    kept = record.get(call)
    assert kept is not None
    with pytest.raises(openai.AuthenticationError, match=r"Incorrect API key provided: \*\*\*") as caught:
        codec.decode_outcome(kept[0])
    assert caught.value.status_code == 401


@pytest.mark.parametrize(
    "url", [f"https://ann:pw-{MARK}@models.example/v1", f"https://models.example/v1?key=sk-{MARK}-key"]
)
def test_a_key_in_a_servers_url_is_refused_before_a_release_or_a_plan_is_made(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    config = tmp_path / "patchwork.yaml"
    config.write_text(f"models: {{gpt-x: {{source: '{url}', engine: external}}}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="models.gpt-x.source: .* without a user") as caught:
        load_config(config)
    assert MARK not in str(caught.value)
    profile(component("llm", cpu={1: 0.1})).save(tmp_path / "profile.json")
    assert run(["plan", target, "--config", str(config), "--profile", str(tmp_path / "profile.json")]) == 2
    told = capsys.readouterr()
    assert MARK not in told.out + told.err
    assert "models.gpt-x.source" in told.err


def test_plans_and_the_releases_that_they_become_have_none(target: str, tmp_path: Path) -> None:
    models = {"gpt-x": ResolvedModel("gpt-x", "llm", "external", "https://models.example/v1")}
    release = released(target, lambda name, kind: models.get(name))
    assert {"base_url": "https://models.example/v1"} in [dict(spec.engine_args) for spec in release.components]
    placed = [spec.id for spec in release.components if spec.way != "external"]
    measured = profile(*(component(name, cpu={1: 0.1}) for name in placed), chain=target)
    made = make_plan(measured, Resources.machine(cpus=8, gpus=0))
    made.save(tmp_path / "plan.json")
    planned = apply_plan(release, made)
    for text in ((tmp_path / "plan.json").read_text(encoding="utf-8"), json.dumps(planned.to_json()), repr(made)):
        assert MARK not in text
        assert placed[0] in text
