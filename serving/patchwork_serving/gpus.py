"""The GPUs of this machine, as its driver tells of them."""

from __future__ import annotations

import shutil
import subprocess

ASK_TIMEOUT_S = 5.0


def gpu_names() -> list[str]:
    """Name and memory of each; empty where there is no driver, or it does not answer."""
    return _asked("name,memory.total", "csv,noheader")


def gpu_bytes() -> int:
    """Memory of the largest GPU here; 0 where there is none, or its driver does not say."""
    told = _asked("memory.total", "csv,noheader,nounits")
    return max((int(mib) << 20 for mib in told if mib.strip().isdigit()), default=0)


def _asked(what: str, form: str) -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={what}", f"--format={form}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []
