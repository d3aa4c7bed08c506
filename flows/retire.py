"""Retiring a version from the command line."""

from collections.abc import Callable, Mapping
from typing import Any

from flows.console import err, out, print_json, quiet_home
from models.config import load_model
from models.errors import WorkError


def to_stderr(line: str) -> None:
    """Print a line as it is on stderr."""
    err.print(line, markup=False)


def retire_version(model: str, version: int, why: str) -> dict[str, Any]:
    """Retire a version: its evidence is archived, its files are deleted.

    Raises:
        GauntletError: The model is unknown, or its state does not allow it.
    """
    load_model(model)
    quiet_home()
    from stacks.ledger import current_actor
    from steps.archive import ARCHIVE
    from steps.retire import retire

    repair_first(model)
    entry = retire(model, version, why=why, actor=current_actor())
    told = {"model": model, "version": version, "state": "retired", "was": entry.payload["from"]}
    told |= {"semver": entry.payload["semver"], "archive": f"models:/{model}/{version}/{ARCHIVE}"}
    return told | {"why": entry.why, "actor": entry.actor, "sequence": entry.sequence}


def repair_first(model: str, say: Callable[[str], None] = to_stderr) -> None:
    """Finish what a crash left half done of an earlier command, and say so, on stderr or as a flow run logs it.

    What cannot be repaired is left to the command that comes, which may be the cure.
    """
    from steps.promote import repair

    try:
        for line in repair(model):
            say(f"repaired: {line}")
    except WorkError as error:
        say(f"not repaired: {error}")


def print_retired(result: Mapping[str, Any], as_json: bool) -> None:
    """Print what was retired and what is left of it."""
    if as_json:
        print_json(result)
        return
    model, version = result["model"], result["version"]
    out.print(f"v{version} of {model} is retired. Its evidence stays: {result['archive']}", markup=False)
    out.print(f"Its Release and its Bento are deleted; `gauntlet run {model}` gives them again under a new number.")
