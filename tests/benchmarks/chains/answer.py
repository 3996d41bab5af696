"""A prompt and a model: the shortest chain whose answers stream."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

chain = ChatPromptTemplate.from_template("{question}") | ChatOpenAI(model="answerer", temperature=0) | StrOutputParser()
