"""Which processes of the operating system are the embedded server's.

Read from ``/proc/PID/cmdline``, which any user may read: a container's root may not read another account's ``/proc/PID/cwd``. The server is
started with ``-D`` and its data folder, and its children carry the cluster's name in their titles.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What ``postmaster.pid`` says."""

    pid: int
    is_ready: bool

    @classmethod
    def read(cls, data_dir: Path) -> Postmaster | None:
        try:
            lines = (data_dir / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), len(lines) > 7 and lines[7].strip() == "ready")
        except (OSError, IndexError, ValueError):
            return None


def running(data_dir: Path) -> Postmaster | None:
    """The live postmaster of ``data_dir``: not a zombie, and not another program that got its number after a reboot."""
    postmaster = Postmaster.read(data_dir)
    if postmaster is None:
        return None
    is_ours = str(data_dir) in _command(postmaster.pid) if _has_proc() else _exists(postmaster.pid)
    return postmaster if is_ours else None


def clear_stale(data_dir: Path, sockets: Path, cluster: str) -> None:
    """Remove the lock files of a dead server, once no process works on its data any more.

    Postgres itself refuses to start for as long as a killed server is a zombie, and the init of many containers never reaps it.
    """
    if _has_proc() and running(data_dir) is None and not has_children(cluster):
        for lock in (data_dir / "postmaster.pid", *sockets.glob(".s.PGSQL.*.lock")):
            lock.unlink(missing_ok=True)


def has_children(cluster: str) -> bool:
    """Whether a server process other than the postmaster lives; those of a killed one hold its port until they notice."""
    title = f"postgres: {cluster}: "
    return any(_command(int(process.name)).startswith(title) for process in PROC.glob("[0-9]*"))


def _command(pid: int) -> str:
    """The command line; empty for a zombie and for no process."""
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _has_proc() -> bool:
    return (PROC / "self" / "cmdline").exists()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
