"""Errors of patchwork_serving.

ServingError                     has ``exit_code`` for the CLI, ``status`` for HTTP, ``title`` for people
├── UsageError                   used wrongly: exit 2, 422
│   ├── ConfigError              patchwork.yaml, a variable or an option has a bad value
│   └── UnknownApp
├── SetupError                   something that is needed is not here; the message says how to get it
│   ├── MissingExtra
│   ├── ModelUnknown             (404)
│   ├── ModelCorrupt
│   ├── GpuMissing
│   ├── ModelTooLarge            does not fit into the memory of the GPU (or of the machine)
│   ├── PortTaken
│   └── DiskFull
├── StoreError                   Postgres
│   ├── StoreUnreachable         retryable, 503
│   │   └── ConnectionLost       the connection broke in use; another may work
│   ├── StoreWithoutPgvector
│   ├── StoreTimeout             statement cancelled because the deadline passed, 504
│   ├── StoreRefused             the request itself is at fault (vector of the wrong dimension), 400
│   └── UnknownCollection        (404)
├── EngineError                  a model engine failed, 500
│   ├── EngineRefused            the request itself is at fault (context too long, bad sampling value), 400
│   └── EngineDied               retryable, 503
└── DeployError                  the application could not be deployed
"""

from __future__ import annotations

from typing import ClassVar


class ServingError(Exception):
    """Base of this package's errors: one line that says what, where, and what to do; never inputs or secrets."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    title: ClassVar[str] = "internal error"
    retryable: ClassVar[bool] = False


class UsageError(ServingError):
    status = 422
    exit_code = 2
    title = "used wrongly"


class ConfigError(UsageError):
    title = "bad configuration"


class UnknownApp(UsageError):
    status = 404
    title = "no such application"


class SetupError(ServingError):
    title = "something that is needed is missing"


class MissingExtra(SetupError):
    title = "an optional part is not installed"


class ModelUnknown(SetupError):
    status = 404
    title = "unknown model"


class ModelCorrupt(SetupError):
    title = "a model file is corrupt"


class GpuMissing(SetupError):
    title = "a GPU was asked for and there is none"


class ModelTooLarge(SetupError):
    title = "a model does not fit into memory"


class PortTaken(SetupError):
    title = "the port is taken"


class DiskFull(SetupError):
    title = "the disk is full"


class StoreError(ServingError):
    title = "the vector store failed"


class StoreUnreachable(StoreError):
    status = 503
    retryable = True
    title = "the database cannot be reached"


class ConnectionLost(StoreUnreachable):
    title = "the connection to the database broke"


class StoreWithoutPgvector(StoreError):
    title = "the database has no pgvector"


class StoreTimeout(StoreError):
    status = 504
    retryable = True
    title = "the database did not answer before the deadline"


class StoreRefused(StoreError):
    status = 400
    title = "the vector store refused the request"


class UnknownCollection(StoreError):
    status = 404
    title = "no such collection"


class EngineError(ServingError):
    title = "a model engine failed"


class EngineRefused(EngineError):
    status = 400
    title = "the model engine refused the request"


class EngineDied(EngineError):
    status = 503
    retryable = True
    title = "the model engine died"


class DeployError(ServingError):
    title = "the application could not be deployed"
