"""A GGUF file as a Hugging Face folder, so that ``transformers`` can run the very weights that llama.cpp runs.

transformers' own ``gguf_file=`` keeps the weights packed and refuses to save them. This needs ``gguf`` and ``tokenizers`` (base
install) and ``safetensors`` (``[hf]`` extra), not torch. It knows the llama architecture with a byte-level BPE vocabulary, which
is what the packaged model has.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchwork_serving.errors import MissingExtra, ModelCorrupt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Dtype = Literal["float32", "float16"]

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
_SPECIAL_NAMES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def gguf_to_hf(gguf: Path, out_dir: Path, dtype: Dtype = "float32") -> Path:
    """Write ``out_dir`` with config, weights, tokenizer and chat template of ``gguf``; return ``out_dir``.

    The folder appears whole or not at all. An existing folder is kept as it is. ``float32`` is exact; ``float16`` halves the size
    and is for GPUs: most CPUs compute it several times slower. Raises ModelCorrupt when the file is not a llama-architecture GGUF, and
    MissingExtra without ``safetensors``.
    """
    if (out_dir / "config.json").exists():
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{out_dir.name}.", dir=out_dir.parent))
    try:
        _write(gguf, unfinished, dtype)
        _publish(unfinished)
        unfinished.rename(out_dir)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out_dir


def _publish(folder: Path) -> None:
    """mkdtemp and safetensors write for this user only; a replica may run as another."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        if file.suffix != ".gguf":  # that one is shared with its owner
            file.chmod(0o644)


def _write(gguf: Path, folder: Path, dtype: Dtype) -> None:
    try:
        from safetensors.numpy import save_file  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtra("converting a model needs safetensors; install patchwork-rag[hf]") from error
    reader, fields = _read(gguf)
    weights = dict(_weights(reader, fields, dtype))
    config = _config(fields, tied="lm_head.weight" not in weights, dtype=dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _dump(folder / "config.json", config)
    _dump(folder / "generation_config.json", {k: v for k, v in config.items() if k.endswith("_token_id")})
    _tokenizer(fields).save(str(folder / "tokenizer.json"))
    _dump(folder / "tokenizer_config.json", _tokenizer_config(fields))
    _keep_source(gguf, folder)


def _keep_source(gguf: Path, folder: Path) -> None:
    """The GGUF stays beside the weights made of it: an engine that reads GGUF then runs the same model when it is given the folder."""
    beside = folder / gguf.name
    try:
        beside.hardlink_to(gguf)
    except OSError:  # another file system
        shutil.copyfile(gguf, beside)


def _read(gguf: Path) -> tuple[Any, Mapping[str, Any]]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(gguf))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ModelCorrupt(f"{gguf} cannot be read as GGUF; fetch it again") from error
    architecture = fields.get("general.architecture")
    if architecture != "llama" or fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelCorrupt(
            f"{gguf} holds a {architecture!r} model; only llama with a byte-level BPE vocabulary can be converted. "
            "Use the Hugging Face folder of that model instead"
        )
    return reader, fields


def _weights(reader: Any, fields: Mapping[str, Any], dtype: Dtype) -> Iterator[tuple[str, NDArray[Any]]]:
    from gguf.quants import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if block is None:
            name = _TOP[tensor.name.removesuffix(".weight")]
        else:
            name = f"model.layers.{block[1]}.{_BLOCK[block[2]]}"
            if block[2] in heads:
                weight = _unpermute(weight, heads[block[2]])
        yield f"{name}.weight", np.ascontiguousarray(weight, dtype=dtype)


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo the order of rotary dimensions that llama.cpp's converter gives to queries and keys."""
    return (
        weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _config(fields: Mapping[str, Any], *, tied: bool, dtype: Dtype) -> dict[str, Any]:
    eos = fields["tokenizer.ggml.eos_token_id"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": eos,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id", eos),
        "torch_dtype": dtype,
        "attention_bias": False,
        "mlp_bias": False,
        "use_cache": True,
    }


def _tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE; digits are split one by one, as the SmolLM family was trained."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in fields["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if fields.get("tokenizer.ggml.pre") == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {name: fields.get(f"tokenizer.ggml.{field}") for name, field in _SPECIAL_NAMES.items()}
    if ids["pad"] is None:
        ids["pad"] = ids["eos"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields.get("tokenizer.chat_template"),
        **{f"{name}_token": tokens[i] for name, i in ids.items() if i is not None},
    }


def _dump(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1))
