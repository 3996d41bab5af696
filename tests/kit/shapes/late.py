"""Chains whose functions construct their leaves: in lambdas and nodes, imported there, with state, with arguments known only then."""

from __future__ import annotations

from typing import Any, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_leaves import AsyncChat, Chat, HashEmbeddings, Keywords, corpus
from langgraph.graph import END, START, StateGraph
from pydantic import Field

NAME = "by a name"
documents = corpus()


class Counting(BaseChatModel):
    """Says how often it was asked: a new one starts anew."""

    label: str = "count"
    asked: int = 0
    said: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.asked += 1
        if self.label == "flaky" and self.asked < 2:
            raise ValueError("not yet")
        self.said.append(str(messages[-1].content))
        text = f"{self.label} {self.asked}: {' '.join(self.said)}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text))])


def twice(question: str) -> str:
    model = Counting()
    return f"{model.invoke(question).text} / {model.invoke('again').text}"


def found(question: str) -> str:
    from langchain_leaves import HashEmbeddings as Vectors

    vector = Vectors("inside").embed_query(question)
    texts = [d.page_content for d in Keywords(documents=documents).invoke(question)]
    return f"{[round(number, 3) for number in vector]} {texts}"


def flaky(question: str) -> str:
    return Counting(label="flaky").with_retry(wait_exponential_jitter=False).invoke(question).text


lambdas = (
    RunnableLambda(lambda question: question.strip())
    | {
        "name": RunnableLambda(lambda question: AsyncChat(name_=NAME).invoke(question)) | StrOutputParser(),
        "twice": RunnableLambda(twice),
        "found": RunnableLambda(found),
        "flaky": RunnableLambda(flaky),
    }
    | RunnableLambda(lambda found: Chat(name_="last").invoke(str(sorted(found.items()))))
)


class Question(TypedDict, total=False):
    question: str
    answer: str


async def grade(state: Question) -> Question:
    return {"answer": Chat(name_="grade", temperature=0.5).invoke(state["question"]).text}


def write(state: Question) -> Question:
    vectors = HashEmbeddings(state["answer"][:3])  # known only now
    return {"answer": f"{AsyncChat(name_='write').invoke(state['answer']).text} {vectors.embed_query('x')[0]:.3f}"}


_builder = StateGraph(Question)
_builder.add_node("grade", grade)
_builder.add_node("write", write)
_builder.add_edge(START, "grade")
_builder.add_edge("grade", "write")
_builder.add_edge("write", END)
graph = _builder.compile()
