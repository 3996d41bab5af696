"""Which component each leaf becomes here: the way it is run, the engine that runs it (design D4), and what ``patchwork.yaml`` overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patchwork_adapters.graph import Component
from patchwork_adapters.placement import Placed, Placement, Resolver, Stay, can_be_mapped, is_local_url, place
from patchwork_adapters.transport import Kind
from patchwork_adapters.walk import Leaf
from patchwork_scheduler.cost import fit_cost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_serving.components.vllm_arguments import gpus_of
from patchwork_serving.config import ComponentConfig, Config
from patchwork_serving.errors import ConfigError
from patchwork_serving.models.registry import ResolvedModel
from patchwork_serving.release import ComponentSpec

#: Finds a model by the name that the user's code gives it; None when it cannot be hosted here.
ModelFinder = Callable[[str, Kind], ResolvedModel | None]

HOSTED_OPENAI = "https://api.openai.com/v1"
#: Work items that one batch holds. An embedder's gain ends at about 32 short texts (0.2 s on two cores); a batch of searches is a
#: pipeline on one connection, and a replica has several.
_MAX_BATCH: Mapping[Kind, int] = {"embedder": 32, "retriever": 8, "reranker": 32, "llm": 1, "tool": 1, "function": 1}
#: Ray bookkeeping: shares that let a demo fit on two cores beside its ingress.
_NUM_CPUS: Mapping[Kind, float] = {
    "llm": 0.5,
    "embedder": 0.3,
    "retriever": 0.1,
    "reranker": 0.3,
    "tool": 0.1,
    "function": 0.1,
}
#: A hosted API gets a limit even when nobody sets one, because most answer 429 beyond a few dozen calls at once.
_EXTERNAL_CONCURRENCY = 32

#: What llama.cpp's classes say about their model, in the words of the engines that may run it.
_WORDS: Mapping[str, Mapping[str, str]] = {
    "llamacpp": {name: name for name in ("n_ctx", "rope_freq_base", "rope_freq_scale")},
    "openvino": {"n_ctx": "n_ctx"},
    "vllm": {"n_ctx": "max_model_len"},
    "emulated": {},
}


@dataclass(frozen=True, slots=True)
class Assigned:
    placed: Placed
    specs: tuple[ComponentSpec, ...]


@dataclass(frozen=True, slots=True)
class ByModel:
    """A resolver that knows which models can be hosted here."""

    find_model: ModelFinder

    def __call__(self, leaf: Leaf) -> Placement | Stay:
        if leaf.spec.export is not None:
            return Placement("engine", "pgvector")
        facts = leaf.spec.facts(leaf.obj)
        if leaf.spec.speaks_openai:
            return self._speaking(leaf.kind, facts.model, facts.base_url)
        hosted = can_be_mapped(leaf.spec, facts)
        if hosted and facts.model is not None and (model := self.find_model(facts.model, leaf.kind)) is not None:
            return Placement("engine", model.engine, model.name, variant=repr(sorted(facts.options.items())))
        if not leaf.spec.cut(type(leaf.obj)):
            return Stay(f"{leaf.cls} defines none of the methods that are called from outside")
        return Placement("own", "own", facts.model)

    def _speaking(self, kind: Kind, name: str | None, base_url: str | None) -> Placement:
        """An OpenAI client: hosted here when its model can be, unless its URL is a hosted API's of another company."""
        ours = base_url is None or is_local_url(base_url) or base_url.rstrip("/") == HOSTED_OPENAI
        model = self.find_model(name, kind) if name and ours else None
        if model is None or model.engine == "external":
            return Placement("external", "external", name)
        return Placement("protocol", model.engine, model.name)


def assign(leaves: Sequence[Leaf], config: Config, find_model: ModelFinder) -> Assigned:
    """Components and their leaves. ConfigError when ``patchwork.yaml`` names a component that does not exist, or asks the impossible."""
    resolver = ByModel(find_model)
    ids = _ids(place(leaves, resolver))
    unknown = sorted(set(config.components) - set(ids.values()))
    if unknown:
        known = ", ".join(sorted(set(ids.values()))) or "none"
        raise ConfigError(f"patchwork.yaml: components.{unknown[0]}: there is no such component; there are {known}")
    placed = place(leaves, _Overridden(resolver, config.components, ids))
    by_path = {leaf.path: leaf for leaf in leaves}
    overrides = _overrides_by_component(placed, config.components, ids)
    specs = [_spec(component, by_path, overrides.get(component.id), find_model) for component in placed.components]
    return Assigned(placed, tuple(dataclasses.replace(spec, policy=config.scheduler.policy) for spec in specs))


