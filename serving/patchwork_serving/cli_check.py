"""``patchwork check``: whether a chain answers the same with its leaves in another process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from patchwork_serving.cli_output import console, fact_json, table
from patchwork_serving.errors import UsageError

if TYPE_CHECKING:
    from patchwork_adapters.check import CheckResult

PLACEHOLDER_KEY = "patchwork-check"  # clients of local servers insist on a key, and the servers do not look at it


def check(target: str, inputs: Path, *, as_json: bool, replay: bool = False) -> int:
    """Runs the check in this process and prints it; the exit code is 1 when something differs. Raises UsageError, TargetError."""
    from patchwork_adapters.check import check as run_check
    from patchwork_adapters.checking.cases import BadInputs, read_cases

    try:
        cases = read_cases(inputs)
    except BadInputs as error:
        raise UsageError(str(error)) from error
    os.environ.setdefault("OPENAI_API_KEY", PLACEHOLDER_KEY)
    with _stdout_to_stderr():
        result = run_check(target, cases, replay=replay)
    if as_json:
        fact_json(result.to_json())
    else:
        _show(result)
    return 0 if result.is_equal else 1


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What the user's program prints must not mix with the answer: its writes, and those of libraries, go to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _show(result: CheckResult) -> None:
    out = console()
    out.print(Text.assemble((result.target, "bold"), f"  ({result.framework})"))
    rows = table("mode", "verdict", "runs", "leaf calls")
    for mode, verdict in result.modes().items():
        runs = [run for run in result.runs if run.mode == mode]
        rows.add_row(mode, verdict, str(len(runs)), str(sum(run.leaf_calls for run in runs)))
    out.print(rows)
    for run in result.runs:
        where = run.mode if run.case is None else f"{run.mode}, input {run.case + 1}"
        for line in run.differences:
            out.print(Text(f"{where}: {line}", style="red" if run.verdict == "different" else "yellow"))
    for what, calls in result.local:
        out.print(Text(f"stayed in the chain's process: {what} ({calls} calls)", style="yellow"))
    for opaque in result.opaque:
        out.print(Text.assemble(("opaque ", "yellow"), f"{opaque.where}: {opaque.why}"))
    for remark in result.notes:
        out.print(Text(f"note {remark}", style="dim"))
    elsewhere = ", ".join(path for path, _ in result.leaves) or "none"
    out.print(Text(f"leaves that ran in another process: {elsewhere}", style="dim"))
    out.print("equal" if result.is_equal else "different")
