"""Tiny Hugging Face models with random weights, made on the spot, and a cluster that runs operations with the very same library.

What differs between a leaf and its swapped self is then the mapping alone, so results must be equal, not merely near.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from patchwork_adapters import codec
from patchwork_adapters.transport import LeafCall

TEXT = "the a what does pass statement do nothing python is of in user system assistant try finally clause value"
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_causal_lm(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_cross_encoder(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = _tokenizer()
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>", model_max_length=256
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


class LibraryCluster:
    """Runs ``embed``, ``complete`` and ``score`` with sentence-transformers and transformers on one folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def call(self, call: LeafCall) -> bytes:
        return codec.encode_outcome(getattr(self, f"_{call.method}")(self._arguments(call)))

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        whole = self._complete(self._arguments(call))["choices"][0]["text"]
        for i in range(0, len(whole), 3):
            yield codec.encode_outcome({"choices": [{"index": 0, "text": whole[i : i + 3]}]})

    def _arguments(self, call: LeafCall) -> dict[str, Any]:
        arguments: dict[str, Any] = codec.decode(call.payload)
        self.calls.append((call.method, arguments))
        return arguments

    @cached_property
    def _sentences(self) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(self.folder, device="cpu")

    @cached_property
    def _generator(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder), AutoModelForCausalLM.from_pretrained(self.folder)

    @cached_property
    def _pairs(self) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(self.folder, device="cpu")

    def _embed(self, arguments: dict[str, Any]) -> Any:
        return self._sentences.encode(arguments["texts"], normalize_embeddings=bool(arguments["normalize"]))

    def _complete(self, arguments: dict[str, Any]) -> dict[str, Any]:
        tokenizer, model = self._generator
        body = arguments["body"]
        assert body["temperature"] == 0, "random numbers would not be equal"
        inputs = tokenizer(body["prompt"], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False)
        text = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"choices": [{"index": 0, "text": text, "finish_reason": "length"}]}

    def _score(self, arguments: dict[str, Any]) -> Any:
        return np.asarray(self._pairs.predict(arguments["pairs"]), dtype=np.float32)
