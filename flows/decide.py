"""`gauntlet promote` and `gauntlet reject`: what a person decides about a version."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape

from flows.console import out, print_json, quiet_home, use_logging
from flows.gates import print_gates
from flows.retire import repair_first
from flows.run import own_error, use_prefect
from models.config import load_model
from models.errors import ConfigError
from stacks.active import use_stack
from stacks.home import use_home
from stacks.ledger import Entry, current_actor, open_ledger
from stacks.lifecycle import Standing


def promote_by_hand(model: str, version: int, why: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the Prefect flow `release` here, on the active stack.

    Returns:
        The result of `flows.release.release`.

    Raises:
        GauntletError: The model, the version or the key is wrong, a rule or a gate stands against it, or a step failed.
    """
    config = load_model(model).config
    _require_reason(why)
    home = use_home()
    use_stack()
    # Before anything is started: a wrong key is wrong usage.
    current_actor()
    with use_prefect(home, "flows.release"):
        from flows.release import release
        from flows.wake import wake

        use_logging(config.logging, model=model)
        waiting_run = _waiting_run(model, version)
        result = dict(own_error(lambda: release(model, version, why, list(overrides))))
        if waiting_run:
            wake(waiting_run, "approve", why)
    return result


def reject_by_hand(model: str, version: int, why: str) -> dict[str, Any]:
    """Refuse a challenger that waits.

    Raises:
        GauntletError: The model or the key is wrong, or the version does not wait.
    """
    load_model(model)
    _require_reason(why)
    home = quiet_home()
    from stacks import registry
    from steps.promote import repair
    from steps.refuse import refuse

    registry.initialise()
    repair_first(model)
    waiting_run = _waiting_run(model, version)
    entry = refuse(model, version, why=why)
    repair(model)
    if waiting_run:
        with use_prefect(home, "flows.wake"):
            from flows.wake import wake

            wake(waiting_run, "reject", why)
    return decided(entry)


def _waiting_run(model: str, version: int) -> str | None:
    """Prefect's flow run that is suspended until somebody decides about a version."""
    entry = open_ledger().standing(model).latest.get(version)
    return entry.payload.get("flow_run") if entry and entry.action == "pending" else None


def decided(entry: Entry) -> dict[str, Any]:
    """What a version's newest entry says of it, as `--json` prints it."""
    verdict = entry.payload.get("verdict", {})
    return {
        "model": entry.model,
        "version": entry.version,
        "verdict": verdict.get("decision", entry.action),
        "reason": verdict.get("reason", entry.why),
        "champion": open_ledger().champion(entry.model),
        "actor": entry.actor,
        "why": entry.why,
    }


def waiting(stood: Standing) -> dict[str, Any]:
    """The challenger that waits for a person, until when (ISO 8601, UTC), and whether that is over."""
    entry = stood.latest[stood.challenger] if stood.challenger else None
    until = entry.waits_until if entry else None
    return {
        "challenger": stood.challenger,
        "waits_until": until.isoformat(timespec="seconds") if until else None,
        "expired": until is not None and until <= datetime.now(UTC),
    }


def print_waiting(shown: Mapping[str, Any]) -> None:
    """Print who waits, and what a person can do about it; nothing where nobody waits."""
    if shown["challenger"] is None:
        return
    name, until = f"v{shown['challenger']}", shown["waits_until"] or "somebody decides"
    if shown["expired"]:
        out.print(f"{name} waited for a person until {until} and has expired: gauntlet run {shown['model']}")
        return
    command = f"{shown['model']} {shown['challenger']} --why …"
    out.print(f"{name} waits for a person until {until}: gauntlet promote {command}, or gauntlet reject {command}")


def _require_reason(why: str) -> None:
    if not why.strip():
        raise ConfigError("--why is empty; say in a few words why, the ledger keeps it")


def print_decision(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the gates as they were judged now, the verdict and who is champion."""
    if as_json:
        print_json(result)
        return
    if gates := result.get("gates"):
        print_gates(gates)
    out.print(f"\n[bold]{result['verdict']}[/bold] by {escape(result['actor'])}: {escape(result['reason'])}")
    champion = result["champion"]
    out.print(f"champion of {result['model']}: {f'v{champion}' if champion else 'none yet'}")
    if result.get("answer"):
        out.print(f"served for a moment, it answered: {json.dumps(result['answer'], ensure_ascii=False)}", markup=False)
