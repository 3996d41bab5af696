"""Which component a leaf becomes, with real leaves and a finder that knows two models."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from patchwork_adapters.leaves.spec import install_construct_hooks
from patchwork_adapters.walk import find_leaves
from patchwork_serving.assign import Assigned, assign
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ConfigError
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.routing import ModelRouter

PATHS = Paths(Path("/nowhere"), Path("/nowhere"))
CHAT = "smollm2-135m-instruct"
EMBED = "all-minilm-l6-v2"


def llm(model: str = CHAT, **fields: object) -> ChatOpenAI:
    return ChatOpenAI(model=model, api_key="unused", **fields)  # type: ignore[arg-type]


def assigned(chain: Runnable, config: str = "{}") -> Assigned:  # type: ignore[type-arg]
    read = Config.model_validate_json(config)
    return assign(find_leaves(chain).leaves, read, ImportRouter(read, PATHS).find)


def test_a_model_that_can_be_hosted_is_hosted_by_its_name() -> None:
    (spec,) = assigned(llm() | RunnableLambda(lambda x: x)).specs
    assert (spec.id, spec.way, spec.engine, spec.model) == (f"llm-{CHAT}", "protocol", "llamacpp", CHAT)


def test_two_leaves_of_one_model_share_a_component() -> None:
    (spec,) = assigned(llm() | (lambda m: m.content) | llm(temperature=1.0)).specs  # type: ignore[arg-type]
    assert len(spec.leaves) == 2


def test_another_name_of_the_same_model_is_routed_to_the_same_component() -> None:
    found = assigned(llm("HuggingFaceTB/SmolLM2-135M-Instruct") | RunnableLambda(lambda x: x)).specs
    assert found[0].model == CHAT
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in found[0].aliases


def test_a_hosted_api_stays_where_it_is_with_a_limit() -> None:
    (spec,) = assigned(llm("gpt-5") | RunnableLambda(lambda x: x)).specs
    assert (spec.way, spec.engine) == ("external", "external")
    assert spec.concurrency is not None


def test_the_url_of_another_company_is_never_answered_by_us() -> None:
    (spec,) = assigned(llm(base_url="https://llm.example.com/v1") | RunnableLambda(lambda x: x)).specs
    assert spec.way == "external"


def test_a_store_in_memory_becomes_a_retriever_on_pgvector_and_its_embedder_a_component() -> None:
    store = InMemoryVectorStore(OpenAIEmbeddings(model=EMBED, api_key="unused", check_embedding_ctx_length=False))  # type: ignore[arg-type]
    store.store["1"] = {"id": "1", "vector": [1.0], "text": "a", "metadata": {}}
    kinds = {spec.kind: spec for spec in assigned(store.as_retriever() | RunnableLambda(lambda x: x)).specs}
    assert kinds["retriever"].engine == "pgvector"
    assert (kinds["embedder"].id, kinds["embedder"].engine) == (f"embedder-{EMBED}", "onnx")


def test_patchwork_yaml_overrides_numbers_and_ways() -> None:
    config = f'{{"components": {{"llm-{CHAT}": {{"replicas": 3, "slots": 2}}}}}}'
    (spec,) = assigned(llm() | RunnableLambda(lambda x: x), config).specs
    assert (spec.replicas, spec.slots) == (3, 2)
    kept = assigned(llm() | RunnableLambda(lambda x: x), f'{{"components": {{"llm-{CHAT}": {{"way": "local"}}}}}}')
    assert kept.specs == ()
    assert "patchwork.yaml" in kept.placed.opaque[0].why


def test_a_vllm_model_takes_as_many_gpus_as_it_spreads_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    models = (
        f'"models": {{"m": {{"source": "{tmp_path}", "engine": "vllm", "engine_args": {{"tensor_parallel_size": 2}}}}}}'
    )
    chain = llm("m") | RunnableLambda(lambda x: x)
    (spec,) = assigned(chain, f"{{{models}}}").specs
    assert (spec.engine, spec.num_gpus) == ("vllm", 2.0)
    (shared,) = assigned(chain, f'{{{models}, "components": {{"llm-m": {{"num_gpus": 0.5}}}}}}').specs
    assert shared.num_gpus == 0.5
    assert [spec.num_gpus for spec in assigned(llm() | RunnableLambda(lambda x: x)).specs] == [0.0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("engine", "wish", "args"),
    [
        ("llamacpp", "", {"n_ctx": 1024, "rope_freq_base": 10000.0, "rope_freq_scale": 1.0}),
        (
            "llamacpp",
            '"engine_args": {"n_ctx": 4096}',
            {"n_ctx": 4096, "rope_freq_base": 10000.0, "rope_freq_scale": 1.0},
        ),
        ("vllm", '"engine": "vllm"', {"max_model_len": 1024}),
    ],
    ids=["as the class says", "as patchwork.yaml says", "in the words of another engine"],
)
def test_a_model_of_llama_cpps_classes_keeps_its_context(
    tmp_path: Path, engine: str, wish: str, args: dict[str, object]
) -> None:
    from langchain_community.llms import LlamaCpp

    gguf = tmp_path / "some.gguf"
    gguf.touch()
    undo = install_construct_hooks()
    leaf = LlamaCpp(model_path=str(gguf), n_ctx=1024)
    undo()
    config = f'{{"models": {{"{gguf}": {{"source": "{gguf}", {wish}}}}}}}'.replace(", }", "}")
    (spec,) = assigned(leaf | RunnableLambda(lambda x: x), config).specs
    assert (spec.way, spec.engine, spec.engine_args) == ("engine", engine, args)


def test_the_policy_of_patchwork_yaml_reaches_every_component() -> None:
    chain = llm() | RunnableLambda(lambda x: x)
    assert [spec.policy for spec in assigned(chain).specs] == ["least_slack"]
    assert [spec.policy for spec in assigned(chain, '{"scheduler": {"policy": "fifo"}}').specs] == ["fifo"]


def test_a_component_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=f"no such component; there are llm-{CHAT}"):
        assigned(llm() | RunnableLambda(lambda x: x), '{"components": {"llm-other": {}}}')


def test_the_router_knows_models_by_kind_and_name_only() -> None:
    router = ModelRouter({("llm", CHAT): "llm-1", ("embedder", EMBED): "embedder-1"})
    assert router("http://any", "/v1/chat/completions", CHAT) == "llm-1"
    assert router("http://any", "/v1/embeddings", EMBED) == "embedder-1"
    assert router("http://any", "/v1/embeddings", CHAT) is None
    assert router("http://any", "/v1/models", CHAT) is None
    assert router("http://any", "/v1/chat/completions", None) is None
