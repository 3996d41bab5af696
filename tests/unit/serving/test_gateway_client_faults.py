"""What a client is told when a model client inside the chain raised."""

from __future__ import annotations

import httpx
import openai
import pytest

from patchwork_serving.gateway.faults import fault_of

ASKED = httpx.Request("POST", "http://model/v1")


def of_openai(status: int) -> Exception:
    return openai.APIStatusError("a secret prompt", response=httpx.Response(status, request=ASKED), body=None)


def of_ollama(status: int) -> Exception:
    package = pytest.importorskip("ollama")
    return package.ResponseError("a secret prompt", status)  # type: ignore[no-any-return]


@pytest.mark.parametrize("raised", [of_openai, of_ollama])
@pytest.mark.parametrize(
    ("status", "told", "retryable"),
    [(400, 422, False), (429, 429, True), (503, 503, True), (504, 504, True), (500, 500, False)],
)
def test_the_models_status_becomes_ours_and_its_words_stay_inside(
    raised, status: int, told: int, retryable: bool
) -> None:  # type: ignore[no-untyped-def]
    fault = fault_of(raised(status))
    assert (fault.status, fault.retryable) == (told, retryable)
    assert "secret" not in fault.message
