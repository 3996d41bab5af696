"""Classes by their names, as they cross: which of them may be rebuilt from state, and which exist in this process."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from patchwork_adapters.errors import CodecError

#: Classes of these packages are rebuilt from their state; a class of the user's may do anything in ``__setstate__``, so it is pickled.
TRUSTED = ("langchain_core.", "langchain_classic.", "langchain_community.", "langgraph.", "llama_index.core.")


def path_of(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def resolve(module: str, qualname: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise CodecError(f"{module}.{qualname} does not exist in this process") from error
    return found


@functools.lru_cache(maxsize=4096)
def resolve_trusted(module: str, qualname: str) -> Any:
    """Checked before anything is imported: the name may come from outside."""
    if not module.startswith(TRUSTED):
        raise CodecError(f"class {module}.{qualname} is not rebuilt from state")
    return resolve(module, qualname)


@functools.lru_cache(maxsize=4096)
def is_importable(cls: type) -> bool:
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return False
    try:
        return resolve(*path_of(cls)) is cls
    except CodecError:
        return False


def is_trusted(cls: type) -> bool:
    return cls.__module__.startswith(TRUSTED) and is_importable(cls)
