"""What runs on this machine: one JSON file per application under ``Paths.state``.

A file outlives a crash of what it describes, so nothing here is believed without a look: a process is ours only if its pid *and* its start
time agree, because pids are used again. No secrets are written; ``postgres`` is a URL without its password.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
from filelock import FileLock, Timeout

from patchwork_serving.errors import DeployError, DiskFull, SetupError, UnknownApp

#: ``psutil`` reads start times in clock ticks (10 ms) and derives the boot time, which may move when the clock is set
START_TIME_TOLERANCE_S = 2.0
LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class OwnProcess:
    """A process that we started, told apart from a later one with the same pid by its start time."""

    pid: int
    started: float  #: seconds since the epoch, as the system reports it
    role: str  #: ``deploy``, ``ray``, ``postgres``

    @classmethod
    def of(cls, pid: int, role: str) -> OwnProcess:
        """The process that has this pid now; ProcessLookupError when there is none."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), role)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"no process {pid}") from error

    def is_running(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TIME_TOLERANCE_S
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def send(self, signum: signal.Signals) -> bool:
        """Signal it, if it is still the same process; says whether it was."""
        if not self.is_running():
            return False
        try:
            os.kill(self.pid, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is gone; False when it still runs after ``timeout_s``."""
        if not self.is_running():
            return True
        try:
            psutil.Process(self.pid).wait(timeout_s)
        except psutil.NoSuchProcess:
            return True
        except psutil.TimeoutExpired:
            return not self.is_running()
        return True


@dataclass(frozen=True, slots=True)
class AppState:
    """One application as it was deployed."""

    name: str
    target: str
    url: str
    created_at: str  #: ISO 8601, UTC
    slo_s: float | None = None
    ray_address: str | None = None
    ray_dir: str | None = None  #: Ray's temporary folder, which holds the logs of its replicas
    postgres: str | None = None  #: without password
    release: str | None = None  #: path of the release JSON
    processes: tuple[OwnProcess, ...] = ()
    clients: tuple[OwnProcess, ...] = ()  #: programs whose chains use its components
    command: OwnProcess | None = None  #: the ``patchwork deploy`` in whose foreground it runs; None when it is detached

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AppState:
        """The inverse of :meth:`to_json`; keys of a later version are left out."""
        values = {name: document[name] for name in cls.__slots__ if name in document}
        for name in ("processes", "clients"):
            values[name] = tuple(OwnProcess(**p) for p in document.get(name, ()))
        if values.get("command") is not None:
            values["command"] = OwnProcess(**values["command"])
        return cls(**values)

    def is_alive(self) -> bool:
        """Whether every process that we started for it still runs; true when we started none (a cluster elsewhere)."""
        return all(process.is_running() for process in self.processes)

    def is_stale(self) -> bool:
        """Nothing that we started for it runs any more: the entry may be removed."""
        return bool(self.processes) and not any(process.is_running() for process in self.processes)

    def living_clients(self) -> tuple[OwnProcess, ...]:
        """The programs that use it now."""
        return tuple(client for client in self.clients if client.is_running())

    def is_for_programs(self) -> bool:
        """It serves no HTTP, only the programs in ``clients``, and lives as long as one of them."""
        return not self.url

    def is_for_living_programs(self) -> bool:
        return self.is_for_programs() and bool(self.living_clients())

    def is_deserted(self) -> bool:
        """It was made for programs, and all of them are gone."""
        return self.is_for_programs() and not self.living_clients()

    def is_orphaned(self) -> bool:
        """The command that would have stopped it was killed."""
        return self.command is not None and not self.command.is_running()

    def with_processes(self, *processes: OwnProcess) -> AppState:
        return replace(self, processes=(*self.processes, *processes))


class StateStore:
    """The folder of state files. Writes are atomic; a change that reads first holds :meth:`lock`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def lock(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Exclude other commands of this machine; DeployError when one holds it longer than ``timeout_s``, SetupError where the folder
        cannot be written."""
        guard = FileLock(self._folder / ".lock", timeout=timeout_s)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            guard.acquire()
        except Timeout as error:
            raise DeployError(
                f"another patchwork command holds {self._folder / '.lock'}; wait for it, or end it and try again"
            ) from error
        except OSError as error:
            raise self._unwritable(error, "the lock") from error
        try:
            yield
        finally:
            guard.release()

    def save(self, app: AppState) -> None:
        """Write or replace the entry; DiskFull or SetupError when it cannot be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._replace(self._path(app.name), json.dumps(app.to_json(), indent=2))
        except OSError as error:
            raise self._unwritable(error, f"the state of {app.name!r}") from error

    def _unwritable(self, error: OSError, what: str) -> SetupError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (DiskFull if full else SetupError)(
            f"cannot write {what} in {self._folder}: {error.strerror}; "
            f"{'make room' if full else 'make it writable'}, or set PATCHWORK_HOME to another folder"
        )

    def _replace(self, path: Path, text: str) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def load(self, name: str) -> AppState:
        """The entry of ``name``; UnknownApp names those that exist."""
        found = self._read(self._path(name))
        if found is None:
            known = ", ".join(app.name for app in self.apps())
            remedy = f"there are: {known}" if known else "none is deployed; see `patchwork deploy --help`"
            raise UnknownApp(f"no application {name!r} on this machine; {remedy}")
        return found

    def find(self, name: str) -> AppState | None:
        return self._read(self._path(name))

    def apps(self) -> list[AppState]:
        """Every entry, by name; files that cannot be read are passed over."""
        if not self._folder.is_dir():
            return []
        found = (self._read(path) for path in sorted(self._folder.glob("*.json")))
        return [app for app in found if app is not None]

    def remove(self, name: str) -> None:
        """Forget the entry; nothing happens when there is none."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{Path(name).name}.json"

    @staticmethod
    def _read(path: Path) -> AppState | None:
        try:
            return AppState.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