@dataclass(frozen=True, slots=True)
class _Overridden:
    """A resolver with the ways that ``patchwork.yaml`` gives to components, by the ids that they have without them."""

    inner: Resolver
    components: Mapping[str, ComponentConfig]
    ids: Mapping[str, str]

    def __call__(self, leaf: Leaf) -> Placement | Stay:
        found = self.inner(leaf)
        component = self.ids.get(leaf.path)
        override = self.components.get(component) if component else None
        if override is None or override.way is None or isinstance(found, Stay) or override.way == found.way:
            return found
        if override.way == "local":
            return Stay(f"patchwork.yaml keeps {component} in the orchestrator")
        if override.way == "own":
            return Placement("own", "own", found.model)
        raise ConfigError(
            f"patchwork.yaml: components.{component}.way: {leaf.cls} cannot be run the {override.way!r} way; "
            f"it can be {found.way!r}, 'own' or 'local'"
        )


def _ids(placed: Placed) -> dict[str, str]:
    return {path: component.id for component in placed.components for path in component.leaves}


def _overrides_by_component(
    placed: Placed, overrides: Mapping[str, ComponentConfig], ids: Mapping[str, str]
) -> dict[str, ComponentConfig]:
    """A component keeps the settings of its leaves' id without overrides: moving a leaf to its own object changes the id."""
    found = {}
    for component in placed.components:
        for path in component.leaves:
            if ids[path] in overrides:
                found[component.id] = overrides[ids[path]]
    return found


def _spec(
    component: Component, leaves: Mapping[str, Leaf], override: ComponentConfig | None, find_model: ModelFinder
) -> ComponentSpec:
    names = {leaves[path].spec.facts(leaves[path].obj).model for path in component.leaves}
    model = (
        find_model(component.model, component.kind)
        if component.model and component.way in ("protocol", "engine", "external")
        else None
    )
    spec = ComponentSpec(
        id=component.id,
        kind=component.kind,
        way=component.way,
        engine=component.engine,
        model=component.model,
        engine_args=_engine_args(component, leaves, model),
        leaves=component.leaves,
        aliases=tuple(sorted(name for name in names if name is not None and name != component.model)),
        num_cpus=_NUM_CPUS[component.kind],
        num_gpus=gpus_of(model.engine_args) if component.engine == "vllm" and model is not None else 0.0,
        max_batch=_MAX_BATCH[component.kind],
        concurrency=_EXTERNAL_CONCURRENCY if component.external else None,
    )
    if override is not None:
        wishes = override.model_dump(exclude={"way", "min_replicas", "max_replicas"})  # the limits are the autoscaler's
        given = {name: value for name, value in wishes.items() if value is not None}
        spec = dataclasses.replace(spec, **given)
    return dataclasses.replace(spec, cost=_emulated_cost(spec)) if spec.is_emulated else spec


def _emulated_cost(spec: ComponentSpec) -> Mapping[str, object] | None:
    """What an emulated component costs is known before anything ran; None where the engine will refuse the rows."""
    wish = spec.emulate if spec.emulate is not None else spec.engine_args
    try:
        rows = [{**row, "seconds": row["seconds"] * wish.get("slower", 1.0)} for row in wish["rows"]]
        return dataclasses.asdict(fit_cost(rows))
    except (IncompleteProfile, KeyError, TypeError):
        return None


def _in_words_of(engine: str, options: Mapping[str, object]) -> dict[str, object]:
    """A leaf's options as arguments of the engine that stands in for it; what its class means, another engine may not have."""
    words = _WORDS.get(engine)
    return dict(options) if words is None else {words[n]: value for n, value in options.items() if n in words}


def _engine_args(component: Component, leaves: Mapping[str, Leaf], model: ResolvedModel | None) -> dict[str, object]:
    options: dict[str, object] = {}
    if component.way == "engine":
        first = leaves[component.leaves[0]]
        options |= _in_words_of(component.engine, first.spec.facts(first.obj).options)
    if component.external:
        # a server named in patchwork.yaml: requests go there, wherever the client would send them
        return {"base_url": model.source} if model is not None and model.engine == "external" else {}
    return options | (dict(model.engine_args) if model is not None else {})
