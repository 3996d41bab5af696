"""Connections to Postgres: what each is set up with, how one that broke is replaced, and what the driver's errors mean to us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import AsyncConnection
from psycopg import errors as pg
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format, PGconn, Ping
from psycopg.types import TypeInfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from patchwork_serving.errors import (
    ConnectionLost,
    DiskFull,
    ServingError,
    StoreError,
    StoreRefused,
    StoreTimeout,
    StoreUnreachable,
    StoreWithoutPgvector,
    UnknownCollection,
)
from patchwork_serving.store.queries import query

Dsn = str | Callable[[], str]
Connection = AsyncConnection[tuple[Any, ...]]

CONNECT_S = 10.0  #: also how long a request waits for a server that restarts
MIN_PGVECTOR = (0, 8)  #: iterative scans, without which a filtered search comes back short
REMEDY = (
    "install pgvector 0.8 or newer in that server (Debian: postgresql-18-pgvector from apt.postgresql.org; image: pgvector/pgvector:pg18) "
    "and let the role create it, or unset DATABASE_URL to use the embedded server"
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Of a database that can hold collections."""

    where: str  #: host, port and database; no secret
    postgres: str
    pgvector: str


def where(dsn: str) -> str:
    """The database a connection string names, without user and password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise StoreUnreachable(
            "the database's connection string cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from error
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


async def check_server(dsn: str, *, timeout_s: float = CONNECT_S) -> ServerFacts:
    """Connect once, within ``timeout_s``, and look; the extension is created where it is only installed.

    Raises StoreUnreachable, or StoreWithoutPgvector with the remedy.
    """
    place = where(dsn)
    try:
        async with await connect(dsn, timeout_s) as connection:
            version = await _extension(connection)
            facts = ServerFacts(place, connection.info.parameter_status("server_version") or "?", version or "")
    except psycopg.OperationalError as error:
        if error.sqlstate is None and await asyncio.to_thread(_takes_connections, dsn):
            raise StoreUnreachable(
                f"the server of {place} answers and refuses this user, password or database; correct DATABASE_URL"
            ) from error
        raise mapped(error, place) from error
    except psycopg.Error as error:
        raise mapped(error, place) from error
    if not version:
        raise StoreWithoutPgvector(f"the database {place} has no pgvector; {REMEDY}")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_PGVECTOR:
        raise StoreWithoutPgvector(f"the database {place} has pgvector {version}; {REMEDY}")
    return facts


def _takes_connections(dsn: str) -> bool:
    """Whether there is a server: a refused login carries no code that would tell it from a refused connection."""
    return PGconn.ping(dsn.encode()) == Ping.OK


async def connect(dsn: str, timeout_s: float = CONNECT_S) -> Connection:
    return await AsyncConnection.connect(dsn, autocommit=True, connect_timeout=int(timeout_s), **_OPTIONS)


async def set_up(connection: Connection) -> None:
    """Teach a new connection the type ``vector`` and where its operators are: the extension may be in any schema."""
    row = await (await connection.execute(query("extension"))).fetchone()
    if row is None:
        raise StoreWithoutPgvector(f"the database has no pgvector; {REMEDY}")
    _, schema, oid = row
    await connection.execute(query("search_path"), {"schema": schema})
    TypeInfo("vector", oid, 0).register(connection)
    connection.adapters.register_dumper(np.ndarray, type("VectorDumper", (_VectorDumper,), {"oid": oid}))


class _VectorDumper(Dumper):
    """Arrays as pgvector receives vectors: two 16-bit numbers (dimension, unused), then big-endian floats. pgvector's own dumper goes
    through an object for each, which costs more than the rest of sending a search."""

    format = Format.BINARY

    def dump(self, obj: NDArray[np.floating]) -> bytes:
        return len(obj).to_bytes(2) + b"\0\0" + obj.astype(">f4").tobytes()


class Connections:
    """One pool. A connection that broke in use raises ConnectionLost and is replaced in the background."""

    def __init__(self, dsn: Dsn, size: int) -> None:
        self._dsn = dsn
        self.size = size
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn, min_size=size, max_size=size, open=False, configure=set_up, timeout=CONNECT_S, name="patchwork-store",
            kwargs={"autocommit": True, "connect_timeout": int(CONNECT_S), **_OPTIONS},
        )  # fmt: skip

    @property
    def where(self) -> str:
        return where(self._dsn if isinstance(self._dsn, str) else self._dsn())

    async def open(self) -> ServerFacts:
        facts = await check_server(self._dsn if isinstance(self._dsn, str) else self._dsn())
        try:
            await self._pool.open(wait=True, timeout=CONNECT_S)
        except PoolTimeout as error:
            await self._pool.close()
            raise StoreUnreachable(
                f"the database {facts.where} gave no {self.size} connections within {CONNECT_S:.0f} s; raise its max_connections"
            ) from error
        return facts

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def borrow(self, timeout_s: float) -> AsyncIterator[Connection]:
        """A connection of the pool. Errors of the driver come out as ours; a broken connection is not given out again."""
        try:
            async with self._pool.connection(timeout=min(timeout_s, CONNECT_S)) as connection:
                yield connection
        except PoolTimeout as error:
            if timeout_s < CONNECT_S:
                raise StoreTimeout(
                    f"no connection to the database {self.where} was free before the deadline"
                ) from error
            raise StoreUnreachable(f"the database {self.where} did not come back within {CONNECT_S:.0f} s") from error
        except psycopg.Error as error:
            raise mapped(error, self.where) from error


def mapped(error: psycopg.Error, place: str) -> StoreError | ServingError:
    """The one place where the driver's errors become ours. Their texts may quote values, so only their kind is told."""
    match error:
        case pg.QueryCanceled():
            return StoreTimeout(f"the database {place} did not answer before the deadline")
        case pg.UndefinedTable() | pg.InvalidSchemaName():
            return UnknownCollection(
                f"the database {place} does not have the collection's tables; deploy the application again"
            )
        case pg.InvalidAuthorizationSpecification() | pg.InvalidCatalogName():
            return StoreUnreachable(
                f"the server of {place} refuses this user, password or database; correct DATABASE_URL"
            )
        case pg.InsufficientPrivilege():
            return StoreError(f"the database {place} does not let this user do that; grant CREATE on the database")
        case pg.DiskFull():
            return DiskFull(f"the disk or shared memory of the database {place} is full; free some space there")
        case pg.DataError():
            return StoreRefused(
                f"the database {place} refused a value ({_kind(error)}); use the embedding model that filled it"
            )
    if is_lost(error):
        return ConnectionLost(f"cannot reach the database {place} ({_kind(error)}); start it or correct DATABASE_URL")
    return StoreError(f"the database {place} failed ({_kind(error)})")


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection, not the statement, failed: class 08, a server that shuts down or starts, or no answer at all."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state[:2] == "08" or state in ("57P01", "57P02", "57P03", "57P05", "53300")


def _kind(error: psycopg.Error) -> str:
    return type(error).__name__ + (f", SQLSTATE {error.sqlstate}" if error.sqlstate else "")


async def _extension(connection: Connection) -> str | None:
    """Version of pgvector in the database; None where it is not."""
    row = await (await connection.execute(query("extension"))).fetchone()
    if row is None:
        available = await (await connection.execute(query("available_extension"))).fetchone()
        if available is not None:
            await connection.execute(query("create_extension"))
            row = await (await connection.execute(query("extension"))).fetchone()
    return None if row is None else str(row[0])


_OPTIONS: dict[str, Any] = {
    "application_name": "patchwork",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
