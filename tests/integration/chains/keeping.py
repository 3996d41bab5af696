"""A model that keeps the prompts it has read, as engines do: a document that its process has read before is answered sooner."""

from __future__ import annotations

import time
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate

READING_S, ANSWERING_S = 0.3, 0.1
_read: set[str] = set()


class Keeping(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "keeping"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        document = str(messages[0].content)
        is_new = document not in _read
        _read.add(document)
        time.sleep(ANSWERING_S + READING_S * is_new)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("read it" if is_new else "knew it"))])


keeper = Keeping()
prompt = ChatPromptTemplate.from_messages([("system", "{document}"), ("user", "{question}")])
chain = prompt | keeper | StrOutputParser()
