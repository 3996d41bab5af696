"""LlamaIndex query and chat engines, workflows and agents, over models, embeddings and retrievers of the user's own."""

from __future__ import annotations

from typing import Any

from llama_index.core import Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.evaluation import RelevancyEvaluator
from llama_index.core.indices.query.query_transform.base import HyDEQueryTransform, StepDecomposeQueryTransform
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import LLMRerank, SimilarityPostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    CustomQueryEngine,
    FLAREInstructQueryEngine,
    MultiStepQueryEngine,
    RetrieverQueryEngine,
    RetryQueryEngine,
    RetrySourceQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import TextNode
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from llama_leaves import Caller, Judge, Text, Vectors, Words

TEXTS = [f"note {i} about {t}" for i, t in enumerate(("apples", "bread", "cherries", "dates", "eggs", "flour"))]


def nodes(prefix: str) -> list[TextNode]:
    return [TextNode(id_=f"{prefix}{i}", text=f"{prefix} {text}", metadata={"n": i}) for i, text in enumerate(TEXTS)]


llm, small = Text(note="main"), Text(note="small", window=1200)
vectors = Vectors()
Settings.llm = Text(note="settings")
Settings.embed_model = Vectors(salt="settings")
index = VectorStoreIndex(nodes("a"), embed_model=vectors)
other_index = VectorStoreIndex(nodes("b"), embed_model=Vectors(salt="b"))

refine = index.as_query_engine(llm=small, similarity_top_k=4, response_mode="refine")
compact = index.as_query_engine(llm=llm, similarity_top_k=4, response_mode="compact")
tree_summarize = index.as_query_engine(llm=small, similarity_top_k=4, response_mode="tree_summarize", use_async=True)
simple_summarize = index.as_query_engine(llm=llm, response_mode="simple_summarize")
accumulate = index.as_query_engine(llm=llm, similarity_top_k=3, response_mode="accumulate")
compact_accumulate = index.as_query_engine(llm=small, similarity_top_k=3, response_mode="compact_accumulate")
no_text = index.as_query_engine(llm=llm, response_mode="no_text")
streaming = index.as_query_engine(llm=llm, streaming=True)
summary = SummaryIndex(nodes("s")).as_query_engine(llm=small)
settings_defaults = other_index.as_query_engine()
reranked = index.as_query_engine(
    llm=llm,
    similarity_top_k=4,
    node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.0), LLMRerank(llm=small, top_n=2), Judge()],
)
citation = CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=2, citation_chunk_size=64)

tools = [
    QueryEngineTool.from_defaults(compact, name="tool_a", description="the a notes"),
    QueryEngineTool.from_defaults(accumulate, name="tool_b", description="the b notes"),
]
router = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), tools, llm=llm)
multi_router = RouterQueryEngine(
    LLMMultiSelector.from_defaults(llm=llm),
    tools,
    llm=llm,
    summarizer=get_response_synthesizer(llm=llm, response_mode="tree_summarize"),
)
sub_question = SubQuestionQueryEngine.from_defaults(
    tools,
    llm=llm,
    question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
    response_synthesizer=get_response_synthesizer(llm=llm),
    use_async=True,
)
multi_step = MultiStepQueryEngine(
    compact,
    StepDecomposeQueryTransform(llm=llm),
    response_synthesizer=get_response_synthesizer(llm=llm),
    index_summary="notes",
    num_steps=2,
)
retry = RetryQueryEngine(compact, RelevancyEvaluator(llm=llm), max_retries=2)
retry_source = RetrySourceQueryEngine(compact, RelevancyEvaluator(llm=llm), llm=llm, max_retries=1)
fusion = RetrieverQueryEngine.from_args(
    QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=2), other_index.as_retriever(similarity_top_k=2)],
        llm=llm,
        num_queries=3,
        similarity_top_k=3,
        mode="reciprocal_rerank",
        use_async=False,
    ),
    llm=llm,
)
transformed = TransformQueryEngine(compact, HyDEQueryTransform(llm=small, include_original=True))
flare = FLAREInstructQueryEngine(query_engine=compact, llm=llm, max_iterations=2)
own_retriever = RetrieverQueryEngine.from_args(Words(TEXTS), llm=llm, node_postprocessors=[Judge(top_n=1)])


class Custom(CustomQueryEngine):
    """A query engine of the user's own."""

    retriever: Any
    model: Any

    def custom_query(self, query_str: str) -> str:
        found = self.retriever.retrieve(query_str)
        return str(self.model.complete(f"{[n.get_content() for n in found]} {query_str}"))


custom = Custom(retriever=index.as_retriever(similarity_top_k=2), model=llm)

simple_chat = SimpleChatEngine.from_defaults(llm=Caller(note="simple"))
condense_question = CondenseQuestionChatEngine.from_defaults(query_engine=compact, llm=llm)
context_chat = ContextChatEngine.from_defaults(
    retriever=index.as_retriever(), llm=Caller(note="context"), memory=ChatMemoryBuffer.from_defaults(token_limit=4000)
)
condense_context = CondensePlusContextChatEngine.from_defaults(retriever=index.as_retriever(), llm=Caller(note="both"))


class Found(Event):
    texts: list[str]


class Judged(Event):
    text: str
    good: bool


class Flow(Workflow):
    """Retrieves, judges each text at once, writes; streams an event on the way."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.retriever = index.as_retriever(similarity_top_k=3)
        self.judge = Judge(top_n=2)
        self.model = Caller(note="flow")

    @step
    async def retrieve(self, ctx: Context, ev: StartEvent) -> Found:
        found = await self.retriever.aretrieve(ev.query)
        kept = self.judge.postprocess_nodes(found, query_str=ev.query)
        ctx.write_event_to_stream(Found(texts=[n.get_content() for n in kept]))
        return Found(texts=[n.get_content() for n in kept])

    @step
    async def write(self, ctx: Context, ev: Found) -> StopEvent:
        text = await self.model.acomplete(" ".join(ev.texts))
        return StopEvent(result={"answer": text.text, "from": ev.texts})


workflow = Flow(timeout=30)


def look_up(input: str) -> str:
    """Search the notes."""
    return "\n".join(n.get_content() for n in index.as_retriever(similarity_top_k=2).retrieve(input))


function_agent = FunctionAgent(
    name="finder", description="finds notes", tools=[look_up], llm=Caller(note="agent"), system_prompt="Use the notes."
)
agents = AgentWorkflow(
    agents=[
        FunctionAgent(name="finder", description="finds", tools=[look_up], llm=Caller(note="agent"), can_handoff_to=[])
    ],
    root_agent="finder",
)
