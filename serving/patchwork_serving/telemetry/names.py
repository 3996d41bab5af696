"""Names of span attributes, as our own constants: the ``gen_ai.*`` constants of the Python package are all marked deprecated ("moved").

Two vocabularies are written side by side, so that plain OTLP tools (GenAI conventions) and RAG tools (OpenInference) both draw a RAG tree.
"""

from __future__ import annotations

from typing import Final

# OpenTelemetry, GenAI conventions
OPERATION: Final = "gen_ai.operation.name"
WORKFLOW: Final = "gen_ai.workflow.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"  # seconds
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
DATA_SOURCE: Final = "gen_ai.data_source.id"
RETRIEVAL_DOCUMENTS: Final = "gen_ai.retrieval.documents"  # JSON: [{"id", "score"}]
INPUT_MESSAGES: Final = "gen_ai.input.messages"  # JSON, content
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"  # JSON, content
TOOL_NAME: Final = "gen_ai.tool.name"
ERROR_TYPE: Final = "error.type"

# OpenInference
SPAN_KIND: Final = "openinference.span.kind"
INPUT_VALUE: Final = "input.value"
INPUT_MIME: Final = "input.mime_type"
OUTPUT_VALUE: Final = "output.value"
OUTPUT_MIME: Final = "output.mime_type"
LLM_MODEL: Final = "llm.model_name"
LLM_PROMPT_TOKENS: Final = "llm.token_count.prompt"
LLM_COMPLETION_TOKENS: Final = "llm.token_count.completion"
LLM_TOTAL_TOKENS: Final = "llm.token_count.total"
EMBEDDING_MODEL: Final = "embedding.model_name"
RERANKER_MODEL: Final = "reranker.model_name"
DOCUMENT: Final = "retrieval.documents.{index}.document.{field}"

# Our own. Times are seconds.
REQUEST_ID: Final = "patchwork.request_id"
RUN_ID: Final = "patchwork.run_id"
ROUTE: Final = "patchwork.route"
SLO: Final = "patchwork.slo"
DEADLINE: Final = "patchwork.deadline_s"
OUTCOME: Final = "patchwork.outcome"
WANTED: Final = "patchwork.trace_requested"
CALL_SITE: Final = "patchwork.call_site"
COMPONENT: Final = "patchwork.component"
ENGINE: Final = "patchwork.engine"
EMULATED: Final = "patchwork.emulated"  # the time is a profile's, not an engine's
WAY: Final = "patchwork.way"
METHOD: Final = "patchwork.method"
WORK_ITEMS: Final = "patchwork.work_items"
REPLICA: Final = "patchwork.replica"
QUEUE: Final = "patchwork.queue_s"
SERVICE: Final = "patchwork.service_s"
FIRST_FRAME: Final = "patchwork.first_frame_s"
SLACK: Final = "patchwork.slack_s"
BATCH_SIZE: Final = "patchwork.batch_size"
FRAMES: Final = "patchwork.frames"
CANCELLED: Final = "patchwork.cancelled"
PROCESS: Final = "patchwork.process"
APP: Final = "patchwork.app"

#: ``openinference.span.kind`` by component kind
OPENINFERENCE_KIND: Final = {
    "llm": "LLM",
    "embedder": "EMBEDDING",
    "retriever": "RETRIEVER",
    "reranker": "RERANKER",
    "tool": "TOOL",
    "function": "CHAIN",
}

#: first word of a span's name by component kind; a call of an LLM is named ``chat`` whichever endpoint it uses
SPAN_WORD: Final = {
    "llm": "chat",
    "embedder": "embeddings",
    "retriever": "retrieval",
    "reranker": "rerank",
    "tool": "execute_tool",
    "function": "function",
}
