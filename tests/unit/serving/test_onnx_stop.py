"""What happens to a batch of texts whose callers leave; no model."""

from __future__ import annotations

import asyncio
from threading import Event

import pytest

from patchwork_serving.components.onnx_texts import in_thread


async def test_a_thread_is_told_when_its_caller_leaves() -> None:
    begun, told = Event(), Event()

    def work(stop: Event) -> None:
        begun.set()
        assert stop.wait(10.0)
        told.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(told.wait, 10.0)
