"""Synchronous code of a task waits for the loop while other tasks run, and nothing of one task reaches another."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from greenlet import getcurrent, greenlet

from patchwork_adapters import portal
from patchwork_adapters.bridge import install_portal
from patchwork_adapters.portal import has_portal, portal_await

NAME: ContextVar[str] = ContextVar("name", default="nobody")


def with_portals(main: Callable[[], Awaitable[Any]]) -> Any:
    """``main()`` in a task with a portal; returns its result."""

    async def start() -> Any:
        install_portal(asyncio.get_running_loop())

        async def work() -> Any:
            return await main()

        return await asyncio.create_task(work())

    return asyncio.run(start())


async def soon(value: Any) -> Any:
    await asyncio.sleep(0.001)
    if isinstance(value, BaseException):
        raise value
    return value


def test_each_of_many_tasks_gets_its_own_answers_and_keeps_its_own_context() -> None:
    async def one(name: str) -> list[Any]:
        NAME.set(name)
        seen = [portal_await(soon((name, n))) for n in range(3)]
        await asyncio.sleep(0)
        seen.append(portal_await(soon(NAME.get())))
        return [*seen, NAME.get()]

    async def main() -> list[list[Any]]:
        return list(await asyncio.gather(*(one(f"task {n}") for n in range(200))))

    assert with_portals(main) == [[*((f"task {n}", i) for i in range(3)), f"task {n}", f"task {n}"] for n in range(200)]
    assert NAME.get() == "nobody"


def test_what_the_awaited_raises_can_be_caught_where_it_is_waited_for() -> None:
    async def main() -> str:
        with pytest.raises(KeyError, match="lost"):
            portal_await(soon(KeyError("lost")))
        return str(portal_await(soon("went on")))

    assert with_portals(main) == "went on"


def test_what_the_task_raises_reaches_who_awaits_it() -> None:
    async def failing() -> None:
        portal_await(soon(None))
        raise LookupError("mine")

    async def main() -> None:
        with pytest.raises(LookupError, match="mine"):
            await asyncio.create_task(failing())

    with_portals(main)


def test_cancelling_reaches_the_code_that_waits_which_may_wait_again_to_clean_up() -> None:
    seen: list[Any] = []

    async def waiting() -> None:
        try:
            portal_await(asyncio.Event().wait())
        except asyncio.CancelledError:
            seen.append(portal_await(soon("cleaned up")))
            raise

    async def main() -> bool:
        task = asyncio.create_task(waiting())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert with_portals(main)
    assert seen == ["cleaned up"]


def test_a_task_that_is_cancelled_before_it_begins_leaves_no_coroutine_behind() -> None:
    async def never() -> None:
        raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(never())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "coroutine was never awaited"
        with_portals(main)
        gc.collect()


def test_a_greenlet_of_the_users_own_in_the_task_may_wait_too() -> None:
    """As SQLAlchemy's asynchronous engines have."""

    async def main() -> tuple[Any, Any]:
        outer = getcurrent()

        def inside() -> Any:
            return portal_await(soon("from inside"))

        found = greenlet(inside).switch()
        assert getcurrent() is outer
        return found, portal_await(soon("from outside"))

    assert with_portals(main) == ("from inside", "from outside")


def test_only_tasks_that_were_given_a_portal_have_one() -> None:
    async def bare() -> tuple[bool, bool]:
        return has_portal(), await asyncio.to_thread(has_portal)

    async def main() -> list[Any]:
        mine = has_portal()
        loop = asyncio.get_running_loop()
        loop.set_task_factory(None)
        return [mine, await asyncio.create_task(bare()), threading.current_thread() is threading.main_thread()]

    assert with_portals(main) == [True, (False, False), True]
    assert not has_portal()


def test_what_a_task_had_is_gone_when_the_task_is() -> None:
    class Held:
        pass

    async def one(held: Held) -> Held:
        NAME.set(held)  # type: ignore[arg-type]
        return held

    loop = asyncio.new_event_loop()
    install_portal(loop)
    held = Held()
    kept = weakref.ref(held)
    loop.run_until_complete(loop.create_task(one(held)))  # no other step comes after its last one
    del held
    gc.collect()
    assert kept() is None
    loop.close()


def test_tasks_that_do_not_wait_share_a_greenlet() -> None:
    def workers() -> int:
        return sum(type(one) is portal._Worker for one in gc.get_objects())

    async def nothing() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(nothing() for _ in range(500)))

    before = workers()
    with_portals(main)
    assert workers() <= before + 1
