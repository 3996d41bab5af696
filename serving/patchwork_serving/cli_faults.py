"""What went wrong, as one line on stderr and an exit code: 0 done, 1 failed, 2 used wrongly."""

from __future__ import annotations

import sys
import traceback

import typer

from patchwork_adapters.errors import AdapterError, RequestStopped, TargetError
from patchwork_serving.cli_output import note
from patchwork_serving.errors import ServingError

FAILED, USED_WRONGLY = 1, 2


class Interrupted(BaseException):
    """The person, or the system, asked this command to stop. Like KeyboardInterrupt it passes every ``except Exception``."""


def exit_code(error: BaseException) -> int:
    """The contract's exit code of an exception."""
    match error:
        case ServingError():
            return error.exit_code
        case TargetError():
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
        case typer.TyperException():
            text = error.format_message()
        case KeyboardInterrupt() | Interrupted():
            text = "stopped"
        case _:
            text = f"internal error: {type(error).__name__}: {error}; --verbose shows where"
    return " ".join(text.split())


def report(error: BaseException, *, verbose: bool) -> int:
    """Tell a person and return the exit code."""
    note(f"error: {one_line(error)}")
    for hint in _hints(error):
        note(hint)
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    return exit_code(error)


def _hints(error: BaseException) -> list[str]:
    """The lines after the first: how the command is used, or what the error's notes add."""
    context = getattr(error, "ctx", None)
    if context is not None and exit_code(error) == USED_WRONGLY:
        return [context.get_usage(), f"`{context.command_path} --help` tells more"]
    return list(getattr(error, "__notes__", []))
