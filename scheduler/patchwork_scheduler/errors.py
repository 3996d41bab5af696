"""Errors of patchwork_scheduler.

SchedulerError
├── UnknownPolicy       a policy name that does not exist; the message lists those that do
├── UnknownSloClass     an SLO class that is not configured; the message lists those that are
├── InvalidSloClass     a promise that is not a number of seconds, or a share outside 0..1
├── IncompleteProfile   rows from which no cost can be fitted, or a component of the plan that the profile lacks
├── InvalidWorkload     sites, visits or arrivals that cannot be simulated
├── InvalidInput        a field of a profile, plan, goal or resources makes no sense; names field, value and remedy
├── ProfileMismatch     a profile or plan of another chain
└── NoFeasiblePlan      nothing that the resources allow does what is asked; says what stands in the way
    └── SloUnreachable  requests would be late even with nobody before them; names the component that breaks it
"""


class SchedulerError(Exception):
    """Base of this package's errors."""


class UnknownPolicy(SchedulerError):
    """A policy name that does not exist."""


class UnknownSloClass(SchedulerError):
    """An SLO class that is not configured."""


class InvalidSloClass(SchedulerError):
    """A promise that cannot be kept by anything: not positive, not finite, not a share."""


class IncompleteProfile(SchedulerError):
    """A profile from which a cost cannot be derived."""


class InvalidWorkload(SchedulerError):
    """A workload that cannot be simulated."""


class InvalidInput(SchedulerError, ValueError):
    """A field that makes no sense; also a ValueError, so that the validation of a whole document can say where it was."""


class ProfileMismatch(SchedulerError):
    """A profile or plan of another chain."""


class NoFeasiblePlan(SchedulerError):
    """What is asked cannot be had from the resources given."""


class SloUnreachable(NoFeasiblePlan):
    """The path of one request alone takes longer than the SLO."""
