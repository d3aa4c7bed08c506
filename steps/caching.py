"""What a step's cache key covers besides its own source, and how a configuration reaches a step."""

import json
from typing import Any

from zenml.config.cache_policy import CachePolicy

from models.config import ModelConfig


def cached_by(*modules: str) -> CachePolicy:
    """Cache policy that also covers the source of `modules` (dotted names), so that editing one is a miss."""
    return CachePolicy(source_dependencies=[*modules])


def parse_config(config: dict[str, Any]) -> ModelConfig:
    """Rebuild the configuration that a step was given as JSON-ready data."""
    return ModelConfig.model_validate_json(json.dumps(config))
