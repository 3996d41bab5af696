"""TARGET: what people type, what they get, and what they are told when it does not work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from patchwork_adapters.errors import (
    MissingPackage,
    NoChainFound,
    SeveralChainsFound,
    TargetError,
    TargetImportFailed,
    TargetNotFound,
)
from patchwork_adapters.target import LoadedTarget, load_target, parse_target

CHAIN = """
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
prompt = ChatPromptTemplate.from_template("{x}")
shout = RunnableLambda(lambda v: str(v).upper())
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith(("langchain", "llama_index", "langgraph", "pydantic")):
            del sys.modules[name]
    sys.path[:] = path


def write(folder: Path, text: str, name: str = "my_chain.py") -> Path:
    path = folder / name
    path.write_text(dedent(text), encoding="utf-8")
    return path


def load(folder: Path, text: str, suffix: str = "") -> LoadedTarget:
    return load_target(parse_target(f"{write(folder, text)}{suffix}"))


def test_the_only_chain_is_found_and_parts_of_it_do_not_count(tmp_path: Path) -> None:
    loaded = load(tmp_path, CHAIN + "inner = prompt | shout\nchain = inner | shout\n")
    assert (loaded.attr, loaded.framework, loaded.module.__name__) == ("chain", "langchain", "my_chain")


def test_a_chain_used_by_another_through_a_function_does_not_count(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        CHAIN
        + "inner = prompt | shout\ndef ask(x):\n    return inner.invoke(x)\nouter = RunnableLambda(ask) | shout\n",
    )
    assert loaded.attr == "outer"


def test_a_chain_whose_steps_were_joined_deep_inside_another_is_part_of_it(tmp_path: Path) -> None:
    text = CHAIN + "inner = prompt | shout\nouter = {'a': shout | inner, 'b': prompt} | shout\n"
    assert load(tmp_path, text).attr == "outer"


def test_one_chain_under_two_names_is_one_chain(tmp_path: Path) -> None:
    assert load(tmp_path, CHAIN + "chain = prompt | shout\napp = chain\n").attr == "chain"


def test_several_chains_are_listed_as_they_would_be_typed(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN + "a = prompt | shout\nb = shout | shout\n")
    with pytest.raises(SeveralChainsFound) as caught:
        load_target(parse_target(str(path)))
    assert str(caught.value).splitlines()[1:] == [f"  {path}:a", f"  {path}:b"]


def test_a_part_alone_is_a_chain(tmp_path: Path) -> None:
    assert load(tmp_path, CHAIN + "del shout\n").attr == "prompt"


def test_a_name_chooses_among_several(tmp_path: Path) -> None:
    assert load(tmp_path, CHAIN + "a = prompt | shout\nb = shout | shout\n", ":b").attr == "b"


def test_a_factory_is_called_once(tmp_path: Path) -> None:
    loaded = load(tmp_path, CHAIN + "made = []\ndef make():\n    made.append(1)\n    return prompt | shout\n", ":make")
    assert (loaded.framework, loaded.is_factory, loaded.root, loaded.module.made) == ("langchain", True, "make()", [1])


def test_graphs_and_engines_are_chains(tmp_path: Path) -> None:
    pytest.importorskip("langgraph")
    loaded = load(
        tmp_path,
        """
        from typing import TypedDict
        from langgraph.graph import StateGraph, START, END
        class State(TypedDict):
            x: str
        builder = StateGraph(State)
        builder.add_node("n", lambda s: s)
        builder.add_edge(START, "n")
        app = builder.compile()
        """,
    )
    assert (loaded.attr, loaded.framework) == ("app", "langgraph")


def test_a_dotted_module_is_found_where_python_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pkg_of_test").mkdir()
    write(tmp_path / "pkg_of_test", CHAIN + "chain = prompt | shout\n", "mod.py")
    monkeypatch.syspath_prepend(tmp_path)
    target = parse_target("pkg_of_test.mod:chain")
    assert (target.folder, target.module, target.attr) == (None, "pkg_of_test.mod", "chain")
    assert load_target(target).module.__name__ == "pkg_of_test.mod"


def test_modules_beside_the_file_can_be_imported_and_its_main_block_does_not_run(tmp_path: Path) -> None:
    write(tmp_path, "NAME = 'x'\n", "beside_of_test.py")
    loaded = load(
        tmp_path,
        CHAIN + "import beside_of_test\nchain = prompt | shout\nif __name__ == '__main__':\n    raise SystemExit(1)\n",
    )
    assert loaded.module.beside_of_test.NAME == "x"


def test_a_file_named_like_a_standard_module_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN + "chain = prompt | shout\n", "statistics.py")
    assert load_target(parse_target(str(path))).module.__file__ == str(path)
    del sys.modules["statistics"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("missing.py", TargetNotFound, "does not exist"),
        (".", TargetNotFound, "folder"),
        ("", TargetError, "not a target"),
        ("no-such-thing", TargetError, "neither a .py file"),
    ],
)
def test_what_cannot_be_a_target_is_refused_before_anything_is_imported(
    text: str, error: type[TargetError], says: str
) -> None:
    with pytest.raises(error, match=says):
        parse_target(text)


def test_a_module_that_is_not_there_is_not_found() -> None:
    with pytest.raises(TargetNotFound, match="no_such_package_here"):
        load_target(parse_target("no_such_package_here.mod:chain"))


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("x = (\n", TargetImportFailed, r"my_chain.py, line 1: '\(' was never closed"),
        ("a = 1\nb = a / 0\n", TargetImportFailed, r"my_chain.py, line 2: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", TargetImportFailed, r"my_chain.py, line 2: .*__main__"),
        ("import no_such_package_here\n", MissingPackage, r"line 1: .*pip install no-such-package-here"),
        ("from llama_index.llms.no_such import X\n", MissingPackage, r"pip install llama-index-llms-no-such"),
        ("from json import no_such\n", TargetImportFailed, r"line 1: cannot import name"),
        ("x = 1\n", NoChainFound, r"holds no chain"),
    ],
)
def test_a_module_that_cannot_be_used_says_where_and_why(
    tmp_path: Path, source: str, error: type[TargetError], says: str
) -> None:
    pytest.importorskip("llama_index.core")
    with pytest.raises(error, match=says):
        load(tmp_path, source)


def test_a_wrong_name_lists_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(TargetNotFound, match="has no 'chian'; chains in it: prompt, shout, chain"):
        load(tmp_path, CHAIN + "chain = prompt | shout\n", ":chian")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 5\n", "x is a int"),
        ("def x():\n    return 5\n", r"x\(\) returned a int"),
    ],
)
def test_a_name_that_is_no_chain_is_refused(tmp_path: Path, source: str, says: str) -> None:
    with pytest.raises(NoChainFound, match=says):
        load(tmp_path, source, ":x")


def test_a_factory_that_raises_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(TargetImportFailed, match=r"my_chain.py, line 2: x\(\) raised KeyError"):
        load(tmp_path, "def x():\n    return {}['a']\n", ":x")


def test_a_module_that_failed_can_be_mended_and_loaded_again(tmp_path: Path) -> None:
    with pytest.raises(TargetImportFailed):
        load(tmp_path, "1 / 0\n")
    assert load(tmp_path, CHAIN + "chain = prompt | shout  # mended\n").attr == "chain"
