"""Weights that the user's own code loads, at import or in a constructor of its own, are not loaded in deployed processes either.

``self.model = SentenceTransformer("name").eval()`` in a class of the user's gives a :class:`Deferred` that says it is a
``SentenceTransformer``, and is one as soon as something is asked of it: in the process that the leaf runs in, that is, and in no other.
Only what the user's code constructs by itself: what a framework constructs it needs, or has a hook of its own.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.leaves.deferred import Deferred, is_building
from patchwork_adapters.leaves.spec import ConstructHook, register_construct_hook
from patchwork_adapters.parts import is_user_module

#: Of ``torch.nn.Module``: they change the model in place and return it.
_FLUENT = frozenset({"to", "eval", "train", "cpu", "cuda", "float", "half", "bfloat16", "double", "requires_grad_"})


def _is_for_later(frame: FrameType, args: tuple[Any, ...], kwargs: dict[str, Any], named: str) -> bool:
    """Whether the user's code in ``frame`` asks for a model by its name or its folder."""
    name = args[0] if args else kwargs.get(named)
    return isinstance(name, str | Path) and not is_building() and is_user_module(frame.f_globals.get("__name__"))


def _lazy_classes(*classes: tuple[str, str]) -> Callable[[ModuleType], Undo]:
    """For classes whose constructor loads the model that an argument names: (class, argument)."""

    def install(module: ModuleType) -> Undo:
        undo = [_lazy_class(getattr(module, name), argument) for name, argument in classes]

        def undo_all() -> None:
            while undo:
                undo.pop()()

        return undo_all

    return install


def _lazy_class(cls: Any, named: str) -> Undo:
    """By its ``__new__``, so that it stays a class: what this gives is no object of it, and ``__init__`` does not run."""
    own = inspect.getattr_static(cls, "__new__") if "__new__" in vars(cls) else None
    inherited = cls.__new__

    def __new__(made: Any, *args: Any, **kwargs: Any) -> Any:
        # a class derived from it is the user's: its constructor may do anything
        if made is cls and _is_for_later(sys._getframe(1), args, kwargs, named):
            return Deferred(lambda: cls(*args, **kwargs), settings=kwargs, kind=cls, fluent=_FLUENT)
        return inherited(made) if inherited is object.__new__ else inherited(made, *args, **kwargs)

    cls.__new__ = __new__

    def undo() -> None:
        # once a class had a __new__, object's own would refuse arguments for it: one that ignores them stays
        cls.__new__ = own if own is not None else lambda made, *args, **kwargs: inherited(made)

    return undo


def _lazy_auto_models(module: ModuleType) -> Undo:
    """``AutoModel.from_pretrained("name")`` and its relatives, each of which has a copy of the method."""
    undo = [
        _lazy_auto_model(cls)
        for cls in list(vars(module).values())
        if isinstance(cls, type) and cls.__name__.startswith("AutoModel") and "from_pretrained" in vars(cls)
    ]

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return undo_all


def _lazy_auto_model(auto: Any) -> Undo:
    original = vars(auto)["from_pretrained"]
    load = original.__func__

    @functools.wraps(load)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        if _is_for_later(sys._getframe(1), args, kwargs, "pretrained_model_name_or_path"):
            return Deferred(lambda: load(cls, *args, **kwargs), settings=kwargs, fluent=_FLUENT)
        return load(cls, *args, **kwargs)

    auto.from_pretrained = classmethod(from_pretrained)

    def undo() -> None:
        auto.from_pretrained = original

    return undo


for _module, _install in (
    (
        "sentence_transformers",
        _lazy_classes(("SentenceTransformer", "model_name_or_path"), ("CrossEncoder", "model_name_or_path")),
    ),
    ("transformers.models.auto.modeling_auto", _lazy_auto_models),
):
    register_construct_hook(ConstructHook(_module, _install))
