"""The Ray and the Postgres of one PATCHWORK_HOME. They outlive the command that started them; here they are found and ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from patchwork_serving import ray_cluster
from patchwork_serving.config import Paths
from patchwork_serving.state import OwnProcess


def running(paths: Paths) -> list[OwnProcess]:
    """Those that run, whoever started them."""
    found = []
    ray = ray_cluster.running(paths)
    if ray is not None:
        found.append(ray.process)
    pid = _postgres_pid(paths)
    if pid is not None:
        with suppress(ProcessLookupError):
            found.append(OwnProcess.of(pid, "postgres"))
    return found


def stop(paths: Paths, keep: frozenset[str] = frozenset()) -> None:
    """Stop Ray and Postgres, but for the roles in ``keep``. Idempotent."""
    try:
        if "ray" not in keep:
            ray_cluster.stop(paths)
            shutil.rmtree(ray_cluster.temp_dir(paths), ignore_errors=True)
    finally:
        if "postgres" not in keep:
            from patchwork_serving.store.embedded import EmbeddedPostgres

            EmbeddedPostgres(paths.postgres).stop()


def forget_dead(paths: Paths) -> None:
    """Remove what a Ray that no longer runs has left in files; Postgres looks after its own."""
    if ray_cluster.running(paths) is None:
        ray_cluster.stop(paths)
        shutil.rmtree(ray_cluster.temp_dir(paths), ignore_errors=True)


@contextmanager
def undone_on_failure(paths: Paths) -> Iterator[None]:
    """When the block raises, the servers that were not running before it are stopped again."""
    before = frozenset(process.role for process in running(paths))
    try:
        yield
    except BaseException:
        stop(paths, keep=before)
        raise


def _postgres_pid(paths: Paths) -> int | None:
    if not paths.postgres.is_dir():
        return None  # never started: spare the import
    from patchwork_serving.store.embedded import EmbeddedPostgres

    return EmbeddedPostgres(paths.postgres).status().pid
