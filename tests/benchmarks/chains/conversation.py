"""A long document and a question about it, asked again and again: what a kept prompt is worth most for."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

prompt = ChatPromptTemplate.from_messages(
    [("system", "Answer in one sentence from this document.\n\n{document}"), ("user", "{question}")]
)
chain = prompt | ChatOpenAI(model="smollm2-135m-instruct", temperature=0, max_tokens=16) | StrOutputParser()
