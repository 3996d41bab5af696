"""What the settings of Hugging Face classes mean to a shared engine; pure, and none of their packages is imported.

Where a setting has no exact counterpart, :class:`Unmapped` says which: the leaf then runs the *own* way, as the user's object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


class Unmapped(ValueError):
    """A setting that no shared engine reproduces; the text names it."""


# ---- embeddings: sentence_transformers.SentenceTransformer.encode

_ENCODE_MEANINGLESS = frozenset(  # they change how fast it goes, not what comes out
    {"batch_size", "show_progress_bar", "convert_to_numpy", "device", "pool", "chunk_size"}
)
_ENCODE_MAPPED = frozenset({"prompt", "prompt_name", "normalize_embeddings"})
_MODEL_MEANINGLESS = frozenset({"device", "token", "revision", "local_files_only", "cache_folder", "backend"})
_MODEL_MAPPED = frozenset({"prompts", "default_prompt_name", "trust_remote_code"})


@dataclass(frozen=True, slots=True)
class Encoding:
    prefix: str  #: put before every text, as sentence-transformers does with prompts
    normalize: bool | None  #: None: as the model's own pipeline ends


def encoding(model: str, model_kwargs: Mapping[str, Any], encode_kwargs: Mapping[str, Any]) -> Encoding:
    """How ``SentenceTransformer(model, **model_kwargs).encode(texts, **encode_kwargs)`` turns texts into vectors."""
    _refuse_unknown("model_kwargs", model_kwargs, _MODEL_MEANINGLESS | _MODEL_MAPPED)
    _refuse_unknown("encode_kwargs", encode_kwargs, _ENCODE_MEANINGLESS | _ENCODE_MAPPED)
    return Encoding(
        prefix=_prompt(model, model_kwargs, encode_kwargs),
        normalize=True if encode_kwargs.get("normalize_embeddings") else None,
    )


def _prompt(model: str, model_kwargs: Mapping[str, Any], encode_kwargs: Mapping[str, Any]) -> str:
    if encode_kwargs.get("prompt") is not None:
        return str(encode_kwargs["prompt"])
    known = folder_json(model, "config_sentence_transformers.json")
    prompts = {**(known.get("prompts") or {}), **(model_kwargs.get("prompts") or {})}
    name = (
        encode_kwargs.get("prompt_name") or model_kwargs.get("default_prompt_name") or known.get("default_prompt_name")
    )
    if name is None:
        return ""
    if name not in prompts:
        raise Unmapped(f"prompt {name!r} is not among those of the model ({', '.join(prompts) or 'none'})")
    return str(prompts[name])


def _refuse_unknown(what: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = [name for name, value in given.items() if name not in known and value is not None]
    if unknown:
        raise Unmapped(f"{what}: {', '.join(sorted(unknown))}")


# ---- generation: transformers.pipeline("text-generation") and generate()

#: What the text-generation pipeline adds where neither the user nor the model's generation_config.json says anything.
PIPELINE_DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_SAMPLING_DEFAULTS: Mapping[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # transformers.GenerationConfig
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # at these values the setting does nothing
    "num_beams": (1,), "num_return_sequences": (1,), "repetition_penalty": (1.0,), "length_penalty": (1.0,), "no_repeat_ngram_size": (0,),
    "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "diversity_penalty": (0.0,), "num_beam_groups": (1,),
    "early_stopping": (False,), "renormalize_logits": (False,), "min_length": (0,), "min_new_tokens": (0,), "penalty_alpha": (0.0,),
    "encoder_repetition_penalty": (1.0,),
}  # fmt: skip
_GENERATION_MEANINGLESS = frozenset(
    {
        *(
            "use_cache",
            "cache_implementation",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "transformers_version",
            "return_full_text",
        ),
        *(
            "batch_size",
            "num_workers",
            "device",
            "device_map",
            "truncation",
            "padding",
            "_from_model_config",
            "return_text",
            "return_tensors",
        ),
        *(
            "clean_up_tokenization_spaces",
            "output_scores",
            "output_attentions",
            "output_hidden_states",
            "return_dict_in_generate",
        ),
    }
)


def sampling(model: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters of an OpenAI request for ``generate(**settings)``.

    ``defaults`` apply below the model's own generation_config.json, which applies below ``settings``. Greedy decoding is temperature 0.
    Random draws are the engine's own: sampled text equals the original in distribution only.
    """
    merged = {**defaults, **folder_json(model, "generation_config.json"), **settings}
    body: dict[str, Any] = {"max_tokens": _max_tokens(merged)}
    if merged.get("do_sample"):
        chosen = {**_SAMPLING_DEFAULTS, **{name: merged[name] for name in _SAMPLING if merged.get(name) is not None}}
        body |= {name: value for name, value in chosen.items() if not (name == "top_k" and value == 0)}
    else:
        body["temperature"] = 0
    known = {"max_new_tokens", "max_length", "do_sample", *_SAMPLING, *_GENERATION_MEANINGLESS}
    unknown = [
        name
        for name, value in merged.items()
        if name not in known and value is not None and value not in _NEUTRAL.get(name, ())
    ]
    if unknown:
        raise Unmapped(f"generation: {', '.join(sorted(unknown))}")
    return body


def _max_tokens(merged: Mapping[str, Any]) -> int:
    if merged.get("max_new_tokens") is None:
        raise Unmapped(
            "generation: max_length (a limit that counts the prompt)"
            if merged.get("max_length")
            else "generation: no limit"
        )
    return int(merged["max_new_tokens"])


def pipeline_text(prompt: str, completion: str, settings: Mapping[str, Any], *, skip_prompt: bool) -> str:
    """The text that HuggingFacePipeline makes of a completion: by default the prompt comes first."""
    text = completion if settings.get("return_full_text") is False else prompt + completion
    return text[len(prompt) :] if skip_prompt else text


# ---- cross-encoders: sentence_transformers.CrossEncoder.predict

_CROSS_ENCODER_MEANINGLESS = frozenset({"device", "revision", "token", "local_files_only", "cache_folder"})


def cross_encoder_options(model: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine must know to score as ``CrossEncoder(model, **kwargs).predict(pairs)``: one label, squashed by the sigmoid."""
    _refuse_unknown("cross-encoder", kwargs, _CROSS_ENCODER_MEANINGLESS | {"max_length", "trust_remote_code"})
    config = folder_json(model, "config.json")
    if config and len(config.get("id2label") or "..") != 1:  # transformers leaves out its default of two labels
        raise Unmapped("a cross-encoder with several labels")
    own = (config.get("sentence_transformers") or {}).get(
        "activation_fn", config.get("sbert_ce_default_activation_function")
    )
    if own is not None and not str(own).endswith("Sigmoid"):
        raise Unmapped(f"a cross-encoder that ends in {str(own).rpartition('.')[2]}")
    return {"max_length": int(kwargs["max_length"])} if kwargs.get("max_length") else {}


# ---- files of a model folder


@lru_cache(maxsize=64)
def folder_json(model: str, name: str) -> Mapping[str, Any]:
    """A JSON file of a model: from its folder, or from the hub's cache on this machine; empty when it has none."""
    text = folder_text(model, name)
    document = json.loads(text) if text else {}
    return document if isinstance(document, dict) else {}


@lru_cache(maxsize=64)
def folder_text(model: str, name: str) -> str | None:
    folder = Path(model).expanduser()
    path = folder / name if folder.is_dir() else _hub_file(model, name)
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None


def _hub_file(model: str, name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model, name)
    except ValueError:  # not a name that a hub could have
        return None
    return Path(found) if isinstance(found, str) else None
