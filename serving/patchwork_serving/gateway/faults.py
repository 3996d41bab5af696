"""What a client is told when something goes wrong: every exception becomes one :class:`Fault`, in one place.

GatewayError (ServingError)     raised by the gateway itself; the message is safe to show
├── InvalidRequest      422
├── Unauthorized        401
├── UnknownRun          404
├── RunIdTaken          409
├── BodyTooLarge        413
├── BodyTooSlow         408
├── RequestRefused      429     has ``retry_after_s``; runners and admission raise it too
└── NotReady            503     has ``retry_after_s``

Messages of other exceptions may quote inputs, so that only their class is told; the log gets the class and the frames.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from patchwork_adapters.errors import AdapterError, RequestCancelled, RequestStopped
from patchwork_adapters.redaction import redacted
from patchwork_serving.errors import ServingError

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_CAUSES = 8  #: how far down ``__cause__`` a known error is looked for below what the user's chain raised


class GatewayError(ServingError):
    """An answer of the gateway itself."""

    stage: ClassVar[str] = "gateway"
    title = "the gateway failed"


class InvalidRequest(GatewayError):
    status = 422
    title = "invalid request"


class Unauthorized(GatewayError):
    status = 401
    title = "API key missing or wrong"


class UnknownRun(GatewayError):
    status = 404
    title = "no such run in flight"


class RunIdTaken(GatewayError):
    status = 409
    title = "a run with this id is in flight"


class BodyTooLarge(GatewayError):
    status = 413
    title = "request body too large"


class BodyTooSlow(GatewayError):
    status = 408
    title = "the request body did not arrive in time"


class _Later(GatewayError):
    retryable = True

    def __init__(self, message: str, retry_after_s: float = _RETRY_AFTER_S) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class RequestRefused(_Later):
    status = 429
    title = "refused: it could not be answered in time"


class NotReady(_Later):
    status = 503
    title = "not ready"


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as the client sees it."""

    status: int
    type: str  #: class name
    message: str
    stage: str = "chain"  #: ``gateway``, ``chain`` or a component id
    retryable: bool = False
    retry_after_s: float | None = None

    def body(self, run_id: str | None) -> dict[str, Any]:
        """The error body of Contracts."""
        return {
            "error": {
                "type": self.type,
                "message": self.message,
                "stage": self.stage,
                "retryable": self.retryable,
                "run_id": run_id,
            }
        }

    def headers(self) -> dict[str, str]:
        """``Retry-After`` where a retry helps; the openai client retries 5xx by itself unless told not to."""
        headers = {} if self.retryable else {"x-should-retry": "false"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def fault_of(error: BaseException) -> Fault:
    """What to tell the client about ``error``."""
    for cause in _causes(error):
        known = _known(cause)
        if known is not None:
            return known
    name = type(error).__name__
    return Fault(500, name, f"the chain raised {name}; the server's log has where")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: frameworks wrap what leaves raise (LlamaIndex workflows, output parsers)."""
    current: BaseException | None = error
    for _ in range(_CAUSES):
        if current is None:
            return
        yield current
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
        else:
            current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _known(error: BaseException) -> Fault | None:
    if isinstance(error, GatewayError):
        return _fault(error, str(error) or error.title)
    if isinstance(error, RequestCancelled):
        return _fault(error, error.title)
    if isinstance(error, AdapterError | RequestStopped | ServingError):
        # a refusal is the client's to mend, so it must learn why; messages of our errors quote no inputs
        told = str(error) if error.status < 500 and str(error) else error.title
        return _fault(error, told)
    return _from_client(error)


def _fault(error: AdapterError | RequestStopped | ServingError, message: str) -> Fault:
    return Fault(
        status=_CONTRACT_STATUS.get(error.status, error.status),
        type=type(error).__name__,
        message=redacted(message),
        stage=getattr(error, "stage", None) or getattr(error, "component", None) or "chain",
        retryable=error.retryable,
        retry_after_s=getattr(error, "retry_after_s", _RETRY_AFTER_S if error.status in (429, 503) else None),
    )


#: an engine that refuses a request (context too long) says 400, as OpenAI does; ours for invalid input is 422
_CONTRACT_STATUS = {400: 422}


def _from_client(error: BaseException) -> Fault | None:
    """Errors that model clients raise inside the chain when an LLM or embedder component answered with a status, or not at all."""
    if type(error).__module__.partition(".")[0] not in ("openai", "ollama"):
        return None
    name = type(error).__name__
    status = getattr(error, "status_code", None)
    if status in (400, 413, 422):
        return Fault(422, name, "the model refused the request: too long, or a parameter that it cannot take")
    if status == 429:
        return Fault(429, name, "the model's server is at its limit", retryable=True, retry_after_s=_RETRY_AFTER_S)
    if name == "APITimeoutError" or status == 504:
        return Fault(504, name, "a model did not answer before the deadline", retryable=True)
    if name == "APIConnectionError" or status == 503:
        return Fault(503, name, "a model cannot be reached", retryable=True, retry_after_s=_RETRY_AFTER_S)
    return None


def log_unexpected(fault: Fault, error: BaseException, run_id: str | None) -> None:
    """Log a 5xx that nobody foresaw: class and frames only, because messages quote inputs."""
    if fault.status != 500:
        return
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    logger.error("run %s raised %s at\n%s", run_id, type(error).__name__, redacted(frames))  # lines of code, too
