"""Commands that start something are stopped by a signal: the first unwinds, the second ends everything at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_serving import servers
from patchwork_serving.cli_faults import Interrupted
from patchwork_serving.config import Paths
from patchwork_serving.state import OwnProcess, StateStore

#: until killed processes are gone
KILLED_S = 2.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """What the first and the second signal do. The first unwinds this process, the second ends everything below it."""

    def __init__(self) -> None:
        self.cleaning = False
        self.came = False  #: a signal did, so this process is ending
        self.mine: frozenset[str] = frozenset()  #: applications that end with this command

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.cleaning:
            force(self.mine)
        self.cleaning = self.came = True
        raise Interrupted(signal.Signals(signum).name)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """While inside, SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted` in the main thread."""
    stopping = StopSignals()
    before = {signum: signal.signal(signum, stopping) for signum in STOP_SIGNALS}
    try:
        yield stopping
    finally:
        for signum, handler in before.items():
            # cleaned up and about to exit with its code: one more Ctrl-C must not end it with another
            signal.signal(signum, signal.SIG_IGN if stopping.came else handler)


def force(mine: frozenset[str]) -> None:
    """End every process that was started for ``mine``, and this one, without asking. Data survives: Postgres recovers."""
    doomed = psutil.Process().children(recursive=True)
    try:
        for server in _servers_of(mine):
            process = psutil.Process(server.pid)
            doomed += [*process.children(recursive=True), process]
    finally:
        for process in doomed:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(doomed, timeout=KILLED_S)
        servers.forget_dead(Paths.from_env())
        # not through Python's streams, which may be in use where the signal came
        os.write(2, b"error: stopped at once, without waiting\n")
        os._exit(1)


def _servers_of(mine: frozenset[str]) -> Sequence[OwnProcess]:
    """Ray and Postgres of this home, which outlive the command that started them; none when another application uses them."""
    paths = Paths.from_env()
    if any(app.name not in mine for app in StateStore(paths.state).apps()):
        return []
    return servers.running(paths)
