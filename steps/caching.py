"""What a step's cache key covers besides its own source, and how a configuration reaches a step."""

import ast
import importlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from zenml import get_step_context
from zenml.client import Client
from zenml.config.cache_policy import CachePolicy

from models.config import ModelConfig

ROOT = Path(__file__).absolute().parents[1]
ROOMS = ("models", "bentos", "steps")
# What a step speaks through: an edit there changes no answer.
SPEECH = {"models.errors", "steps.caching", "steps.plots", "steps.fairness_plot"}


def cached_by(module: str) -> CachePolicy:
    """Cache policy that covers the source of `module` and of all of our modules that it imports, at any depth.

    ZenML itself hashes only the step function: an edited plain function would be a stale hit.

    Args:
        module: Dotted name of the step's module: `__name__`.
    """
    modules = sorted(closure(module))
    for name in modules:
        # ZenML looks a module up as an attribute of its package, which it is only once imported.
        if name != module:
            importlib.import_module(name)
    return CachePolicy(source_dependencies=modules)


def forget() -> None:
    """Have ZenML not take what the running step gives for its answer another time: it lacks something by mischance."""
    Client().update_step_run(get_step_context().step_run.id, cache_expires_at=datetime.now(UTC))


def closure(module: str) -> set[str]:
    """`module` and what it imports of models, bentos and steps, also inside functions; stacks only carry."""
    found = {module}
    waiting = [module]
    while waiting:
        new = _imports(waiting.pop()) - found - SPEECH
        found |= new
        waiting += new
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(_file(module).read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(name for name in names if name.startswith(tuple(f"{r}." for r in ROOMS)) and _file(name).is_file())


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parameter(value: Any) -> str:
    """JSON-ready data as the text that a step is given.

    ZenML puts the value of the variable in the place of every `${VARIABLE}` in a parameter, and keeps the parameters: a
    source's password would lie in its database. In this text it recognises none.
    """
    return json.dumps(value, ensure_ascii=False).replace("${", "$\\u007b")


def parse_config(text: str) -> ModelConfig:
    """Rebuild the configuration that a step was given as a `parameter`."""
    return ModelConfig.model_validate_json(text)
