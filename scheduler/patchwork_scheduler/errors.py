"""Errors of patchwork_scheduler.

SchedulerError
└── UnknownPolicy    a policy name that does not exist; the message lists those that do
"""


class SchedulerError(Exception):
    """Base of this package's errors."""


class UnknownPolicy(SchedulerError):
    """A policy name that does not exist."""
