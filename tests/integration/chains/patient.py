"""A model that takes as many seconds as it is asked for; it runs as the user's own object."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough


def _answer(seconds: float) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=AIMessage(f"waited {seconds} s"))])


class Patient(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "patient"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        seconds = float(str(messages[-1].content))
        time.sleep(seconds)
        return _answer(seconds)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        seconds = float(str(messages[-1].content))
        await asyncio.sleep(seconds)
        return _answer(seconds)


llm = Patient()
chain = {"seconds": RunnablePassthrough()} | ChatPromptTemplate.from_template("{seconds}") | llm | StrOutputParser()
