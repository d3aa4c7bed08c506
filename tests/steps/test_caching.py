"""A step's cache key covers the source of all of our code that its answer depends on."""

import importlib

import grimp
import pytest

from steps.caching import SPEECH, closure

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
