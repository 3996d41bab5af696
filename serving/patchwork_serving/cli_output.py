"""Where words go: facts to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

#: tables in files and pipes are not cut to a terminal that is not there
PIPE_COLUMNS = 160


def fact(text: str) -> None:
    """A line of the answer."""
    typer.echo(text)


def fact_json(document: Any, *, indent: int | None = 2) -> None:
    """The answer for a program; ``indent=None`` for one object a line."""
    typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))


def note(text: str) -> None:
    """A line beside the answer."""
    typer.echo(text, err=True)


def console() -> Console:
    """A rich console on stdout, for tables and drawings."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
