"""The ledger as a person or a program reads it: a model's entries, who was champion when, the whole for an audit."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.console import out, print_json, quiet_home, table
from models.config import load_model
from models.errors import ConfigError

if TYPE_CHECKING:
    from stacks.ledger import Entry

_COLUMNS = ("#", "time (UTC)", "actor", "action", "version", "label", "why", "verdict or decision")


def print_history(model: str | None, at: str | None, everything: bool, as_json: bool) -> None:
    """Print a model's ledger, who was champion at a time, or the whole ledger.

    Raises:
        ConfigError: The model is unknown, `at` is no time or lies ahead, or the options do not go together.
    """
    if everything:
        if model is not None or at is not None:
            raise ConfigError("--all is the whole ledger: leave MODEL and --at out, or leave --all out")
        _print_all(as_json)
    elif model is None:
        raise ConfigError("name a MODEL, or give --all; `gauntlet show` lists the models")
    elif at is not None:
        _print_champion(model, at, as_json)
    else:
        _print_model(model, as_json)


def _print_champion(model: str, at: str, as_json: bool) -> None:
    from steps.watch import moment_of

    load_model(model)
    moment = moment_of(at, "nobody knows who is champion then")
    quiet_home()
    from stacks.ledger import open_ledger

    champion = open_ledger().champion_at(model, moment)
    if as_json:
        print_json({"model": model, "at": moment.isoformat(), "champion": champion})
    else:
        out.print(f"champion of {model} at {moment.isoformat()}: {f'v{champion}' if champion else 'none'}")


def _print_model(model: str, as_json: bool) -> None:
    load_model(model)
    quiet_home()
    from stacks.ledger import open_ledger
    from stacks.lifecycle import standing

    entries = open_ledger().history(model)
    labels, states = labels_of(entries), standing(entries).states
    if as_json:
        versions = [{"version": v, "semver": labels.get(v), "state": state} for v, state in sorted(states.items())]
        print_json({"model": model, "versions": versions, "entries": [asdict(entry) for entry in entries]})
        return
    table(f"{model}: ledger", _COLUMNS, [_row(entry, labels) for entry in entries])
    if states:
        out.print(", ".join(f"v{version} {state}" for version, state in sorted(states.items())))


def _print_all(as_json: bool) -> None:
    quiet_home()
    from stacks.audit import GENESIS
    from stacks.ledger import open_ledger

    if as_json:
        print_json({"genesis": GENESIS, "entries": open_ledger().export()})
        return
    entries = sorted(
        (entry for found in open_ledger().histories().values() for entry in found), key=lambda entry: entry.sequence
    )
    rows = [(e.sequence, _minute(e), e.actor, e.action, e.model, _named(e), e.why) for e in entries]
    table("Ledger", ("#", "time (UTC)", "actor", "action", "model", "version", "why"), rows)


def labels_of(entries: "Sequence[Entry]") -> dict[int, str]:
    """Label of every version whose entries hold one."""
    found = {entry.version: entry.payload["semver"] for entry in entries if entry.payload.get("semver")}
    return {version: label for version, label in found.items() if version is not None}


def _row(entry: "Entry", labels: dict[int, str]) -> tuple[Any, ...]:
    reason = str(entry.payload.get("verdict", {}).get("reason", "")) or _decision(entry)
    if settings := entry.payload.get("settings"):
        reason += f" (judged with {' '.join(f'--set {text}' for text in settings)})"
    label = labels.get(entry.version or 0)
    return entry.sequence, _minute(entry), entry.actor, entry.action, _named(entry), label, entry.why, reason


def _decision(entry: "Entry") -> str:
    """What the loop decided, and what it leaves: `wait until 2026-03-09 04:00, cooldown x2, 3 trainings left`."""
    payload = entry.payload
    if entry.action != "monitor" or "decision" not in payload:
        return ""
    until, to = payload.get("wait_until"), payload.get("to")
    said = [payload["decision"] + (f" until {until[:16].replace('T', ' ')}" if until else "")]
    said[0] += f" to v{to}" if to else ""
    if payload.get("cooldown_factor", 1) > 1:
        said.append(f"cooldown x{payload['cooldown_factor']}")
    return ", ".join([*said, f"{payload.get('budget_left', 0)} trainings left"])


def _minute(entry: "Entry") -> str:
    return f"{entry.time:%Y-%m-%d %H:%M:%S}"


def _named(entry: "Entry") -> str:
    return "" if entry.version is None else f"v{entry.version}"
