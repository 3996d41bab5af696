"""``patchwork plan`` as a person uses it, and plans that ``patchwork deploy`` makes and applies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.planning import component, profile
from patchwork_adapters.graph import Component, ComponentGraph
from patchwork_scheduler.errors import InvalidInput, ProfileMismatch
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Plan
from patchwork_scheduler.profile_model import ComponentProfile, Profile
from patchwork_scheduler.resources import NodeType, Resources
from patchwork_serving import build_process, cli, cli_plan, deploy
from patchwork_serving.applying import apply_plan
from patchwork_serving.bundle import Bundle, version_of
from patchwork_serving.config import Paths
from patchwork_serving.progress import ProgressSink, step
from patchwork_serving.release import ComponentSpec, Release

RAG = profile(
    component("retriever", cpu={1: 0.02, 8: 0.08}), component("llm", gpu={1: 0.5, 8: 0.8}, visits=1.3), chain="rag.py"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``rag.py``, whose components are a retriever and an LLM, and its profile."""
    graph = ComponentGraph(
        "rag.py",
        "langchain",
        (
            Component("retriever", "retriever", "c", "engine", "pgvector"),
            Component("llm", "llm", "c", "protocol", "vllm"),
        ),
    )

    def inspect(request: build_process.BuildRequest, progress: ProgressSink, paths: Paths) -> ComponentGraph:
        with step(progress, "import", "importing rag.py"):
            return graph

    monkeypatch.setattr(build_process, "inspect", inspect)
    (tmp_path / "rag.py").write_text("")
    RAG.save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*options: str) -> int:
    return cli.run(["plan", "rag.py", "--profile", "profile.json", *options])


def test_the_plan_names_replicas_rate_bottleneck_and_what_one_more_would_buy(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--slo", "3s", "--cpus", "4", "--gpus", "2", "-o", "plan.json") == 0
    told = capsys.readouterr().out
    assert "limited by llm" in told
    assert "one more GPU: +7.69 requests/s" in told
    assert "one more CPU: no gain" in told
    written = Plan.load(here / "plan.json")
    assert written.component("llm").replicas == 2
    assert written.profile == RAG
    assert written.resources == Resources.machine(cpus=4, gpus=2)


def test_json_is_the_plan_and_choices_of_patchwork_yaml_are_kept(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "patchwork.yaml").write_text("components: {retriever: {replicas: 3, max_batch: 1}}")
    assert plan("--cpus", "4", "--gpus", "2", "--json") == 0
    (place,) = Plan.from_json(json.loads(capsys.readouterr().out)).component("retriever").placements
    assert (place.replicas, place.batch) == (3, 1)


def test_the_slo_is_that_of_patchwork_yaml_unless_the_command_line_gives_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "patchwork.yaml").write_text("slo: {fast: {deadline: 2s, default: true}, slow: {deadline: 60s}}")
    assert plan("--cpus", "4", "--gpus", "1", "--json") == 0
    assert Plan.from_json(json.loads(capsys.readouterr().out)).slo_s == 2.0
    assert plan("--cpus", "4", "--gpus", "1", "--slo", "3s", "--json") == 0
    assert Plan.from_json(json.loads(capsys.readouterr().out)).slo_s == 3.0


def test_replicas_take_the_shares_that_patchwork_yaml_gives_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "patchwork.yaml").write_text("components: {retriever: {num_cpus: 0.25}}")
    assert plan("--cpus", "1", "--gpus", "1", "--json") == 0
    (place,) = Plan.from_json(json.loads(capsys.readouterr().out)).component("retriever").placements
    assert place.cpus == 0.25


def test_on_a_machine_too_small_for_one_of_everything_cores_are_shared_and_that_is_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = dataclasses.replace(RAG, components=tuple(cpus(c, 1.5) for c in RAG.components))
    wide.save(here / "profile.json")
    assert plan("--cpus", "2", "--gpus", "1", "-o", "plan.json") == 0
    told = capsys.readouterr()
    assert "one replica of everything keeps 3 cores busy and there are 2: replicas share them" in told.err
    assert [p.cpus for c in Plan.load(here / "plan.json").components for p in c.placements] == [1.0, 1.0]


def cpus(component: ComponentProfile, count: float) -> ComponentProfile:
    return dataclasses.replace(
        component, measured=tuple(dataclasses.replace(m, cpus=count) for m in component.measured)
    )


def other_chain(folder: Path) -> None:
    profile(component("embedder", cpu={1: 0.1}), chain="other.py").save(folder / "profile.json")


def no_seconds(folder: Path) -> None:
    document = RAG.to_json()
    document["components"][0]["measured"][0]["points"][0]["seconds"] = -1
    (folder / "profile.json").write_text(json.dumps(document))


