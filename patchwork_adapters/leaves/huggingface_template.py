"""Chat templates rendered as ``transformers`` renders them, without importing it: its tokenizers bring torch with them.

Only the plain case is taken here (messages to text). Everything else is the real tokenizer's, which is loaded when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from patchwork_adapters.leaves.deferred import Deferred, real_of
from patchwork_adapters.leaves.huggingface_fields import folder_json, folder_text

if TYPE_CHECKING:
    from jinja2 import Template

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def deferred_tokenizer(model: str, build: Callable[[], Any]) -> Deferred | None:
    """A tokenizer that renders chats by itself; None when the model's template cannot be rendered here."""
    config = folder_json(model, "tokenizer_config.json")
    source = folder_text(model, "chat_template.jinja") or config.get("chat_template")
    template = _compiled(source) if isinstance(source, str) else None
    if template is None:
        return None
    special = {name: text for name in _SPECIAL if (text := _token(config.get(name))) is not None}

    def apply_chat_template(conversation: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        rest = {k: v for k, v in options.items() if k not in ("tokenize", "add_generation_prompt")}
        if options.get("tokenize", True) or rest or not all(isinstance(message, Mapping) for message in conversation):
            return real_of(tokenizer).apply_chat_template(conversation, **options)
        return template.render(
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=options.get("add_generation_prompt", False),
            **special,
        )

    tokenizer = Deferred(build, {"apply_chat_template": apply_chat_template, "name_or_path": model})
    return tokenizer


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template | None:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except TemplateError:  # it uses a tag of transformers' own
        return None


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own filter escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
