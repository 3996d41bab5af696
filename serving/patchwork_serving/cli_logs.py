"""``patchwork logs``: the log files that Ray Serve keeps of each replica, one stream with the component in front."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from patchwork_adapters.redaction import redacted
from patchwork_serving.cli_apps import store
from patchwork_serving.cli_output import fact, fact_json, note
from patchwork_serving.errors import SetupError, UsageError
from patchwork_serving.state import AppState

FOLLOW_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class LogFile:
    path: Path
    app: str
    component: str
    replica: str


def logs(name: str | None, component: str | None, *, follow: bool, lines: int, as_json: bool) -> None:
    """Print the last lines of every replica's log, and what is written after that with ``follow``."""
    apps = [store().load(name)] if name is not None else store().apps()
    if not apps:
        note("nothing is deployed on this machine")
        return
    files = [file for app in apps for file in log_files(app)]
    _check_component(files, component)
    reader = _Reader(component, as_json=as_json)
    for file in files:
        reader.show_end(file, lines)
    try:
        while follow:
            time.sleep(FOLLOW_EVERY_S)
            for file in (file for app in apps for file in log_files(app)):
                reader.show_new(file)
    except KeyboardInterrupt:
        return  # this is how following ends


def log_files(app: AppState) -> list[LogFile]:
    """The logs of an application's replicas on this machine, oldest first; SetupError when they are elsewhere."""
    if app.ray_dir is None:
        raise SetupError(
            f"{app.name} runs on the Ray cluster {app.ray_address}; its logs are on its nodes, see `ray logs`"
        )
    folder = Path(app.ray_dir) / "session_latest" / "logs" / "serve"
    found = [file for path in folder.glob("replica_*.log") if (file := _log_file(path, app.name)) is not None]
    return sorted(found, key=lambda file: file.path.stat().st_mtime)


def _log_file(path: Path, app: str) -> LogFile | None:
    """Serve names a file ``replica_{app}_{deployment}_{replica}.log``; both names may hold underscores, the app's is known."""
    prefix = f"replica_{app}_"
    if not path.name.startswith(prefix):
        return None
    deployment, _, replica = path.stem[len(prefix) :].rpartition("_")
    return LogFile(path, app, deployment, replica) if deployment else None


def _check_component(files: list[LogFile], component: str | None) -> None:
    known = sorted({file.component for file in files})
    if component is not None and component not in known:
        raise UsageError(f"no logs of a component {component!r}; there are: {', '.join(known) or 'none yet'}")


class _Reader:
    """Remembers how far each file was shown."""

    def __init__(self, component: str | None, *, as_json: bool) -> None:
        self._component = component
        self._as_json = as_json
        self._offsets: dict[Path, int] = {}

    def show_end(self, file: LogFile, lines: int) -> None:
        if self._is_wanted(file):
            for line in deque(filter(None, self._read(file)), maxlen=lines):
                self._show(file, line)

    def show_new(self, file: LogFile) -> None:
        if self._is_wanted(file):
            for line in filter(None, self._read(file)):
                self._show(file, line)

    def _is_wanted(self, file: LogFile) -> bool:
        return self._component is None or file.component == self._component

    def _read(self, file: LogFile) -> Iterator[str]:
        """Whole lines that were written since the last time; Serve adds an empty one to each that the user's code prints."""
        try:
            with file.path.open("rb") as stream:
                stream.seek(self._offsets.get(file.path, 0))
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[file.path] = self._offsets.get(file.path, 0) + len(line)
                    yield line.decode(errors="replace").rstrip("\n")
        except FileNotFoundError:
            return  # rotated away

    def _show(self, file: LogFile, line: str) -> None:
        line = redacted(line)
        if self._as_json:
            told = {"app": file.app, "component": file.component, "replica": file.replica, "line": line}
            fact_json(told, indent=None)
        else:
            fact(f"{file.component}#{file.replica} | {line}")
