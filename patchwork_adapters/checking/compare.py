"""Where two plain values differ, in lines that a person can read."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from patchwork_adapters.checking.values import Plain
from patchwork_adapters.redaction import redacted

_SHOWN = 100  #: characters of a value in a line
#: Scores computed elsewhere in another precision: what single-precision vectors can differ by.
TOLERANCE = 1e-5
MAX_LINES = 12
_DECIMAL = re.compile(r"-?\d+\.\d{4,}(?:e-?\d+)?")


def differences(before: Plain, after: Plain, path: str = "") -> Iterator[str]:
    """One line per place: path, the original's value, the other's."""
    if is_same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            place = f"{path}.{key}" if path else str(key)
            if key not in after:
                yield f"{place}: lost {_short(before[key])}"
            elif key not in before:
                yield f"{place}: new {_short(after[key])}"
            else:
                yield from differences(before[key], after[key], place)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{path}[{i}]")
    elif isinstance(before, list) and isinstance(after, list):
        yield f"{path or 'items'}: {len(before)} originally, {len(after)} now"
    else:
        yield f"{path or 'value'}: originally {_short(before)}, now {_short(after)}"


def is_same(before: Plain, after: Plain) -> bool:
    """Equal, but for the last digits of floats and of long decimals in text, where some classes put scores."""
    if isinstance(before, float) and isinstance(after, float):
        both_nan = math.isnan(before) and math.isnan(after)
        return both_nan or math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(is_same(item, after[key]) for key, item in before.items())
    if isinstance(before, list):
        return len(before) == len(after) and all(is_same(a, b) for a, b in zip(before, after, strict=True))
    if isinstance(before, str) and before != after:
        return _DECIMAL.split(before) == _DECIMAL.split(after) and all(
            is_same(float(a), float(b)) for a, b in zip(_DECIMAL.findall(before), _DECIMAL.findall(after), strict=True)
        )
    return bool(before == after)


def unmatched(before: Sequence[Plain], after: Sequence[Plain]) -> tuple[list[Plain], list[Plain]]:
    """As multisets: what only the first has, and what only the second has."""
    texts = {_text(item): item for item in (*before, *after)}
    lost = Counter(map(_text, before)) - Counter(map(_text, after))
    new = Counter(map(_text, after)) - Counter(map(_text, before))
    left = [texts[text] for text in new.elements()]
    missing = []
    for item in (texts[text] for text in lost.elements()):
        twin = next((i for i, other in enumerate(left) if is_same(item, other)), None)
        if twin is None:
            missing.append(item)
        else:
            del left[twin]
    return missing, left


def call_differences(before: Sequence[Plain], after: Sequence[Plain]) -> Iterator[str]:
    """Lines on calls (``{"leaf", "method", ...}``) that only one side made; those of one method are compared with each other."""
    lost, new = unmatched(before, after)
    for call in lost:
        twin = next((c for c in new if (c["leaf"], c["method"]) == (call["leaf"], call["method"])), None)
        where = f"{call['leaf']}.{call['method']}"
        if twin is None:
            yield f"{where}: a call of the original is missing: {_short(call)}"
            continue
        new.remove(twin)
        yield from (f"{where}: {line}" for line in differences(call, twin))
    yield from (f"{c['leaf']}.{c['method']}: a call that the original does not make: {_short(c)}" for c in new)


def _text(value: Plain) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _short(value: Plain) -> str:
    text = redacted(_text(value))  # before it is cut: half a key is one
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
