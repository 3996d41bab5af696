"""Routing while the builder imports the user's module: components are not known yet, so a model's name decides."""

from __future__ import annotations

from patchwork_adapters.placement import component_id, is_local_url
from patchwork_adapters.transport import Kind
from patchwork_serving.assign import HOSTED_OPENAI
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ModelUnknown
from patchwork_serving.models.registry import ResolvedModel, resolve
from patchwork_serving.routing import KIND_OF_PATH


class ImportRouter:
    """Implements ``patchwork_adapters.protocol.Router``; ids are those that ``assign`` gives afterwards."""

    def __init__(self, config: Config, paths: Paths) -> None:
        self._config = config
        self._paths = paths
        self._found: dict[tuple[str, Kind], ResolvedModel | None] = {}

    def find(self, name: str, kind: Kind) -> ResolvedModel | None:
        """The model of this name that can be hosted here as this kind, or None."""
        key = (name, kind)
        if key not in self._found:
            try:
                model = resolve(name, self._config.models, self._paths)
            except ModelUnknown:
                model = None
            self._found[key] = model if model is not None and model.kind == kind else None
        return self._found[key]

    def __call__(self, base_url: str, path: str, model: str | None) -> str | None:
        kind = KIND_OF_PATH.get(path)
        if kind is None or model is None:
            return None
        if not (is_local_url(base_url) or base_url.rstrip("/") == HOSTED_OPENAI):
            return None
        found = self.find(model, kind)
        return None if found is None or found.engine == "external" else component_id(kind, found.name)
