"""A step's cache key covers all of our code that its answer depends on; its parameters come through ZenML unread."""

import importlib
import json

import grimp
import pytest
from zenml.utils.env_utils import substitute_env_variable_placeholders

from models.config import load_model
from steps.caching import SPEECH, closure, parameter, parse_config

CACHED = ("ingest", "validate", "split", "tune", "train", "evaluate")


@pytest.mark.parametrize("name", CACHED)
def test_cache_key_covers_what_the_step_imports(name: str) -> None:
    """Compared with what import-linter's own graph finds."""
    module = f"steps.{name}"
    graph = grimp.build_graph("models", "stacks", "bentos", "steps")
    covered = {
        s.import_path
        for s in getattr(importlib.import_module(module), name).configuration.cache_policy.source_dependencies
    }
    assert covered == closure(module)
    for found in covered:
        direct = {m for m in graph.find_modules_directly_imported_by(found) if m.split(".")[0] != "stacks"}
        assert direct - {"models", "bentos", "steps"} <= covered | SPEECH


def test_a_lazily_imported_module_is_covered() -> None:
    assert {"steps.generators", "steps.read", "bentos.frame"} <= closure("steps.ingest")
    assert "steps.suite" in closure("steps.validate")


@pytest.mark.parametrize("model", ["heart_disease", "pipeline_errors"])
def test_a_configuration_comes_through_a_parameter_as_it_was(model: str) -> None:
    config = load_model(model).config
    assert parse_config(parameter(config.model_dump(mode="json"))) == config


def test_zenml_finds_no_variable_in_a_parameter() -> None:
    said = "it costs ${5}, or \\${PRICE} $u"
    text = parameter({"why": said})
    assert substitute_env_variable_placeholders(text) == text
    assert json.loads(text) == {"why": said}
