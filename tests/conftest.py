"""Its place puts ``tests/`` on the import path, so that tests of all folders can import ``kit``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, _base
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# how fast examples are made and run depends on what else the machine does, which is not what properties test;
# the same examples each time, so that a change is red or green by what it changed
settings.register_profile("patchwork", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patchwork")


@pytest.fixture(autouse=True)
def waiting_as_before() -> Iterator[None]:
    """``install_portal`` changes how every future of the process is waited for; no test does for those after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Future, "result", Future.result)
        patch.setattr(ThreadPoolExecutor, "shutdown", ThreadPoolExecutor.shutdown)
        patch.setattr(_base, "_create_and_install_waiters", _base._create_and_install_waiters)
        yield


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """A real embedded Postgres with pgvector for the whole session, its data thrown away afterwards."""
    from patchwork_serving.store.embedded import EmbeddedPostgres

    # short, because socket paths are; open, because pytest's own folders keep the account that runs Postgres for root out
    with tempfile.TemporaryDirectory(prefix="pw-test-") as folder:
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder) / "pg")
        try:
            yield server.start()
        finally:
            server.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real clusters are tried twice: a start that is slowed by whatever else runs on the machine is not what they test."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.flaky(reruns=1))
