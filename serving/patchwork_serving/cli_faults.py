"""What went wrong, as one line on stderr and an exit code: 0 done, 1 failed, 2 used wrongly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from patchwork_adapters.errors import AdapterError, RequestStopped, TargetError
from patchwork_adapters.redaction import redacted, redacted_traceback
from patchwork_scheduler.errors import NoFeasiblePlan, SchedulerError
from patchwork_serving.cli_output import note
from patchwork_serving.errors import ServingError

FAILED, USED_WRONGLY = 1, 2
INTERRUPTED_BY_SHELL = 130  #: what typer makes of Ctrl-C; the contract knows 0, 1 and 2
TRACEBACK_VARIABLE = "PATCHWORK_SHOW_TRACEBACKS"


class Interrupted(BaseException):
    """The person, or the system, asked this command to stop. Like KeyboardInterrupt it passes every ``except Exception``."""


def exit_code(error: BaseException) -> int:
    """The contract's exit code of an exception."""
    match error:
        case ServingError():
            return error.exit_code
        case TargetError():
            return USED_WRONGLY
        case NoFeasiblePlan():
            return FAILED
        case SchedulerError():  # a file, a name or a number that was given
            return USED_WRONGLY
        case typer.TyperException():
            return error.exit_code
        case _:
            return FAILED


def one_line(error: BaseException) -> str:
    """What, where and what to do, in one line; an error that is not ours is named by its class."""
    match error:
        case ServingError() | AdapterError() | RequestStopped():
            text = f"{error.title}: {error}" if str(error) else error.title
        case NoFeasiblePlan():
            text = f"no such plan: {error}"
        case SchedulerError():
            text = f"used wrongly: {error}"
        case typer.TyperException():
            text = error.format_message()
        case KeyboardInterrupt() | Interrupted():
            text = "stopped"
        case _:
            text = f"internal error: {type(error).__name__}: {error}; --verbose shows where"
    return redacted(" ".join(text.split()))


def run_reported(action: Callable[[], object], *, verbose: bool = False) -> int:
    """The exit code of ``action``, whose errors are told on stderr; what it returns counts when it is a code. Never raises."""
    try:
        code = action()
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader of our output (`head`) has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    except BaseException as error:  # noqa: BLE001 the top of the process: everything becomes one line and a code
        return report(error, verbose=verbose or bool(os.environ.get(TRACEBACK_VARIABLE)))
    if code == INTERRUPTED_BY_SHELL:
        return report(Interrupted(), verbose=False)
    return code if isinstance(code, int) else 0


def report(error: BaseException, *, verbose: bool) -> int:
    """Tell a person and return the exit code."""
    note(f"error: {one_line(error)}")
    for hint in _hints(error):
        note(hint)
    if verbose:
        sys.stderr.write(redacted_traceback(error))
    return exit_code(error)


def _hints(error: BaseException) -> list[str]:
    """The lines after the first: how the command is used, or what the error's notes add."""
    context = getattr(error, "ctx", None)
    if context is not None and exit_code(error) == USED_WRONGLY:
        return [context.get_usage(), f"`{context.command_path} --help` tells more"]
    return list(getattr(error, "__notes__", []))
