"""JSON schemas are tried before they are used: one that OpenVINO cannot compile ends the step in which it first meets it, and with it
the answers of everybody in that step. So each new one is met first by a pipeline that has nobody else in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from patchwork_serving.errors import EngineRefused

#: Schemas remembered, of either kind; an application has few.
MAX_KNOWN = 512
_REFUSED = (
    "response_format: OpenVINO cannot compile this JSON schema; it knows no lookahead in patterns, no $ref out of the schema, and nothing "
    "that no value fits"
)


class Schemas:
    """``load`` makes a small pipeline (seconds); it is called when the first schema comes, and again after one that failed.

    Blocks; methods may be called from any thread.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._known: dict[str, bool] = {}
        self._pipeline: Any = None

    def check(self, schema: str, config: Any, ids: Any) -> None:
        """EngineRefused when ``config``, which carries ``schema``, cannot be used. ``ids``: any prompt."""
        works = self._known.get(schema)
        if works is None:
            with self._lock:
                works = self._known.get(schema)
                if works is None:
                    works = self._try(config, ids)
                    if len(self._known) >= MAX_KNOWN:
                        self._known.pop(next(iter(self._known)))
                    self._known[schema] = works
        if not works:
            raise EngineRefused(_REFUSED)

    def close(self) -> None:
        with self._lock:
            self._pipeline = None

    def _try(self, config: Any, ids: Any) -> bool:
        if self._pipeline is None:
            self._pipeline = self._load()
        most, config.max_new_tokens = config.max_new_tokens, 1
        try:
            handle = self._pipeline.add_request(0, ids, config)  # a request goes when its handle does
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
            del handle
        except RuntimeError:
            self._pipeline = None
            return False
        finally:
            config.max_new_tokens = most
        return True
