"""Waking: a flow run that is suspended until somebody decides is resumed when that was done elsewhere."""

import logging
from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from prefect.flow_runs import resume_flow_run

from models.errors import bounded
from stacks.ledger import Entry, open_ledger

LOG = logging.getLogger(__name__)


def wake(run: str, decision: Literal["approve", "reject"], why: str) -> None:
    """Resume a flow run whose question was decided elsewhere, so that it ends with that decision.

    What was decided stands: where Prefect does not answer, or the run waits no more, a warning says so.
    """
    try:
        resume_flow_run(UUID(run), run_input={"decision": decision, "why": why})
    except Exception as error:
        LOG.warning(
            "decided; flow run %s, which waits for it, was not told; where it is still suspended, Prefect ends it when "
            "the approval expires: %s",
            run,
            bounded(str(error), 300),
        )


def wake_superseded(model: str, by: int, decided: int) -> None:
    """Resume the flow runs of the challengers that one decision superseded, each once.

    Args:
        model: The model.
        by: The version that waits in their place, or became champion.
        decided: The ledger's entry by which it does.
    """
    entries = open_ledger().history(model)
    for entry in entries:
        if entry.sequence > decided and entry.payload.get("superseded_by") == by and (run := _asking(entries, entry)):
            wake(run, "reject", entry.why)


def _asking(entries: Sequence[Entry], refusal: Entry) -> str | None:
    """The flow run that asked the question which a refusal answers; None where none is suspended for it."""
    asked = [
        entry
        for entry in entries
        if entry.version == refusal.version and entry.action == "pending" and entry.sequence < refusal.sequence
    ]
    return asked[-1].payload.get("flow_run") if asked else None
