"""Loaded by vLLM in each of its processes (entry point ``vllm.general_plugins``): its engine ends with the replica that started it.

vLLM stops an engine when it is asked to. A replica that is killed asks nobody, and its engine would keep memory and GPU for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

#: Set by ours before they start vLLM: anybody else's vLLM is left alone.
WATCHED = "PATCHWORK_VLLM"
GRACE_S = 10.0


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if os.environ.get(WATCHED) is None or parent is None or getattr(parent, "pid", None) is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # as vLLM is stopped: it ends its workers first
        threading.Event().wait(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="patchwork-parent", daemon=True).start()
