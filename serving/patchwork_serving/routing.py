"""Which component answers a request of an OpenAI client, told from its URL, path and model."""

from __future__ import annotations

from collections.abc import Mapping

from patchwork_adapters.transport import Kind, Way
from patchwork_serving.release import Release

KIND_OF_PATH: Mapping[str, Kind] = {
    "/v1/chat/completions": "llm",
    "/v1/completions": "llm",
    "/v1/responses": "llm",
    "/v1/embeddings": "embedder",
}


class ModelRouter:
    """Implements ``patchwork_adapters.protocol.Router``: by kind and the model's name as the client writes it.

    Clients that are built while the chain runs are routed by the same rule as those that were found, because the name is all that both
    have in common.
    """

    def __init__(self, components: Mapping[tuple[Kind, str], str]) -> None:
        self._components = components

    @classmethod
    def of(cls, release: Release, way: Way = "protocol") -> ModelRouter:
        """To the components that are run this way; ``external`` names those of hosted APIs."""
        names: dict[tuple[Kind, str], str] = {}
        for spec in release.components:
            if spec.way != way or spec.model is None:
                continue
            for name in (spec.model, *spec.aliases):
                names[spec.kind, name] = spec.id
        return cls(names)

    def __call__(self, base_url: str, path: str, model: str | None) -> str | None:
        kind = KIND_OF_PATH.get(path)
        return None if kind is None or model is None else self._components.get((kind, model))
