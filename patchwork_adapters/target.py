"""TARGET: what a person types to name a chain, and the chain that it names.

``file.py``, ``file.py:attr`` or ``pkg.mod:attr``; without ``attr`` the only chain among the module's globals, where a chain that is part
of another one does not count. ``attr`` may be a zero-argument factory.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from patchwork_adapters.chains import Framework, framework_of, is_part
from patchwork_adapters.errors import (
    MissingPackage,
    NoChainFound,
    SeveralChainsFound,
    TargetError,
    TargetImportFailed,
    TargetNotFound,
)
from patchwork_adapters.redaction import redacted
from patchwork_adapters.stable_ids import stable_ids
from patchwork_adapters.walk import made_of

#: Import names whose package has another name in the index.
_PACKAGES = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "llama_index": "llama-index-core",
    "PIL": "pillow",
    "psycopg2": "psycopg2-binary",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@dataclass(frozen=True, slots=True)
class Target:
    text: str  #: as typed
    path: Path | None  #: the file, absolute; None for a dotted module
    module: str  #: name under which the module is imported: the file's stem, or the dotted name
    attr: str | None

    @property
    def folder(self) -> Path | None:
        """What has to be on ``sys.path``; None for a dotted module, which is found where Python finds it."""
        return self.path.parent if self.path else None


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    module: ModuleType
    attr: str  #: name of the chain (or of its factory) in the module
    chain: Any
    framework: Framework
    is_factory: bool = False

    @property
    def root(self) -> str:
        """First step of canonical paths that start at the chain."""
        return f"{self.attr}()" if self.is_factory else self.attr


def parse_target(text: str) -> Target:
    """Raises TargetNotFound or TargetError with what to type instead; imports nothing."""
    place, _, attr = text.strip().rpartition(":") if _has_attr(text.strip()) else (text.strip(), "", "")
    if not place:
        raise TargetError(f"{text!r} is not a target; write file.py, file.py:chain or package.module:chain")
    if place.endswith(".py") or "/" in place or "\\" in place or Path(place).exists():
        return _file_target(text, place, attr or None)
    if not all(part.isidentifier() for part in place.split(".")):
        raise TargetError(
            f"{place!r} is neither a .py file nor a dotted module name; write file.py:chain or package.module:chain"
        )
    return Target(text, None, place, attr or None)


def load_target(target: Target) -> LoadedTarget:
    """Imports the module (once per process) and finds the chain. Every failure is a TargetError that says where and what to do."""
    module = _import(target)
    if target.attr is None:
        return _only_chain(module, target)
    try:
        found = getattr(module, target.attr)
    except AttributeError:
        names = ", ".join(name for name, _ in _chains(module)) or "none"
        raise TargetNotFound(f"{_where(target)} has no {target.attr!r}; chains in it: {names}") from None
    if framework := framework_of(found, alone=True):
        return LoadedTarget(module, target.attr, found, framework)
    return _from_factory(module, target, found)


def _has_attr(text: str) -> bool:
    """A colon that is not that of a Windows drive."""
    return ":" in text and not (len(text) > 2 and text[1] == ":" and text.count(":") == 1)


def _file_target(text: str, place: str, attr: str | None) -> Target:
    path = Path(place).expanduser().absolute()
    if not path.exists():
        raise TargetNotFound(f"{place} does not exist (looked in {Path.cwd()})")
    if path.is_dir():
        raise TargetNotFound(f"{place} is a folder; name the file in it, such as {place.rstrip('/')}/my_chain.py")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise TargetError(f"{place} cannot be imported as a module; rename it to a Python name ending in .py")
    return Target(text, path, path.stem, attr)


def _import(target: Target) -> ModuleType:
    if target.folder is not None and str(target.folder) not in sys.path:
        sys.path.insert(0, str(target.folder))
    loaded = sys.modules.get(target.module)
    if loaded is not None and _is_same(loaded, target):
        return loaded
    try:
        with stable_ids(target.module):
            return _import_file(target) if target.path else importlib.import_module(target.module)
    except SyntaxError as error:
        file = error.filename or target.text
        raise TargetImportFailed(
            f"{file}, line {error.lineno}: {error.msg}; correct the syntax and try again"
        ) from error
    except ImportError as error:
        raise _import_error(target, error) from error
    except Exception as error:  # whatever the user's module raises becomes one line that says where
        raise TargetImportFailed(
            f"{_line_of(error, target)}: {type(error).__name__}: {redacted(str(error))}; the module must be importable with plain python"
        ) from error
    except SystemExit as error:
        raise TargetImportFailed(
            f"{_line_of(error, target)}: the module ends the program while it is imported; guard that with if __name__ == '__main__'"
        ) from error


def _import_file(target: Target) -> ModuleType:
    """By location: a module of the same name elsewhere on ``sys.path``, or in the standard library, must not win."""
    assert target.path is not None
    spec = importlib.util.spec_from_file_location(target.module, target.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(target.module)
    sys.modules[target.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[target.module]
        else:
            sys.modules[target.module] = before
        raise
    return module


def _is_same(module: ModuleType, target: Target) -> bool:
    if target.path is None:
        return True
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == target.path.resolve()


def _import_error(target: Target, error: ImportError) -> TargetError:
    missing = error.name
    if not isinstance(error, ModuleNotFoundError) or not missing:
        return TargetImportFailed(f"{_line_of(error, target)}: {redacted(str(error))}")
    if target.path is None and (target.module == missing or target.module.startswith(missing + ".")):
        return TargetNotFound(
            f"no module {missing!r} can be imported; run from the folder that holds it, or name the file"
        )
    top = missing.split(".")[0]
    package = _package_of(missing)
    if top in sys.modules and top not in ("llama_index", "google"):
        return TargetImportFailed(
            f"{_line_of(error, target)}: package {top!r} is installed but has no module {missing!r}"
        )
    return MissingPackage(f"{_line_of(error, target)}: {missing!r} is not installed; pip install {package}")


def _package_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "llama_index" and len(parts) > 2:  # llama_index.llms.openai_like -> llama-index-llms-openai-like
        return "-".join(parts[:3]).replace("_", "-")
    return _PACKAGES.get(parts[0], parts[0].replace("_", "-"))


def _line_of(error: BaseException, target: Target) -> str:
    """``file, line N``: the innermost line of the user's own files."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = str(target.folder) if target.folder else None
    for frame in reversed(frames):
        is_users = frame.filename.startswith(folder) if folder else _is_module_file(frame.filename, target.module)
        if is_users and "site-packages" not in frame.filename:
            return f"{frame.filename}, line {frame.lineno}"
    return _where(target)


