"""The promises of an application: SLO classes from ``patchwork.yaml``, and ``--slo``."""

from __future__ import annotations

from collections.abc import Mapping

from patchwork_scheduler.model import SloClass
from patchwork_serving.config import Config, SloConfig


def classes_of(config: Config, slo_s: float | None) -> Mapping[str, SloClass]:
    """By name; empty when ``slo`` is a duration or not given. ``slo_s`` (the release's, ``--slo``) is the default class's deadline."""
    classes = {name: _class(name, slo) for name, slo in config.slo_classes.items()}
    default = config.default_slo
    if default is not None and slo_s is not None:
        classes[default] = _class(default, config.slo_classes[default], slo_s)
    return classes


def _class(name: str, slo: SloConfig, deadline_s: float | None = None) -> SloClass:
    return SloClass(
        name,
        deadline_s=deadline_s or slo.deadline,
        first_token_s=slo.first_token,
        target_share=slo.target_share,
        priority=slo.priority,
        share=slo.share,
    )
