"""SQL from the ``.sql`` files beside this module, by name. Only identifiers and fragments are composed in; values are parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import LiteralString

from psycopg import sql

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"--.*$", re.MULTILINE)
SCHEMA = "patchwork"

OPERATORS: dict[str, LiteralString] = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
OPERATOR_CLASSES: dict[str, LiteralString] = {
    "cosine": "halfvec_cosine_ops",
    "l2": "halfvec_l2_ops",
    "inner_product": "halfvec_ip_ops",
}


@cache
def queries() -> dict[str, sql.SQL]:
    """Every named query, comments and final semicolon removed."""
    parts = _NAME.split((files(__package__) / "queries.sql").read_text())
    return {name: _sql(_COMMENT.sub("", body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def query(name: str, **parts: sql.Composable) -> bytes:
    """The text of a query, ready to send."""
    return queries()[name].format(**parts).as_bytes(None) if parts else _plain_query(name)


@cache
def _plain_query(name: str) -> bytes:
    return queries()[name].as_bytes(None)


def rows_table(collection_id: int) -> sql.Identifier:
    return sql.Identifier(SCHEMA, f"rows_{collection_id:d}")


def literal(number: int) -> sql.Composable:
    """A number written into the statement: a prepared statement's plan may depend on it."""
    return sql.Literal(int(number))


def migrations() -> Iterator[tuple[int, bytes]]:
    """Number and text of every migration, in order."""
    folder = files(__package__) / "migrations"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            yield int(file.name.split("_", 1)[0]), file.read_bytes()


def _sql(text: str) -> sql.SQL:
    return sql.SQL(text.strip().rstrip(";").strip())  # text of our own file, not a caller's
