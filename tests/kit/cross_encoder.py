"""A cross-encoder small enough to make in a test: the score of a pair is a weighted sum over its tokens, so it can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "paris", "france", "berlin", "capital", "cheese")


class TinyCrossEncoder:
    """``model.onnx`` and ``tokenizer.json`` in a folder; :meth:`logits` is what the network computes, in numpy."""

    def __init__(self, folder: Path, *, labels: int = 1, seed: int = 0) -> None:
        self.path = folder / "model.onnx"
        self._weights = np.random.default_rng(seed).normal(size=(len(WORDS), labels)).astype(np.float32)
        self._tokenizer = _tokenizer()
        self._tokenizer.save(str(folder / "tokenizer.json"))
        onnx.save(_graph(self._weights), str(self.path))

    def logits(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        rows = [self._tokenizer.encode(query, text).ids for query, text in pairs]
        return np.array([self._weights[ids].sum(axis=0) for ids in rows], dtype=np.float32)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(WORDS[:4]))
    return tokenizer


def _graph(weights: np.ndarray) -> onnx.ModelProto:
    shape = ["batch", "sequence"]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["tokens", "mask3"], ["real"]),
        helper.make_node("ReduceSum", ["real", "middle"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny-cross-encoder",
        [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [
            numpy_helper.from_array(weights, "table"),
            numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "middle"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
