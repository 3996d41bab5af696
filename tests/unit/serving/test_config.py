"""patchwork.yaml: what is refused, and with what words."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from patchwork_scheduler.model import SloClass
from patchwork_serving.config import Config, Paths, config_schema, load_config, parse_seconds
from patchwork_serving.errors import ConfigError
from patchwork_serving.slo import classes_of

ROOT = Path(__file__).parents[3]


def written(folder: Path, text: str) -> Path:
    file = folder / "patchwork.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2.0), ("1.5m", 90.0), ("1h", 3600.0), ("7", 7.0), (3, 3)]
)
def test_durations_are_read_in_their_units(text: object, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slo: fast", "slo: 'fast' is not a duration"),
        ("slo: 0", "slo: Input should be greater than 0"),
        ("slo: true", "slo: True is not a duration"),
        ("slo: .inf", "slo: Input should be a finite number"),
        ("slo: {}", "slo: Dictionary should have at least 1 item"),
        ("slo: {fast: {deadlin: 2s}}", "slo.fast.deadline: Field required"),
        ("slo: {fast: {deadline: -1}}", "slo.fast.deadline: Input should be greater than 0"),
        ("slo: {'my class': {deadline: 1}}", "slo.my class: String should match pattern"),
        ("slo: {a: {deadline: 1}, b: {deadline: 2}}", "slo: which of a, b is for requests that name none"),
        (
            "slo: {a: {deadline: 1, default: true}, b: {deadline: 2, default: true}}",
            "only one class can be the default",
        ),
        ("slo: {a: {deadline: 1, share: 0.7}, default: {deadline: 2, share: 0.7}}", "add up to 1.4"),
        (
            "slo: {a: {deadline: 300}}",
            "slo.a.deadline is 300 s, and no request runs longer than gateway.request_timeout_s, 120 s",
        ),
        ("scheduler: {admission: sometimes}", "scheduler.admission: Input should be 'refuse', 'hold' or 'off'"),
        ("replicas: 3", "unknown key 'replicas'"),
        ("components: {llm: {replicas: -1}}", "components.llm.replicas"),
        ("models: {m: {engine: magic}}", "models.m.engine"),
        (
            "scheduler: {policy: lifo}",
            "scheduler.policy: no policy is called 'lifo'; there are edf, fifo, least_slack, paper",
        ),
        ("name: My App", "name: String should match pattern"),
        ("- a list", "the top level must be a mapping"),
        ("a: [1", "line 1: not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(written(tmp_path, text))
    assert words in str(refused.value)
    assert "patchwork.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_an_error_only_when_it_was_named(tmp_path: Path) -> None:
    assert load_config(None, beside=tmp_path) == Config()
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "other.yaml")


def test_a_file_beside_the_chain_is_found(tmp_path: Path) -> None:
    written(tmp_path, "slo: 2s\ncomponents: {llm-x: {replicas: 2}}")
    config = load_config(None, beside=tmp_path)
    assert (config.slo, config.components["llm-x"].replicas) == (2.0, 2)


def test_classes_have_a_default_whose_deadline_the_command_line_may_replace(tmp_path: Path) -> None:
    text = (
        "slo: {fast: {deadline: 2s, first_token: 500ms, priority: 1, default: true}, batch: {deadline: 1m, share: 0.2}}"
    )
    config = load_config(written(tmp_path, text))
    assert (config.default_slo, config.slo_s) == ("fast", 2.0)
    assert classes_of(config, 3.0) == {
        "fast": SloClass("fast", 3.0, first_token_s=0.5, priority=1),
        "batch": SloClass("batch", 60.0, share=0.2),
    }


@pytest.mark.parametrize(
    ("text", "default", "seconds"),
    [
        ("", None, None),
        ("slo: 2s", None, 2.0),  # no classes: the one promise has no name of its own
        ("slo: {only: {deadline: 3}}", "only", 3.0),
        ("slo: {default: {deadline: 4}, batch: {deadline: 60}}", "default", 4.0),
    ],
)
def test_the_class_of_requests_that_name_none(
    tmp_path: Path, text: str, default: str | None, seconds: float | None
) -> None:
    config = load_config(written(tmp_path, text))
    assert (config.default_slo, config.slo_s) == (default, seconds)


def test_a_bare_off_is_a_word_here(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "scheduler: {admission: off}")).scheduler.admission == "off"


def test_a_relative_model_path_means_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "models: {m: {source: ./m.gguf}, h: {source: 'hf:org/name'}}"))
    assert config.models["m"].source == str(tmp_path / "m.gguf")
    assert config.models["h"].source == "hf:org/name"


def test_the_published_schema_is_that_of_the_code_and_takes_the_documented_example() -> None:
    published = json.loads((ROOT / "docs" / "patchwork.schema.json").read_text(encoding="utf-8"))
    assert published == json.loads(json.dumps(config_schema()))
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    Config.model_validate(example)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"unheard_of": 1}, published)


def test_places_come_from_the_environment(tmp_path: Path) -> None:
    paths = Paths.from_env({"PATCHWORK_HOME": str(tmp_path / "h"), "PATCHWORK_CACHE": str(tmp_path / "c")})
    assert paths.state == tmp_path / "h" / "state"
    assert paths.models == tmp_path / "c" / "models"
