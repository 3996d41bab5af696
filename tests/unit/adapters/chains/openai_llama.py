from llama_index.core import VectorStoreIndex
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.schema import Document
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

server = {"api_base": "http://127.0.0.1:9/v1", "api_key": "sk-secret"}
llm = OpenAILike(model="small", is_chat_model=True, **server)
embed_model = OpenAILikeEmbedding(model_name="embed", **server)
index = VectorStoreIndex.from_documents([Document(text=f"passage {n}") for n in range(20)], embed_model=embed_model)


def parse(answer: str, num_choices: int) -> tuple[list[int], list[float]]:
    return [2, 1], [9.0, float(len(answer) % 7)]


query_engine = index.as_query_engine(
    llm=llm, similarity_top_k=3, node_postprocessors=[LLMRerank(llm=llm, top_n=2, parse_choice_select_answer_fn=parse)]
)
