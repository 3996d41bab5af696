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
    def draw() -> list[uuid.UUID]:
        with stable_ids("seed"):
            return [uuid.uuid4() for _ in range(3)]

    assert draw() == draw()
    assert len(set(draw())) == 3
    assert {u.version for u in draw()} == {4}
    with stable_ids("other"):
        assert uuid.uuid4() not in draw()
    assert uuid.uuid4() != uuid.uuid4()


def test_a_reference_taken_inside_gives_random_ids_afterwards() -> None:
    with stable_ids("seed"):
        kept = uuid.uuid4
    assert kept() != kept()
    with stable_ids("seed"):
        first = uuid.uuid4()
        elsewhere: list[uuid.UUID] = []
        thread = threading.Thread(target=lambda: elsewhere.append(uuid.uuid4()))
        thread.start()
        thread.join()
    with stable_ids("seed"):
        assert uuid.uuid4() == first != elsewhere[0]
