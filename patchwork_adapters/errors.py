"""Errors of patchwork_adapters.

AdapterError
├── TargetError                 the TARGET given by the user cannot be used; the CLI exits 2
│   ├── TargetNotFound
│   ├── TargetImportFailed
│   ├── MissingPackage
│   ├── NoChainFound
│   └── SeveralChainsFound
├── CodecError                  a value cannot cross a process boundary
│   ├── AnotherVersion          it was written by another version of Patchwork
│   └── NotExact                it would cross, but not arrive as it was; found in strict mode only
└── ComponentError              a leaf call could not be carried out by its component
    ├── ComponentUnavailable    no replica answered; retryable
    └── ComponentFailed         the replica answered with an error of its own

RequestStopped (BaseException)  never triggers a user's ``with_fallbacks`` or ``with_retry``
├── DeadlinePassed
└── RequestCancelled
"""

from __future__ import annotations

from typing import ClassVar


class AdapterError(Exception):
    """Base of all errors of this package; ``status`` is the HTTP status a gateway answers with."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "internal error"
    retryable: ClassVar[bool] = False


class TargetError(AdapterError):
    """The TARGET cannot be used; the message says what, where and what to do."""

    status = 422
    title = "the target cannot be used"


class TargetNotFound(TargetError):
    title = "target not found"


class TargetImportFailed(TargetError):
    title = "the target raised while it was imported"


class MissingPackage(TargetError):
    title = "a package that the target imports is not installed"


class NoChainFound(TargetError):
    title = "no chain in the target"


class SeveralChainsFound(TargetError):
    title = "several chains in the target"


class CodecError(AdapterError):
    title = "a value cannot cross a process boundary"


class AnotherVersion(CodecError):
    title = "a file is of another version of Patchwork"


class NotExact(CodecError):
    title = "a value does not cross a process boundary exactly"


class ComponentError(AdapterError):
    title = "a component failed"
    status = 502


class ComponentUnavailable(ComponentError):
    title = "no replica of a component answered"
    status = 503
    retryable = True


class ComponentFailed(ComponentError):
    title = "a component answered with an error"


class RequestStopped(BaseException):
    """Base of what stops a request from outside.

    Derives from BaseException, like ``asyncio.CancelledError``: ``RunnableWithFallbacks`` catches ``Exception`` by default, and a
    deadline must not start the user's fallback.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "stopped"
    retryable: ClassVar[bool] = True
    # BaseChatModel.agenerate (langchain-core 1.7) gathers with return_exceptions and reads these of every result that is not an
    # Exception, before it raises the first; without them an AttributeError would arrive instead, and start the fallbacks
    generations: ClassVar[tuple[()]] = ()
    llm_output: ClassVar[None] = None


class DeadlinePassed(RequestStopped):
    status = 504
    title = "the deadline has passed"


class RequestCancelled(RequestStopped):
    status = 499
    title = "the request was cancelled"
    retryable = False
