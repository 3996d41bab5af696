"""How many replicas run, and how much they take at once, is for Patchwork to find out."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_there_is_no_configuration_beside_the_examples() -> None:
    assert [path.name for path in EXAMPLES.iterdir() if path.suffix in (".yaml", ".yml", ".toml", ".json")] == []


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_no_example_says_how_many_replicas_or_how_large_batches(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8").lower()
    assert [word for word in ("replica", "max_batch", "num_cpus", "patchwork") if word in text] == []
