"""``patchwork version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from patchwork_serving.cli_output import fact, fact_json


def version(*, schema: bool, as_json: bool) -> None:
    """Print the version, or the JSON Schema of ``patchwork.yaml``."""
    if schema:
        from patchwork_serving.config import config_schema

        fact_json(config_schema())
        return
    facts = {
        "patchwork": package_version("patchwork-rag"),
        "python": platform.python_version(),
        "ray": package_version("ray"),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if as_json:
        fact_json(facts)
        return
    for name, value in facts.items():
        fact(f"{name} {value}")


def package_version(name: str) -> str | None:
    """The installed version of a distribution; None when it is not installed."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return None
