"""What tests of real deployments share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.deployed import Home, a_home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with a_home() as made:
        yield made


_installing: list[subprocess.Popen[bytes]] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Phoenix takes minutes to install: that begins now, out of the way of the tests before its own, which waits for it."""
    if (
        any(item.path.name == "test_telemetry_phoenix.py" for item in session.items)
        and not session.config.option.collectonly
    ):
        command = ["nice", "-n", "15", sys.executable, str(Path(__file__).with_name("phoenix_server.py"))]
        _installing.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        )


def pytest_sessionfinish() -> None:
    for process in _installing:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
