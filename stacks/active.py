"""What a stack carries besides its components, given to this process: addresses, and the keys to them.

ZenML sets a stack's environment and secrets for every step on it. Flows and commands need them too, so that `zenml
stack set` alone changes where they look.
"""

import base64
import json
import os
import sqlite3
import sys
from collections.abc import Container
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from stacks.stack_file import active_environment

_before: dict[str, str | None] = {}


def use_stack() -> None:
    """Set in this process what the active stack carries; take back what an earlier call set of another one.

    A variable that the shell sets too is the stack's from here on, as it is in ZenML's steps. Call it after `use_home`,
    and before the first import of prefect, which reads its variables once.
    """
    carried = _carried()
    leave_stack(keep=carried)
    for name, value in carried.items():
        _before.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def leave_stack(keep: Container[str] = ()) -> None:
    """Give this process the variables back that it had before `use_stack`, but for those in `keep`."""
    for name in [name for name in _before if name not in keep]:
        value = _before.pop(name)
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def shell_environment() -> dict[str, str]:
    """The variables of this process as the shell set them, without what `use_stack` did."""
    kept = {name: value for name, value in os.environ.items() if name not in _before}
    return kept | {name: value for name, value in _before.items() if value is not None}


def _carried() -> dict[str, str]:
    return {} if "zenml" not in sys.modules and _is_plain() else active_environment()


def _is_plain() -> bool:
    """Whether the active stack surely carries nothing, by a look at ZenML's own files: importing it takes seconds.

    Only for a store in SQLite and a stack that is chosen in the home; whatever is not as expected is asked of ZenML.
    """
    chosen = [name for name in os.environ if name.startswith(("ZENML_STORE_", "ZENML_ACTIVE_", "ZENML_REPOSITORY_"))]
    here = Path.cwd()
    if chosen or any((folder / ".zen").exists() for folder in (here, *here.parents)):
        return False
    config = Path(os.environ["ZENML_CONFIG_PATH"]) / "config.yaml"
    try:
        known: dict[str, Any] = yaml.safe_load(config.read_text())
        path = known["store"]["url"].removeprefix("sqlite:///")
        stack = known["active_stack_id"].replace("-", "")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
            ((environment,),) = store.execute("SELECT environment FROM stack WHERE id = ?", (stack,))
            ((secrets,),) = store.execute("SELECT count(*) FROM secret_resource WHERE resource_id = ?", (stack,))
        return not secrets and not (environment and json.loads(base64.b64decode(environment)))
    except FileNotFoundError:
        return True  # ZenML was not used yet
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, sqlite3.Error):
        return False
