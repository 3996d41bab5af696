"""Constructors of Hugging Face classes that load no weights (design, D4): their models are :class:`Deferred` in deployed processes.

Each hook acts on the module that defines a class, right after it was imported, and puts everything back when it is undone.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.huggingface_fields import folder_json
from patchwork_adapters.leaves.huggingface_template import deferred_tokenizer
from patchwork_adapters.leaves.spec import ConstructHook, register_construct_hook


def _replaced(owner: Any, **replacements: Any) -> Undo:
    """Set attributes of a class or module; the result sets them back."""
    before = {name: inspect.getattr_static(owner, name) for name in replacements}
    for name, value in replacements.items():
        setattr(owner, name, value)

    def undo() -> None:
        for name, value in before.items():
            setattr(owner, name, value)

    return undo


# ---- LangChain


def _lazy_init(class_name: str, attribute: str) -> Callable[[ModuleType], Undo]:
    """For a pydantic class whose constructor sets its fields and then ``self.<attribute> = <heavy model>``."""

    def install(module: ModuleType) -> Undo:
        cls = getattr(module, class_name)
        original = cls.__init__

        @functools.wraps(original)
        def construct(self: Any, **kwargs: Any) -> None:
            super(cls, self).__init__(**kwargs)

            def build() -> Any:
                real = cls.__new__(cls)
                original(real, **kwargs)
                return getattr(real, attribute)

            setattr(self, attribute, Deferred(build))

        return _replaced(cls, __init__=construct)

    return install


def _lazy_pipeline(module: ModuleType) -> Undo:
    cls = module.HuggingFacePipeline
    original = inspect.getattr_static(cls, "from_model_id").__func__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def from_model_id(cls: type, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(cls, *args, **kwargs)
        bound.apply_defaults()
        given: dict[str, Any] = bound.arguments
        model_kwargs = dict(given["model_kwargs"] or {})
        if given["device_map"] is not None:
            model_kwargs["device_map"] = given["device_map"]
        model_kwargs.pop("trust_remote_code", None)
        pipeline = Deferred(lambda: original(cls, *args, **kwargs).pipeline, {"task": given["task"]})
        return cls(
            pipeline=pipeline,
            model_id=given["model_id"],
            model_kwargs=model_kwargs,
            pipeline_kwargs=given["pipeline_kwargs"] or {},
            batch_size=given["batch_size"],
            **given["kwargs"],
        )

    return _replaced(cls, from_model_id=classmethod(from_model_id))


def _lazy_transformers_pipeline(module: ModuleType) -> Undo:
    """``transformers.pipeline("text-generation", model="name")``; a pipeline around a model that is loaded already stays as it is."""
    original = module.pipeline
    signature = inspect.signature(original)

    @functools.wraps(original)
    def pipeline(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        extra = given.get("kwargs", {})
        loaded = [
            name
            for name, value in given.items()
            if name not in ("task", "model", "tokenizer", "kwargs") and value is not None
        ]
        if given.get("task") != "text-generation" or not isinstance(given.get("model"), str) or loaded:
            return original(*args, **kwargs)
        if given.get("tokenizer") not in (None, given["model"]):
            return original(*args, **kwargs)
        known = {"task": "text-generation", "model": _Named(given["model"])}
        return Deferred(lambda: original(*args, **kwargs), known, extra)

    undo = [_replaced(module, pipeline=pipeline)]
    package = sys.modules["transformers"]
    if "pipeline" in vars(package):  # it keeps what was asked of it once
        undo.append(_replaced(package, pipeline=pipeline))

    def undo_all() -> None:
        vars(package).pop("pipeline", None)  # asked for meanwhile, it was ours
        while undo:
            undo.pop()()

    return undo_all


class _Named:
    """What is asked of a model before it is loaded: its name."""

    def __init__(self, name: str) -> None:
        self.name_or_path = name


def _light_chat(module: ModuleType) -> Undo:
    """The tokenizer of a chat model renders its template without torch, and its coroutines work on a pipeline.

    In the original they refuse (``async generation is not supported with HuggingFacePipeline``), because a local model would block the
    loop. A deployed one does not, and HTTP requests are served by coroutines.
    """
    cls = module.ChatHuggingFace
    resolve, agenerate, astream = cls._resolve_model_id, cls._agenerate, cls._astream
    is_pipeline = module._is_huggingface_pipeline

    @functools.wraps(resolve)
    def _resolve_model_id(self: Any) -> None:
        if is_pipeline(self.llm) and self.tokenizer is None:
            self.model_id = self.model_id or self.llm.model_id
            self.tokenizer = deferred_tokenizer(self.model_id, functools.partial(_auto_tokenizer, self.model_id))
        if self.tokenizer is None or not is_pipeline(self.llm):
            resolve(self)

    @functools.wraps(agenerate)
    async def _agenerate(
        self: Any, messages: Any, stop: Any = None, run_manager: Any = None, stream: Any = None, **kwargs: Any
    ) -> Any:
        if not is_pipeline(self.llm) or stream or (stream is None and self.streaming):
            return await agenerate(self, messages, stop=stop, run_manager=run_manager, stream=stream, **kwargs)
        prompt = self._to_chat_prompt(messages)
        return self._to_chat_result(
            await self.llm._agenerate(prompts=[prompt], stop=stop, run_manager=run_manager, **kwargs)
        )

    @functools.wraps(astream)
    async def _astream(self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        if not is_pipeline(self.llm):
            async for chunk in astream(self, messages, stop=stop, run_manager=run_manager, **kwargs):
                yield chunk
            return
        from langchain_core.messages import AIMessageChunk
        from langchain_core.outputs import ChatGenerationChunk

        prompt = self._to_chat_prompt(messages)
        async for part in self.llm._astream(prompt, stop=stop, run_manager=run_manager, **kwargs):
            yield ChatGenerationChunk(message=AIMessageChunk(content=part.text), generation_info=part.generation_info)

    return _replaced(cls, _resolve_model_id=_resolve_model_id, _agenerate=_agenerate, _astream=_astream)


def _auto_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


# ---- LlamaIndex


def _lazy_sentence_transformer(module: ModuleType) -> Undo:
    """HuggingFaceEmbedding asks its model for its maximum length while it is constructed."""
    real = module.SentenceTransformer

    def sentence_transformer(model_name: str, **kwargs: Any) -> Any:
        limit = folder_json(model_name, "sentence_bert_config.json").get("max_seq_length")
        known = {"max_seq_length": limit} if limit else {}
        return Deferred(lambda: real(model_name, **kwargs), known, kwargs)

    return _replaced(module, SentenceTransformer=sentence_transformer)


def _lazy_rerank(module: ModuleType) -> Undo:
    cls = module.SentenceTransformerRerank
    original = cls.__init__

    @functools.wraps(original)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        with _cross_encoders_deferred():
            original(self, *args, **kwargs)

    return _replaced(cls, __init__=construct)


@contextmanager
def _cross_encoders_deferred() -> Iterator[None]:
    """Where a constructor imports CrossEncoder by itself, only while that runs: elsewhere it must stay a class."""
    import sentence_transformers

    real = sentence_transformers.CrossEncoder

    def cross_encoder(*args: Any, **kwargs: Any) -> Any:
        return Deferred(lambda: real(*args, **kwargs), settings=kwargs)

    undo = _replaced(sentence_transformers, CrossEncoder=cross_encoder)
    try:
        yield
    finally:
        undo()


def _lazy_causal_lm(module: ModuleType) -> Undo:
    """HuggingFaceLLM asks its model for its configuration and its name."""
    real = module.AutoModelForCausalLM

    class LazyCausalLM:
        @staticmethod
        def from_pretrained(name: str, **kwargs: Any) -> Any:
            known = {"config": _Config(folder_json(name, "config.json")), "name_or_path": name}
            return Deferred(lambda: real.from_pretrained(name, **kwargs), known, kwargs)

    return _replaced(module, AutoModelForCausalLM=LazyCausalLM)


class _Config:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)


for _module, _install in (
    ("langchain_huggingface.embeddings.huggingface", _lazy_init("HuggingFaceEmbeddings", "_client")),
    ("langchain_huggingface.llms.huggingface_pipeline", _lazy_pipeline),
    ("langchain_huggingface.chat_models.huggingface", _light_chat),
    ("langchain_community.cross_encoders.huggingface", _lazy_init("HuggingFaceCrossEncoder", "client")),
    ("transformers.pipelines", _lazy_transformers_pipeline),
    ("llama_index.embeddings.huggingface.base", _lazy_sentence_transformer),
    ("llama_index.llms.huggingface.base", _lazy_causal_lm),
    ("llama_index.postprocessor.sbert_rerank.base", _lazy_rerank),
    ("llama_index.core.postprocessor.sbert_rerank", _lazy_rerank),
):
    register_construct_hook(ConstructHook(_module, _install))
