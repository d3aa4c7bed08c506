"""Refusing: a challenger that waits for a person waits no more."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from models.errors import bounded
from stacks.ledger import Conflict, Entry, Ledger, current_actor, open_ledger
from stacks.lifecycle import require

LOG = logging.getLogger(__name__)
ATTEMPTS: Final = 100
# What belongs to the wait itself, or to the training run that asked for the verdict.
_OVER = ("request", "flow_run", "waits_seconds")


def refuse(model: str, version: int, *, why: str = "", actor: str | None = None) -> Entry:
    """Refuse a challenger that waits for a person, also one whose time is over.

    `repair` brings aliases and evidence.

    Args:
        model: The model.
        version: The challenger.
        why: The reason in a person's words.
        actor: Who refuses; the ledger's `current_actor` when not given.

    Returns:
        The ledger's entry.

    Raises:
        WorkError: The version does not wait, or it became champion a moment ago; nothing was changed.
    """
    ledger = open_ledger()
    stood = ledger.standing(model)
    require("reject", stood, model, version)
    who = actor or current_actor(ledger)
    payload = _payload(stood.latest[version], f"refused by {who}: {why}")
    return ledger.append("reject", model, version, why=why, actor=who, payload=payload, expect_champion=stood.champion)


def supersede(ledger: Ledger, model: str, by: int, decided: int, actor: str | None) -> None:
    """Refuse what waited before a version that waits now, or became champion: the history says what became of it.

    One challenger waits at a time, and what was compared with a champion that is none any more waits for nothing.
    Safe to repeat, and for several at once: of each challenger one refusal is written, whose `superseded_by` is the
    version in its place.

    Args:
        ledger: The ledger.
        model: The model.
        by: The version that waits, or became champion.
        decided: The ledger's entry by which it does; what waits since a later one is left alone.
        actor: Who decided.
    """
    for _ in range(ATTEMPTS):
        stood = ledger.standing(model)
        older = [number for number in stood.waiting if stood.latest[number].sequence < decided]
        if by not in (*stood.waiting, stood.champion) or not older:
            return
        reason = f"superseded by v{by}, which {'is champion' if by == stood.champion else 'waits'} now"
        payload = {**_payload(stood.latest[older[0]], reason), "superseded_by": by}
        try:
            ledger.append(
                "reject", model, older[0], why=reason, actor=actor, payload=payload, expect_tip=stood.sequence
            )
        except Conflict:
            continue
    LOG.warning("the ledger of %s never stood still: what waited before v%d is left as it is", model, by)


def _payload(entry: Entry, reason: str) -> Mapping[str, Any]:
    """What was known of the challenger, with the refusal in the place of its verdict."""
    kept = {name: value for name, value in entry.payload.items() if name not in _OVER}
    return {
        **kept,
        "verdict": {**entry.payload["verdict"], "decision": "rejected", "reason": bounded(reason)},
        "by_hand": True,
    }
