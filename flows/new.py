"""`gauntlet new`: a model's YAML from a look at its data."""

import re
from pathlib import Path

from flows.deployments import follow_new_model
from models.config import load_model, models_dir
from models.errors import ConfigError


def write_model(name: str, data: Path, target: str, force: bool) -> Path:
    """Write `<models>/<name>.yaml`, and its entry in prefect.yaml, and return the YAML's path.

    Raises:
        ConfigError: The name is no model name, or the YAML exists and `force` is not set.
        DataError: The data cannot be read, or have no such target.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9_]{0,61}[a-z0-9])?", name) or name == "base":
        raise ConfigError(f"'{name}' is no model name: lower case letters, digits and underscores, a letter first")
    path = models_dir() / f"{name}.yaml"
    if path.exists() and not force:
        raise ConfigError(f"models/{name}.yaml exists; choose another name, or --force to write over it")
    from steps.draft import draft_model

    text = draft_model(name, data, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".yaml.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    load_model(name)
    follow_new_model()
    return path
