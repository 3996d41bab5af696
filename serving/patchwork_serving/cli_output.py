"""Where words go: facts to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

from patchwork_adapters.redaction import redacted
from patchwork_serving.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

D = TypeVar("D", bound="Document")

#: tables in files and pipes are not cut to a terminal that is not there
PIPE_COLUMNS = 160


def fact(text: str) -> None:
    """A line of the answer."""
    typer.echo(text)


def fact_json(document: Any, *, indent: int | None = 2) -> None:
    """The answer for a program; ``indent=None`` for one object a line."""
    typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))


def note(text: str) -> None:
    """A line beside the answer; what others' errors say in it may quote a secret."""
    typer.echo(redacted(text), err=True)


def console() -> Console:
    """A rich console on stdout, for tables and drawings."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def table(*columns: str) -> Table:
    """For lists of equal things: columns two blanks apart, no lines."""
    from rich.table import Table

    return Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="dim")


class Document(Protocol):
    """What a command makes: to keep, or for a program."""

    def save(self, path: Path) -> None: ...
    def to_json(self) -> dict[str, Any]: ...


def hand_over(made: D, output: Path | None, *, as_json: bool, show: Callable[[D], None]) -> None:
    """Written where asked, and told. Raises UsageError when it cannot be written."""
    if output is not None:
        with writing(output):
            made.save(output)
    if as_json:
        fact_json(made.to_json())
    else:
        show(made)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against writing ``--output`` is a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output: {path} cannot be written ({error.strerror or error})") from error


def check_output(path: Path) -> None:
    """Raises UsageError now rather than after the work; what is at ``path`` stays as it is."""
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # documents are written beside their place, and then moved there
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
