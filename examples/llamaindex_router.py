"""A LlamaIndex application with a router: plain questions go to one index, comparisons are split into sub-questions over two.

Needs an OpenAI-compatible server (OPENAI_BASE_URL).

    python examples/llamaindex_router.py "How does while differ from for?"
"""

import os
import sys

from corpus import passages
from llama_index.core import VectorStoreIndex
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

server = {"api_base": os.environ.get("OPENAI_BASE_URL"), "api_key": os.environ.get("OPENAI_API_KEY", "none")}
#: topics about statements; all else is about expressions and the data model
STATEMENTS = {"assert", "break", "class", "continue", "del", "for", "from", "global", "if", "import", "lambda", "nonlocal", "pass",
              "raise", "return", "try", "while", "with", "yield", "compound", "function", "assignment", "augassign"}  # fmt: skip

llm = OpenAILike(
    model=os.environ.get("CHAT_MODEL", "smollm2-135m-instruct"), is_chat_model=True, context_window=2048, temperature=0,
    max_tokens=48, **server,
)  # fmt: skip
embed_model = OpenAILikeEmbedding(
    model_name=os.environ.get("EMBED_MODEL", "all-minilm-l6-v2"), embed_batch_size=128, **server
)


def engine_over(statements: bool):
    nodes = [
        TextNode(id_=p.id, text=p.text, metadata=p.metadata, excluded_llm_metadata_keys=list(p.metadata))
        for p in passages()
        if (p.topic in STATEMENTS) is statements
    ]
    return VectorStoreIndex(nodes, embed_model=embed_model).as_query_engine(llm=llm, similarity_top_k=2)


class OnePerTool(BaseQuestionGenerator):
    """Ask each index the question; a model of 135 million parameters does not write the JSON that other generators want."""

    def generate(self, tools: list[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=f"{query.query_str} ({t.description})", tool_name=t.get_name()) for t in tools]

    async def agenerate(self, tools: list[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


statements = QueryEngineTool.from_defaults(
    engine_over(statements=True),
    name="statements",
    description="statements of Python: if, while, for, try, with, import, class, def",
)
others = QueryEngineTool.from_defaults(
    engine_over(statements=False),
    name="expressions",
    description="expressions, operators, numbers, strings, the data model",
)
both = QueryEngineTool.from_defaults(
    SubQuestionQueryEngine.from_defaults(
        [statements, others],
        llm=llm,
        question_gen=OnePerTool(),
        response_synthesizer=get_response_synthesizer(llm=llm, use_async=True),
        verbose=False,
    ),
    name="comparison",
    description="comparisons: how does one thing differ from another, what do two things have in common",
)
query_engine = RouterQueryEngine(
    selector=EmbeddingSingleSelector.from_defaults(embed_model), query_engine_tools=[statements, others, both], llm=llm
)

if __name__ == "__main__":
    print(query_engine.query(" ".join(sys.argv[1:]) or "How does while differ from for?"))
