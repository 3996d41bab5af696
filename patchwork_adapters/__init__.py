"""Taking chains apart: finds the heavy leaves of a LangChain, LangGraph or LlamaIndex chain and swaps them for calls to components."""
