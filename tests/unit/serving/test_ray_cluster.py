"""How what we start of Ray shares the machine's cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from patchwork_serving.ray_cluster import let_compute_finish

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """Tells the policy of a child of its own for every line that it reads."""
    program = (
        "import subprocess, sys\n"
        "for _ in sys.stdin:\n"
        "    subprocess.run([sys.executable, '-c', 'import os; print(os.sched_getscheduler(0), flush=True)'], check=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def policy_below(child: subprocess.Popen[str]) -> int:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return int(child.stdout.readline())


def test_what_starts_below_does_not_interrupt_what_computes(child: subprocess.Popen[str]) -> None:
    let_compute_finish(child.pid)
    assert os.sched_getscheduler(child.pid) == os.SCHED_BATCH
    assert policy_below(child) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_policy_that_somebody_chose_stays(child: subprocess.Popen[str]) -> None:
    os.sched_setscheduler(child.pid, os.SCHED_IDLE, os.sched_param(0))
    let_compute_finish(child.pid)
    assert policy_below(child) == os.SCHED_IDLE


def test_where_it_is_forbidden_all_stays_as_it_is(
    child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    let_compute_finish(child.pid)
    assert policy_below(child) == os.SCHED_OTHER
