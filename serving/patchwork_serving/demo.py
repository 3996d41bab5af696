"""``make demo``: deploy the first example, ask it a question over HTTP, show answer, sources and trace, and stop everything."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from patchwork_serving import deploy
from patchwork_serving.cli_faults import run_reported
from patchwork_serving.cli_invoke import Ask, invoke
from patchwork_serving.cli_output import fact, note
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.cli_signals import stop_signals
from patchwork_serving.config import Paths
from patchwork_serving.state import StateStore

EXAMPLE = Path("examples") / "vanilla_rag.py"
QUESTION = "What does the finally clause of a try statement do?"
NAME = "demo"


def run() -> None:
    """Raises what deploying and asking raise; nothing is left running either way."""
    note(f"patchwork deploy {EXAMPLE} --name {NAME}")
    with stop_signals():
        began = time.monotonic()
        with progress_display(as_json=False) as progress:
            deployment = deploy.start(deploy.DeployOptions(str(EXAMPLE), name=NAME, port=0), progress)
        try:
            fact(f"ready at {deployment.url} after {time.monotonic() - began:.0f} s")
            note(f'patchwork invoke {NAME} "{QUESTION}" --trace')
            invoke(Ask(NAME, QUESTION, trace=True), as_json=False)
        finally:
            with progress_display(as_json=False) as progress:
                deployment.stop(progress)
    left = StateStore(Paths.from_env().state).apps()
    fact("stopped; nothing is left running" if not left else f"still deployed: {', '.join(app.name for app in left)}")


if __name__ == "__main__":
    sys.exit(run_reported(run))