def unmeasured_batch(folder: Path) -> None:
    (folder / "patchwork.yaml").write_text("components: {llm: {max_batch: 5}}")


def unknown_resource(folder: Path) -> None:
    (folder / "nodes.json").write_text('{"nodes": [{"name": "n", "cpus": 4, "tpus": 8}]}')


def unmeasured_hardware(folder: Path) -> None:
    (folder / "nodes.json").write_text('{"nodes": [{"name": "n", "cpus": 4, "gpus": 1, "hardware": ["cpu", "h200"]}]}')


@pytest.mark.parametrize(
    ("given", "options", "code", "told"),
    [
        (None, ["--rate", "0", "--cpus", "4"], 2, "--rate: 0 must be more than 0"),
        (None, ["--slo", "0s", "--cpus", "4"], 2, "--slo"),
        (None, ["--cpus", "0", "--gpus", "0"], 2, "--cpus: 0"),
        (None, ["--max-utilisation", "1.5"], 2, "--max-utilisation: 1.5"),
        (None, ["--cpus", "4", "--gpus", "1", "-o", "no/such/plan.json"], 2, "--output: no/such/plan.json cannot be written (No such"),
        (None, ["--cpus", "4", "--gpus", "1", "-o", "."], 2, "--output: . cannot be written (Is a directory)"),
        (other_chain, ["--cpus", "4"], 2, "the profile is of another chain (other.py)"),
        (no_seconds, ["--cpus", "4"], 2, "components[0].measured[0].points[0].seconds is -1"),
        (unmeasured_batch, ["--cpus", "4", "--gpus", "1"], 2, "fixed.llm.batch is 5, which was not measured; measured were 1, 8"),
        (unknown_resource, ["--resources", "nodes.json"], 2, "nodes[0].tpus"),
        (unmeasured_hardware, ["--resources", "nodes.json"], 1, "'llm' was measured on gpu, but the nodes offer cpu, h200"),
        (None, ["--cpus", "4", "--gpus", "1", "--rate", "1000"], 1, "rate is 1000 requests/s, but these resources sustain"),
        (None, ["--cpus", "4", "--gpus", "1", "--slo", "100ms"], 1, "slo is 0.1 s, but one request"),
        (None, ["--cpus", "4"], 1, "'llm' was measured on gpu, but the nodes offer cpu" ),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_names_field_value_and_remedy(
    here: Path, given: Any, options: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if given is not None:
        given(here)
    assert plan(*options) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in error_line(shown.err)


def error_line(err: str) -> str:
    """What is told is one line, whatever progress comes before it."""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def started(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[deploy.DeployOptions]:
    """What deployments were started with, on a machine of four cores and two GPUs; nothing runs."""
    options: list[deploy.DeployOptions] = []

    def start(wanted: deploy.DeployOptions, progress: ProgressSink) -> SimpleNamespace:
        options.append(wanted)
        return SimpleNamespace(name="rag", url="http://127.0.0.1:1/rag", release=SimpleNamespace(emulated=()))

    monkeypatch.setattr(deploy, "start", start)
    monkeypatch.setattr(cli_plan, "available_cores", lambda: 4)
    monkeypatch.setattr(cli_plan, "gpu_names", lambda: ["one", "two"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return options


def test_deploy_makes_the_plan_that_plan_makes_shows_it_and_applies_it(
    here: Path, started: list[deploy.DeployOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "patchwork.yaml").write_text("{slo: 3s, components: {retriever: {replicas: 2}}}")
    assert plan("--rate", "5", "-o", "plan.json") == 0
    shown = capsys.readouterr().out
    assert cli.run(["deploy", "rag.py", "--profile", "profile.json", "--rate", "5", "--detach"]) == 0
    assert capsys.readouterr().out == f"{shown}rag is ready at http://127.0.0.1:1/rag\n"
    (options,) = started
    assert options.plan == Plan.load(here / "plan.json")
    assert (options.plan.slo_s, options.plan.component("retriever").replicas) == (3.0, 2)


def test_as_json_the_plan_that_deploy_made_is_an_event(
    started: list[deploy.DeployOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--profile", "profile.json", "--slo", "3s", "--detach", "--json"]
    assert cli.run(["deploy", "rag.py", *arguments]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["begin", "end", "plan", "ready"]
    (options,) = started
    assert options.slo_s == 3.0
    assert Plan.from_json(events[2]["plan"]) == options.plan


@pytest.mark.parametrize(
    ("given", "options", "code", "told"),
    [
        (None, ["--profile", "profile.json", "--plan", "plan.json"], 2, "give one of --plan and --profile"),
        (None, ["--rate", "5"], 2, "--rate: it is for a plan that deploy makes itself, from a --profile"),
        (None, ["--profile", "profile.json", "--rate", "0"], 2, "--rate: 0 must be more than 0"),
        (None, ["--profile", "nothing.json"], 2, "nothing.json"),
        (other_chain, ["--profile", "profile.json"], 2, "the profile is of another chain (other.py)"),
        (None, ["--profile", "profile.json", "--slo", "100ms"], 1, "slo is 0.1 s, but one request"),
        (None, ["--profile", "profile.json", "--rate", "1000"], 1, "rate is 1000 requests/s, but these resources sustain"),
    ],
)  # fmt: skip
def test_deploy_starts_nothing_without_the_plan_that_was_asked_for(
    here: Path, started: list[deploy.DeployOptions], given: Any, options: list[str], code: int, told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if given is not None:
        given(here)
    assert cli.run(["deploy", "rag.py", "--detach", *options]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in error_line(shown.err)
    assert started == []


def test_deploy_makes_no_plan_of_this_machine_for_a_cluster(
    started: list[deploy.DeployOptions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert cli.run(["deploy", "rag.py", "--profile", "profile.json", "--detach"]) == 2
    assert "`patchwork plan --resources`, and give the result as --plan" in capsys.readouterr().err
    assert started == []


def specs(**changes: Any) -> Release:
    components = (
        ComponentSpec("retriever", "retriever", "engine", "pgvector"),
        ComponentSpec("llm", "llm", "protocol", "vllm", "m", **changes),
        ComponentSpec("api", "llm", "external", "external", "gpt"),
    )
    return Release("rag", "rag.py", "", ComponentGraph("rag.py", "langchain", ()), components)


def made(cpus: float = 4, gpus: int = 2, **changes: Any) -> Plan:
    return dataclasses.replace(make_plan(RAG, Resources.machine(cpus=cpus, gpus=gpus)), **changes)


def test_a_plan_says_replicas_batches_cores_and_gpus_of_each_component() -> None:
    retriever, llm, api = apply_plan(specs(), made(profile=RAG)).components
    assert (llm.replicas, llm.slots, llm.num_gpus) == (
        2,
        8,
        1.0,
    )  # it batches inside: a batch is what may be in at once
    assert (retriever.max_batch, retriever.slots, retriever.num_gpus) == (
        made().component("retriever").placements[0].batch,
        None,
        0.0,
    )
    assert retriever.cost == {"sizes": (1.0, 8.0), "seconds": (0.02, 0.08)}
    assert api == specs().components[2]


def test_an_emulated_component_asks_for_no_gpu() -> None:
    llm = apply_plan(specs(emulate={"rows": []}), made()).components[1]
    assert (llm.replicas, llm.num_gpus, llm.max_batch, llm.slots) == (2, 0.0, 8, None)


def test_another_number_of_replicas_replaces_none_of_them() -> None:
    def versions(plan: Plan) -> list[str]:
        release = apply_plan(specs(), plan)
        return [version_of(spec, Bundle(release)) for spec in release.components]

    assert versions(made(gpus=2)) == versions(made(gpus=4))


def test_a_plan_of_another_chain_is_refused() -> None:
    other = make_plan(profile(component("embedder", cpu={1: 0.1})), Resources.machine(cpus=2))
    with pytest.raises(ProfileMismatch, match="it has embedder, the chain has llm, retriever"):
        apply_plan(specs(), other)


def test_a_component_on_two_sorts_of_hardware_is_refused_by_name() -> None:
    both = profile(component("retriever", cpu={1: 0.1}, gpu={1: 0.1}), component("llm", gpu={1: 0.01}))
    plan = make_plan(both, Resources((NodeType("c", cpus=2), NodeType("g", cpus=0, gpus=3, hardware=("gpu",)))))
    assert {p.hardware for p in plan.component("retriever").placements} == {"cpu", "gpu"}
    with pytest.raises(InvalidInput, match="'retriever' is placed on hardware of different sorts"):
        apply_plan(specs(), plan)


def test_a_plan_edited_by_hand_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = made().to_json()
    document["components"][1]["placements"][0]["replicas"] = 7
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert cli.run(["deploy", "x.py", "--plan", str(tmp_path / "plan.json")]) == 2
    told = capsys.readouterr().err.splitlines()[0]
    assert "'llm': capacity_per_s is 20, but its placements carry 70" in told
    assert "make the plan again with 'patchwork plan'" in told


def test_a_plan_and_its_profile_read_back_as_they_were(tmp_path: Path) -> None:
    plan = made(profile=RAG, resources=Resources.machine(cpus=4, gpus=2))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Profile.from_json(plan.to_json()["profile"]) == RAG
    release = apply_plan(specs(), plan)
    assert Release.from_json(json.loads(json.dumps(release.to_json()))).plan == plan.to_json()
