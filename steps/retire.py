"""Retiring: a version that nobody needs any more leaves its evidence and its place in history, nothing else."""

from stacks import registry
from stacks.ledger import Entry, open_ledger
from stacks.lifecycle import require
from steps.label import label_of
from steps.promote import repair


def retire(model: str, version: int, *, why: str = "", actor: str | None = None) -> Entry:
    """Retire a version: the ledger's entry first, then its evidence is archived and its files are deleted.

    Training the same again gives the same Release, under a new number.

    Args:
        model: The model.
        version: Its version: neither the champion nor the previous one, and none that waits for a person.
        why: The reason in a person's words.
        actor: Who does it; the user of the operating system when not given.

    Returns:
        The ledger's entry.

    Raises:
        WorkError: Its state does not allow it, or there is no such version: nothing was changed. Or its files could
            not be deleted: the next command does it.
    """
    ledger = open_ledger()
    stands = ledger.standing(model)
    registry.version(model, version)
    require("retire", stands, model, version)
    facts = {"from": stands.state(version), "semver": label_of(model, version)}
    entry = ledger.append("retire", model, version, why=why, actor=actor, payload=facts, expect_tip=stands.sequence)
    repair(model)
    return entry