def _is_module_file(filename: str, module: str) -> bool:
    return filename.endswith(module.replace(".", "/") + ".py")


def _where(target: Target) -> str:
    return str(target.path) if target.path else target.module


def _only_chain(module: ModuleType, target: Target) -> LoadedTarget:
    chains = list(_outermost(module))
    if not chains:
        raise NoChainFound(
            f"{_where(target)} holds no chain at its top level (a Runnable, a compiled graph, a query or chat engine, a workflow); "
            f"name one, or a function that returns one: {_command(target, 'NAME')}"
        )
    if len(chains) > 1:
        lines = "".join(f"\n  {_command(target, name)}" for name, _ in chains)
        raise SeveralChainsFound(f"{_where(target)} holds {len(chains)} chains; name one of them:{lines}")
    name, chain = chains[0]
    framework = framework_of(chain, alone=True)
    assert framework is not None
    return LoadedTarget(module, name, chain, framework)


def _command(target: Target, attr: str) -> str:
    return f"{target.text.strip()}:{attr}"


def _outermost(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Chains that are not part of another chain; parts (prompts, models, parsers) only when nothing else is there."""
    chains = list(_chains(module))
    whole = [(name, chain) for name, chain in chains if not is_part(chain)] or chains
    inner: set[int] = set()
    for _, a in whole if len(whole) > 1 else ():
        objects = made_of(a)
        sequences = [o for o in objects.values() if isinstance(getattr(o, "steps", None), list)]
        inner |= {id(b) for _, b in whole if a is not b and (id(b) in objects or _was_joined(b, sequences))}
    # two chains that reach each other (a cycle) would both vanish
    outer = [(name, chain) for name, chain in whole if id(chain) not in inner] or whole
    yield from outer


def _was_joined(inner: Any, sequences: Iterable[Any]) -> bool:
    """``inner | more`` takes the steps of a sequence over, not the sequence."""
    steps = getattr(inner, "steps", None)
    if not isinstance(steps, list):
        return False
    wanted = [id(step) for step in steps]
    for sequence in sequences:
        ids = [id(step) for step in sequence.steps]
        if len(wanted) < len(ids) and any(ids[i : i + len(wanted)] == wanted for i in range(len(ids))):
            return True
    return False


def _chains(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Each chain once, under its first name."""
    seen: set[int] = set()
    for name, value in list(vars(module).items()):
        if not name.startswith("_") and id(value) not in seen and framework_of(value, alone=True) is not None:
            seen.add(id(value))
            yield name, value


def _from_factory(module: ModuleType, target: Target, factory: Any) -> LoadedTarget:
    attr = target.attr
    assert attr is not None
    if not callable(factory) or isinstance(factory, type):
        raise NoChainFound(
            f"{_where(target)}: {attr} is a {type(factory).__name__}, which is not a chain; a Runnable, a compiled graph, a query or chat "
            "engine, a workflow, or a function without arguments that returns one is needed"
        )
    try:
        with stable_ids(f"{target.module}:{attr}"):
            chain = factory()
    except Exception as error:  # the user's function
        raise TargetImportFailed(
            f"{_line_of(error, target)}: {attr}() raised {type(error).__name__}: {redacted(str(error))}"
        ) from error
    framework = framework_of(chain, alone=True)
    if framework is None:
        raise NoChainFound(f"{_where(target)}: {attr}() returned a {type(chain).__name__}, which is not a chain")
    return LoadedTarget(module, attr, chain, framework, is_factory=True)
