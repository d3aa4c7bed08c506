"""What a service must know of a stack: its database and its bucket, read from the stack's file without ZenML."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from models.config import REFERENCE, read_yaml
from models.errors import ConfigError, guess

STACK: Final = "GAUNTLET_STACK"
DATABASE: Final = "GAUNTLET_DATABASE"
# The keys to a stack's other servers are none of the service's business.
SERVED: Final = (DATABASE, "GAUNTLET_SECRET", "AWS_")


def use_served_stack() -> None:
    """Set, for the serving process, what the stack file that `GAUNTLET_STACK` names says of database and bucket.

    What is set already stays. ZenML is not asked: the file's `${VARIABLE}`s are this process's own.

    Raises:
        ConfigError: There is no such file, or variables that these parts of it need are not set.
    """
    for name, value in _served(os.environ).items():
        os.environ.setdefault(name, value)


def served_database(environ: Mapping[str, str]) -> str | None:
    """The database that a service started with these variables would use; None for the home's own.

    Raises:
        ConfigError: As `use_served_stack`.
    """
    return environ.get(DATABASE) or _served(environ).get(DATABASE)


def _served(environ: Mapping[str, str]) -> dict[str, str]:
    name = environ.get(STACK)
    if not name:
        return {}
    wanted = {key: text for key, text in _carried(name).items() if key.startswith(SERVED) and not environ.get(key)}
    missing = sorted({v for text in wanted.values() for v in REFERENCE.findall(text) if not environ.get(v)})
    if missing:
        raise ConfigError(
            f"{STACK}={name}: a service on it needs variables that are not set: {', '.join(missing)}; "
            "set them, or what they stand for"
        )
    return {key: REFERENCE.sub(lambda match: environ[match[1]], text) for key, text in wanted.items()}


def _carried(name: str) -> dict[str, str]:
    """The environment and the secrets of a stack file, as they are written there."""
    files = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}
    if name not in files:
        raise ConfigError(f"{STACK} names no stack file: '{name}'{guess(name, sorted(files))}")
    raw: dict[str, Any] = read_yaml(files[name])
    carried = dict(raw.get("environment") or {})
    for values in (raw.get("secrets") or {}).values():
        carried |= values or {}
    return carried
