"""Questions about the Python language, answered from its own reference: a small LlamaIndex query engine.

Needs an OpenAI-compatible server: the hosted one, or any local one through OPENAI_BASE_URL.

    python examples/llamaindex_rag.py "What does the finally clause do?"
"""

import os
import sys

from corpus import passages
from llama_index.core import PromptTemplate, VectorStoreIndex
from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

server = {"api_base": os.environ.get("OPENAI_BASE_URL"), "api_key": os.environ.get("OPENAI_API_KEY", "none")}

llm = OpenAILike(
    model=os.environ.get("CHAT_MODEL", "smollm2-135m-instruct"),
    is_chat_model=True,
    context_window=2048,
    temperature=0,
    max_tokens=64,
    **server,
)
embed_model = OpenAILikeEmbedding(
    model_name=os.environ.get("EMBED_MODEL", "all-minilm-l6-v2"),
    embed_batch_size=128,
    **server,
)
index = VectorStoreIndex(
    [
        # found by text and title, shown to the model as text alone
        TextNode(id_=p.id, text=p.text, metadata=p.metadata, excluded_llm_metadata_keys=list(p.metadata))
        for p in passages()
    ],
    embed_model=embed_model,
)
query_engine = index.as_query_engine(
    llm=llm,
    similarity_top_k=4,
    node_postprocessors=[
        # of each passage, keep the half of its sentences that is nearest to the question
        SentenceEmbeddingOptimizer(embed_model=embed_model, percentile_cutoff=0.5, context_before=0, context_after=0)
    ],
    text_qa_template=PromptTemplate(
        "Context:\n{context_str}\n\nAnswer in one or two sentences, using only the context.\nQuestion: {query_str}\n"
    ),
)

if __name__ == "__main__":
    print(query_engine.query(" ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"))
