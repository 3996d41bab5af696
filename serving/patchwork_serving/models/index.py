"""Where a wheel is, asked of the installers that the user has configured: their index, mirrors, credentials and proxies are honoured, and
no address of an index is known here. ``uv`` and ``pip`` both tell where a file is without installing it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from patchwork_serving.errors import SetupError

log = logging.getLogger(__name__)

LOCATE_TIMEOUT_S = 300.0  #: an old pip downloads the wheel before it tells where it was
INSTALL_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Installer:
    name: str  #: ``uv`` or ``pip``
    command: tuple[str, ...]


def installers(env: Mapping[str, str] = os.environ) -> list[Installer]:
    """Those that are here, the one that the environment configures first."""
    found = []
    uv = shutil.which("uv", path=env.get("PATH"))
    if uv:
        found.append(Installer("uv", (uv,)))
    if find_spec("pip") is not None:
        found.append(Installer("pip", (sys.executable, "-m", "pip")))
    elif pip := shutil.which("pip3", path=env.get("PATH")) or shutil.which("pip", path=env.get("PATH")):
        found.append(Installer("pip", (pip,)))
    if any(name.startswith("PIP_") and "INDEX" in name for name in env) and not any(
        name.startswith("UV_") and "INDEX" in name for name in env
    ):
        found.sort(key=lambda installer: installer.name)  # pip before uv, which does not read pip's variables
    return found


def locate_wheel(requirement: str, env: Mapping[str, str] = os.environ) -> str:
    """The URL of the wheel of ``NAME==VERSION`` (``file:`` for a local index); SetupError when no installer can tell."""
    faults = []
    for installer in installers(env):
        try:
            return _ASK[installer.name](installer.command, requirement, env)
        except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
            faults.append(f"{installer.name}: {_last_line(error)}")
    raise SetupError(_cannot(requirement, faults))


def install_into(requirement: str, folder: Path, env: Mapping[str, str] = os.environ) -> None:
    """Let an installer unpack the wheel into ``folder``, without its dependencies: for indexes that only an installer can read."""
    faults = []
    for installer in installers(env):
        sub = ("pip", "install") if installer.name == "uv" else ("install", "--ignore-installed")
        command = (
            *installer.command, *sub, "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder), requirement,
        )  # fmt: skip
        try:
            _run(command, env, INSTALL_TIMEOUT_S)
            return
        except (OSError, subprocess.SubprocessError) as error:
            faults.append(f"{installer.name}: {_last_line(error)}")
    raise SetupError(_cannot(requirement, faults))


def _ask_uv(command: tuple[str, ...], requirement: str, env: Mapping[str, str]) -> str:
    told = _run(
        (*command, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--only-binary", ":all:", "--python", sys.executable,
         "--format", "pylock.toml", "-"),
        env, LOCATE_TIMEOUT_S, requirement,
    )  # fmt: skip
    wheels = tomllib.loads(told)["packages"][0]["wheels"]
    if "url" in wheels[0]:
        return str(wheels[0]["url"])
    return Path(wheels[0]["path"]).absolute().as_uri()


def _ask_pip(command: tuple[str, ...], requirement: str, env: Mapping[str, str]) -> str:
    told = _run(
        (*command, "install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--quiet", "--report", "-",
         requirement),
        env, LOCATE_TIMEOUT_S,
    )  # fmt: skip
    return str(json.loads(told[told.index("{") :])["install"][0]["download_info"]["url"])


_ASK: Mapping[str, Callable[[tuple[str, ...], str, Mapping[str, str]], str]] = {"uv": _ask_uv, "pip": _ask_pip}


def _run(command: tuple[str, ...], env: Mapping[str, str], timeout_s: float, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, env=dict(env), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command[0], done.stdout, done.stderr)
    return done.stdout


def _last_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in (error.stderr or "").splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit {error.returncode}"
    return type(error).__name__


def _cannot(requirement: str, faults: list[str]) -> str:
    why = "; ".join(faults) or "neither uv nor pip is here"
    return (
        f"the package index did not give {requirement} ({why}); check the index of uv or pip, or install the package without its "
        f"dependencies: pip install --no-deps {requirement}"
    )
