"""The shape of a chain's input, by its JSON Schema: what fits, and where the text of a chat goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.serialize import well_known

#: keys under which chains commonly take the question, in order of preference
QUESTION_KEYS = ("question", "input", "query", "query_str", "user_input", "prompt", "text", "message")
HISTORY_KEYS = ("chat_history", "history")


class Shape:
    """Checks values against a schema. A schema that is invalid, or refers to elsewhere, checks nothing: the chain will tell."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError:
            schema = {}
        self.schema = _without_root(schema)
        self.takes_messages = "HumanMessage" in self.schema.get("$defs", {})
        # an empty registry: no reference of a schema is ever fetched
        self._validator = Draft202012Validator(_as_taken(self.schema), registry=Registry())

    def check(self, value: Any, where: str) -> None:
        """InvalidRequest when ``value`` does not fit; it names the place and the rule, not the value."""
        try:
            error = best_match(self._validator.iter_errors(value))
        except Unresolvable:
            return
        if error is None:
            return
        place = where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
        raise InvalidRequest(
            f"{place}: {_rule(error.validator, error.validator_value)}; GET /input_schema shows what fits"
        )


def _rule(validator: Any, expected: Any) -> str:
    match validator:
        case "type":
            return f"must be of type {expected if isinstance(expected, str) else ' or '.join(expected)}"
        case "required":
            return f"must have the keys {', '.join(expected)}"
        case "anyOf" | "oneOf":
            return f"fits none of the {len(expected)} forms that the chain takes"
        case _:
            return f"breaks the rule {validator!r} of the input schema"


def _without_root(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema`` without a key ``root``, which no input has.

    LangChain takes the field of an untyped step's root model for a key: ``{"question": RunnablePassthrough()}`` takes anything, and
    its schema says an object with ``root``.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or "root" not in properties:
        return schema
    others = {key: value for key, value in properties.items() if key != "root"}
    if not others:
        return {"title": schema["title"]} if "title" in schema else {}
    return {**schema, "properties": others, "required": [key for key in schema.get("required", ()) if key != "root"]}


def _as_taken(schema: Any) -> Any:
    """``schema`` as the chain takes it after :func:`~patchwork_serving.gateway.serialize.revive`.

    A message or Document is told by its ``type``, so that this is required, though LangChain's schemas give it a default. Where a
    message fits, its short forms do: ``{"role": "user", "content": "hi"}`` and ``["user", "hi"]``.
    """
    if isinstance(schema, list):
        return [_as_taken(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    taken = {key: _as_taken(value) for key, value in schema.items()}
    if _tag(taken) in well_known():
        taken["required"] = sorted({*taken.get("required", ()), "type"})
    forms_of_message = taken.pop("oneOf", None)
    if isinstance(forms_of_message, list):
        # anyOf: the forms of LangChain's messages overlap
        messages = any(str(form.get("$ref", "")).endswith("HumanMessage") for form in forms_of_message)
        taken["anyOf"] = [*taken.get("anyOf", ()), *forms_of_message, *(_SHORT_MESSAGES if messages else ())]
        taken.pop("discriminator", None)
    return taken


def _tag(schema: Mapping[str, Any]) -> Any:
    properties = schema.get("properties")
    tag = properties.get("type") if isinstance(properties, Mapping) else None
    return tag.get("const") if isinstance(tag, Mapping) else None


_ROLE = {"enum": ["user", "human", "assistant", "ai", "system", "developer"]}
_SHORT_MESSAGES: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {
            "role": _ROLE,
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
            "type": False,
        },
        "required": ["role", "content"],
    },
    {"type": "array", "prefixItems": [_ROLE, {"type": "string"}], "minItems": 2, "maxItems": 2},
)


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema`` with a reference at its top followed, within ``root``; empty when it leads nowhere."""
    for _ in range(8):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = _at(root, reference)
    return {}


def _at(root: Mapping[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        return {}
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, Mapping) else {}
    return found


def forms(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives of a schema, references followed; the schema itself when it has none."""
    schema = resolved(schema, root)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if not isinstance(alternatives, list):
        return [schema]
    return [form for alternative in alternatives for form in forms(resolved(alternative, root), root)]
