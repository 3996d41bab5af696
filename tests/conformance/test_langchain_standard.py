"""LangChain's own standard suites end the same, test by test, on a user's class and on the class that a swap generates from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("langchain_tests")

HERE = Path(__file__).parent
Outcomes = dict[str, dict[str, str]]  #: suite -> test -> passed, failed or skipped
#: suite -> tests that pass on the original; those for pictures, files and snapshots are skipped on both sides
SUITES = {
    "TestModelUnit": 8, "TestModel": 39, "TestEmbeddingsUnit": 3, "TestEmbeddings": 5, "TestStore": 25, "TestRetriever": 5,
    "TestToolUnit": 6, "TestTool": 5, "TestAsyncTool": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All suites, run once in a process of their own: their plugins and fixtures are none of ours."""
    report = tmp_path_factory.mktemp("standard") / "report.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:codspeed", "--benchmark-disable",
        "-o", "addopts=", "-W", "ignore", f"--junitxml={report}", str(HERE / "suites.py"),
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=180, check=False
    )
    assert ran.returncode in (0, 1), ran.stdout[-3000:]  # 1: some tests failed, and then on both sides
    found: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        suite = case.attrib["classname"].rpartition(".")[2]
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found.setdefault(suite, {})[case.attrib["name"]] = outcome
    return found


@pytest.mark.parametrize("suite", SUITES)
def test_a_standard_suite_ends_the_same_on_the_generated_class(outcomes: Outcomes, suite: str) -> None:
    original, swapped = outcomes[suite], outcomes[f"{suite}Swapped"]
    assert swapped == original
    assert Counter(original.values())["passed"] >= SUITES[suite]
