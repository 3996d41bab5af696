"""``patchwork simulate`` as a person uses it: documents in, figures or one line of error out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.planning import component, profile
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Goal
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving import cli

RAG = profile(
    component("retriever", cpu={1: 0.02, 8: 0.08}), component("llm", gpu={1: 0.5, 8: 0.8}, visits=1.3), chain="rag.py"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a profile, a plan made from it, and a trace."""
    RAG.save(tmp_path / "profile.json")
    make_plan(RAG, Resources.machine(cpus=8, gpus=2), Goal(slo_s=4.0)).save(tmp_path / "plan.json")
    lines = [json.dumps({"timestamp": 100 * i + 10 * (i % 3)}) for i in range(50)]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(*options: str, profile: str = "profile.json", plan: str = "plan.json") -> int:
    return cli.run(["simulate", "--plan", plan, "--profile", profile, *options])


def test_one_policy_gives_its_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--arrivals", "poisson:5", "--policy", "fifo", "--requests", "100", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["simulated"], found["chain"], found["requests"], found["slo_s"]) == (True, "rag.py", 100, 4.0)
    [row] = found["results"]
    assert row["policy"] == "fifo"
    assert row["offered"] == 100 == row["attained"] + row["missed"] + row["refused"]
    assert set(row["components"]) == {"retriever", "llm"}
    assert row["latency_s"]["p50"] >= 0.52
    assert found["unloaded"]["missed_share"] == 0.0
    whole = next(one for one in row["predictions"] if (one["site"], one["loop"]) == ("retriever", 0))
    assert whole["judged"] == 100
    assert row["latency_s"]["p50"] / 2 < whole["actual_s"] < row["latency_s"]["p99"]
    assert whole["predicted_over_actual"] == pytest.approx(whole["predicted_s"] / whole["actual_s"])


def test_equal_seeds_give_equal_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(seed: str) -> str:
        assert (
            simulate("--arrivals", "gamma:9:2", "--policy", "least_slack", "--requests", "80", "--seed", seed, "--json")
            == 0
        )
        return capsys.readouterr().out

    assert printed("3") == printed("3")
    assert printed("3") != printed("4")


def test_all_policies_are_compared_side_by_side(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--arrivals", "trace.jsonl", "--rate", "15") == 0
    shown = capsys.readouterr().out
    assert "simulated: 50 requests at 15/s" in shown
    for name in ("fifo", "edf", "paper", "least_slack", "ideal", "retriever"):
        assert name in shown
    predicted = shown[shown.index("remaining time under least_slack") :].splitlines()
    assert predicted[1].split() == ["from", "requests", "predicted", "was", "ratio", "off", "by"]
    assert predicted[2].split()[0] == "retriever"


def test_what_is_promised_and_the_steps_of_engines_can_be_tried(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tuple(
        {"n_in": n_in, "n_out": n_out, "batch": batch, "seconds": 0.002 + batch * n_in * 2e-5 + 0.004 * n_out}
        for n_in, n_out, batch in [(1000, 1, 1), (1000, 1, 8), (1000, 64, 1), (1000, 64, 8)]
    )
    points = (Point(1, 0.3), Point(64, 1.0))
    measured = Measured("gpu", points, cpus=0.0, gpus=1.0, rows=rows)
    known = profile(ComponentProfile("llm", 1.0, (measured,), prompt_tokens=1000, output_tokens=64), chain="rag.py")
    known.save(here / "tokens.json")
    make_plan(known, Resources.machine(cpus=8, gpus=1), Goal(slo_s=1.2)).save(here / "tokens-plan.json")

    def found(*options: str) -> dict[str, float]:
        arrivals = (
            "--arrivals",
            "poisson:35",
            "--slo",
            "600ms",
            "--requests",
            "1500",
            "--policy",
            "least_slack",
            "--json",
        )
        assert simulate(*arrivals, *options, profile="tokens.json", plan="tokens-plan.json") == 0
        row: dict[str, float] = json.loads(capsys.readouterr().out)["results"][0]
        return row

    usual = found()
    assert found("--target-share", "0.7")["refused"] < usual["refused"]
    assert found("--step-tokens", "256")["attained"] > usual["attained"]
    assert simulate("--arrivals", "poisson:5", "--step-tokens", "256") == 2
    assert "--step-tokens: no component" in capsys.readouterr().err


def test_a_trace_keeps_its_own_rate_and_the_command_line_may_set_the_slo(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("--arrivals", "trace.jsonl", "--policy", "edf", "--slo", "700ms", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["offered_per_s"] == pytest.approx(10.0, rel=0.01)
    assert found["slo_s"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--arrivals", "poisson:5", "--policy", "lifo"], "there are fifo, edf, paper, least_slack, ideal"),
        (["--arrivals", "poisson:"], "'poisson:' is not poisson:RATE"),
        (["--arrivals", "poisson:-1"], "is not poisson:RATE with numbers above 0"),
        (["--arrivals", "gamma:5"], "is not gamma:RATE:CV"),
        (["--arrivals", "gamma:5:nan"], "is not gamma:RATE:CV"),
        (["--arrivals", "nowhere.csv"], "nor a trace file that exists"),
        (["--arrivals", "plan.json"], "plan.json is no trace that can be read"),
        (["--arrivals", "poisson:5", "--rate", "0"], "--rate: 0 must be more than 0"),
        (["--arrivals", "poisson:5", "--slo", "soon"], "--slo"),
        (["--arrivals", "poisson:5", "--requests", "1"], "--requests: 1 must be from 2"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert simulate(*options) == 2
    out = capsys.readouterr()
    assert told in out.err
    assert out.out == ""


def test_a_profile_without_a_component_of_the_plan_names_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Profile("rag.py", RAG.components[:1]).save(here / "half.json")
    assert simulate("--arrivals", "poisson:5", profile="half.json") == 2
    assert "has no component llm, which the plan of rag.py needs" in capsys.readouterr().err


def test_a_document_that_is_none_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--arrivals", "poisson:5", plan="trace.jsonl") == 2
    assert "trace.jsonl" in capsys.readouterr().err
