"""``file.py:attr`` to the object, as a user's own server script would import it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_chain(target: str) -> Any:
    """What ``file.py:attr`` names."""
    file, _, attribute = target.partition(":")
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, attribute)
