"""Acting on modules as they are imported, and ids that come out equal in every process."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from patchwork_adapters.import_hooks import when_imported
from patchwork_adapters.stable_ids import stable_ids


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "hooked_module.py").write_text("value = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "hooked_module"
    sys.modules.pop("hooked_module", None)


def double(module: ModuleType) -> Callable[[], None]:
    before = module.value
    module.value = before * 2

    def undo() -> None:
        module.value = before

    return undo


def test_a_module_is_changed_when_it_is_imported_and_changed_back(module: str) -> None:
    undo = when_imported(module, double)
    assert module not in sys.modules
    hooked = importlib.import_module(module)
    assert hooked.value == 2
    assert "value = 1" in inspect.getsource(hooked)
    undo()
    undo()
    assert hooked.value == 1


def test_a_module_that_is_there_is_changed_at_once(module: str) -> None:
    hooked = importlib.import_module(module)
    undo = when_imported(module, double)
    assert hooked.value == 2
    undo()
    assert hooked.value == 1


def test_two_hooks_on_one_module_both_run(module: str) -> None:
    undo = [when_imported(module, double), when_imported(module, double)]
    assert importlib.import_module(module).value == 4
    for one in undo:
        one()


def test_a_hook_that_was_undone_does_not_run(module: str) -> None:
    finders = list(sys.meta_path)
    when_imported(module, double)()
    assert sys.meta_path == finders
    assert importlib.import_module(module).value == 1


def test_ids_follow_the_seed_in_this_thread_and_only_inside_the_block() -> None:
    def draw(seed: str = "seed") -> list[uuid.UUID]:
        with stable_ids(seed):
            return [uuid.uuid4() for _ in range(3)]

    assert draw() == draw()
    assert len(set(draw())) == 3
    assert {u.version for u in draw()} == {4}
    assert len({*draw(), *draw("other")}) == 6
    assert uuid.uuid4() != uuid.uuid4()


def test_a_line_that_draws_more_often_does_not_shift_the_others() -> None:
    def draw(retries: int) -> list[uuid.UUID]:
        with stable_ids("seed"):
            for _ in range(retries):
                uuid.uuid4()
            return [uuid.uuid4() for _ in range(2)]

    assert draw(0) == draw(5)


def test_a_reference_taken_inside_gives_random_ids_afterwards() -> None:
    def draw() -> uuid.UUID:
        return uuid.uuid4()

    with stable_ids("seed"):
        kept = uuid.uuid4
        first = draw()
        elsewhere: list[uuid.UUID] = []
        thread = threading.Thread(target=lambda: elsewhere.append(draw()))
        thread.start()
        thread.join()
    assert kept() != kept()
    with stable_ids("seed"):
        assert draw() == first != elsewhere[0]
