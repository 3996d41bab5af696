"""What is measured of an engine, and what is not a measurement."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_scheduler.cost import TokenCost
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_replies import Wish
from patchwork_serving.components.measuring import Run, measure
from patchwork_serving.errors import EngineRefused
from patchwork_serving.wire import CallFrame

ROWS = [
    {"n_in": n_in, "n_out": n_out, "batch": batch, "seconds": 0.01 * n_out + 0.001 * n_in * batch}
    for n_in in (8, 64)
    for n_out in (1, 16)
    for batch in (1, 8)
]


def measured(**body: Any) -> Run:
    document = {"model": "m", "messages": [{"role": "user", "content": "well?"}], **body}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, json.dumps(document).encode()))
    frame = CallFrame("c", "r", "llm", "POST /v1/chat/completions", payload).to_bytes()

    async def main(loop: VirtualLoop) -> Run:
        engine = EmulatedLlm(TokenCost.fit(ROWS), Wish(), name="m", profile="p", clock=loop.time)
        await engine.start()
        try:
            return await measure(engine, [frame], 1, loop.time)
        finally:
            await engine.close()

    return run_virtually(main)


def test_an_answer_is_measured_in_its_time() -> None:
    (seconds,) = measured(max_tokens=16).seconds
    assert seconds > 0.1


def test_a_refusal_is_no_measurement() -> None:
    with pytest.raises(EngineRefused, match="status 400"):
        measured(max_tokens=[1, 2])
