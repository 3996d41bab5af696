"""Byte strings on a stream socket: four bytes of length, then the bytes."""

from __future__ import annotations

import asyncio
import struct

_LENGTH = struct.Struct(">I")


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """None when the other side has left."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def write_frame(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()
