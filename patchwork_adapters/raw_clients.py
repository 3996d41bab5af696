"""Connections and clients that user code calls by itself. Nothing of them moves; they are named, with the line that uses them."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

#: base class -> what it is
RAW_CLIENTS = {
    "psycopg.connection.BaseConnection": "a database connection",
    "psycopg._connection_base.BaseConnection": "a database connection",
    "psycopg_pool.base.BasePool": "a pool of database connections",
    "psycopg2.extensions.connection": "a database connection",
    "asyncpg.connection.Connection": "a database connection",
    "asyncpg.pool.Pool": "a pool of database connections",
    "sqlite3.Connection": "a database connection",
    "sqlalchemy.engine.base.Engine": "a database engine",
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": "a database engine",
    "pymongo.mongo_client.MongoClient": "a database client",
    "redis.client.Redis": "a Redis client",
    "redis.asyncio.client.Redis": "a Redis client",
    "requests.sessions.Session": "an HTTP session",
    "aiohttp.client.ClientSession": "an HTTP session",
    "urllib3.poolmanager.PoolManager": "an HTTP client",
    "httpx._client.BaseClient": "an HTTP client",
    "httpx2._client.BaseClient": "an HTTP client",
    "botocore.client.BaseClient": "a cloud client",
    "anthropic._base_client.BaseClient": "a client of a hosted model",
    "cohere.client.Client": "a client of a hosted model",
    "elasticsearch._sync.client.Elasticsearch": "a search client",
    "qdrant_client.qdrant_client.QdrantClient": "a vector database client",
    "weaviate.client.WeaviateClient": "a vector database client",
    "chromadb.api.client.Client": "a vector database client",
}
#: modules whose functions connect by themselves, and which of them do
_CALLS = {
    "requests": frozenset({"get", "post", "put", "patch", "delete", "head", "request", "Session"}),
    "httpx": frozenset({"get", "post", "put", "patch", "delete", "head", "request", "stream", "Client", "AsyncClient"}),
    "aiohttp": frozenset({"request", "ClientSession"}),
    "urllib.request": frozenset({"urlopen"}),
    "urllib": frozenset({"request"}),
    "psycopg": frozenset({"connect"}),
    "psycopg2": frozenset({"connect"}),
    "asyncpg": frozenset({"connect", "create_pool"}),
    "sqlite3": frozenset({"connect"}),
    "boto3": frozenset({"client", "resource"}),
    "redis": frozenset({"Redis", "from_url"}),
}
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_ATTR", "LOAD_METHOD", "LOAD_FAST")


def what_is(names: Iterable[str]) -> str | None:
    """What a raw client is, by the names of its classes; None for anything else."""
    return next((RAW_CLIENTS[name] for name in names if name in RAW_CLIENTS), None)


def used_at(path: str, functions: Iterable[FunctionType]) -> str:
    """``file.py:12``: the first line of the user's functions that reads the last name of a path; empty when none does."""
    names = re.findall(r"[A-Za-z_]\w*", path)
    for function in functions if names else ():
        line = _line_of(function.__code__, names[-1])
        if line is not None:
            return f"{Path(function.__code__.co_filename).name}:{line}"
    return ""


def connecting_calls(function: FunctionType) -> Iterator[tuple[str, str]]:
    """(what is called, ``file.py:12``) of each function of a client library that the user's function reads from its module."""
    yield from _calls_in(function.__code__, function.__globals__, Path(function.__code__.co_filename).name)


def _calls_in(code: CodeType, names: dict[str, object], file: str) -> Iterator[tuple[str, str]]:
    module: str | None = None
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = _line(instruction) or line
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = names.get(instruction.argval)
            module = value.__name__ if isinstance(value, ModuleType) else None
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if module is not None and instruction.argval in _CALLS.get(module, ()):
                yield f"{module}.{instruction.argval}", f"{file}:{line}"
            module = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _calls_in(constant, names, file)


def _line_of(code: CodeType, name: str) -> int | None:
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = _line(instruction) or line
        if instruction.opname in _LOADS and instruction.argval == name:
            return line
    inner = (_line_of(constant, name) for constant in code.co_consts if isinstance(constant, CodeType))
    return next((found for found in inner if found is not None), None)


def _line(instruction: dis.Instruction) -> int | None:
    positions = instruction.positions
    return positions.lineno if positions is not None else None
