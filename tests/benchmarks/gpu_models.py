"""Model folders with the shapes of known models, a small tokenizer and no weights, for vLLM's ``load_format=dummy``."""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False, "bos_token_id": 0,
    "eos_token_id": 1, "torch_dtype": "bfloat16", "use_cache": True, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
    },
}  # fmt: skip
#: Roles are left out: what is measured is how many tokens there are, not what they mean.
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def write_models(folder: Path) -> None:
    """One folder for each of ``SHAPES``."""
    tokenizer = _tokenizer()
    for name, shape in SHAPES.items():
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path / "tokenizer.json"))
        _write(path / "config.json", {**_LLAMA, **shape})
        _write(path / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
        _write(
            path / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 8192,
                "chat_template": _TEMPLATE,
            },
        )  # fmt: skip


def _tokenizer() -> Tokenizer:
    """Of the corpus that the examples search, so that passages have about as many tokens as a real one would give them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    return tokenizer


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
