"""One file over HTTP into a folder: resumed where a first try stopped, checked by its sha256, with progress."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import certifi
import httpx

from patchwork_serving.errors import DiskFull, ModelCorrupt, SetupError

Told = Callable[[int, int], None]  #: (bytes done, bytes in all)

_TELL_EVERY_BYTES = 1 << 20
_TIMEOUT = httpx.Timeout(60.0, connect=20.0)
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")  #: where users tell their proxy's certificate


def download(url: str, target: Path, *, sha256: str, total: int, told: Told = lambda done, total: None) -> None:
    """Put the file at ``target``. What arrived stays in ``target``.partial, and the next call goes on from there.

    Raises ModelCorrupt when the bytes are not those expected (they are removed), DiskFull, and SetupError when the server cannot be
    reached or refuses.
    """
    partial = target.with_name(target.name + ".partial")
    parts = urlsplit(url)
    with disk_errors(target.parent):
        if parts.scheme == "file":
            shutil.copyfile(url2pathname(parts.path), partial)
        else:
            _fetch(url, partial, total, told)
        found = sha256_of(partial)
    if found != sha256:
        partial.unlink()
        raise ModelCorrupt(
            f"{target.name} from {parts.hostname or 'the local index'} has sha256 {found[:12]}…, not {sha256[:12]}…; it was removed. "
            "Try again, and if it stays so, look at the index that uv or pip is configured with"
        )
    partial.replace(target)


def _fetch(url: str, partial: Path, total: int, told: Told) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have >= total:
        return  # whole, or too long: the checksum tells
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with (
            httpx.Client(timeout=_TIMEOUT, verify=_trust(), follow_redirects=True) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code == _RANGE_NOT_SATISFIABLE:
                partial.unlink(missing_ok=True)
                raise ModelCorrupt(f"{partial.name} could not be resumed and was removed; try again")
            response.raise_for_status()
            resumed = response.status_code == _PARTIAL_CONTENT
            done = have if resumed else 0
            with partial.open("ab" if resumed else "wb") as file:
                next_tell = done
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    done += len(chunk)
                    if done >= min(next_tell, total):
                        told(done, total)
                        next_tell = done + _TELL_EVERY_BYTES
    except httpx.HTTPStatusError as error:
        raise SetupError(f"the package index answered {error.response.status_code} for {partial.stem}") from error
    except httpx.HTTPError as error:
        raise SetupError(
            f"the download of {partial.stem} stopped ({type(error).__name__}); try again, it goes on where it stopped"
        ) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, needed: int) -> None:
    """DiskFull when ``folder`` has not ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{folder} has {free >> 20} MiB left and {needed >> 20} MiB are needed; free some, or set PATCHWORK_CACHE to another disk"
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Map a full disk, met in the middle of writing, to DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{folder}: the disk is full; free some space, or set PATCHWORK_CACHE to another disk"
            ) from error
        raise


def _trust() -> ssl.SSLContext:
    """The system's authorities, the common ones, and those that the user's other tools were told."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for variable in _CA_VARIABLES:
        bundle = os.environ.get(variable)
        if bundle and Path(bundle).is_file():
            context.load_verify_locations(bundle)
    return context
