"""The GPUs of this machine, as its driver names them."""

from __future__ import annotations

import shutil
import subprocess

ASK_TIMEOUT_S = 5.0


def gpu_names() -> list[str]:
    """Name and memory of each; empty where there is no driver, or it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []
