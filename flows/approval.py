"""A training run of a deployment that waits for a person: suspended in Prefect, and what follows when it is resumed."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from flows.decide import decided
from flows.release import promote_version
from flows.retire import repair_first
from models.config import ModelConfig
from models.errors import bounded
from stacks import registry
from stacks.ledger import Entry, open_ledger
from stacks.lifecycle import standing
from steps.promote import repair
from steps.refuse import refuse

LOG = logging.getLogger(__name__)
# Prefect's own server does not know who resumes a run.
SOMEBODY = "unverified:prefect"
PAUSE_KEY = "approval"


class Approval(RunInput):
    """What a person decides about a challenger that waits: the form that Prefect shows for Resume."""

    decision: Literal["approve", "reject"]
    why: str = Field(min_length=1, description="Reason, for the ledger.")
    override: list[str] = Field(default_factory=list, description="Names of gates that may fail.")


@dataclass(frozen=True)
class Question:
    """A challenger that a flow run asked a person about.

    Attributes:
        entry: The ledger's entry by which it waits.
        last: What the version is by the ledger: the same one, unless it was decided elsewhere.
    """

    entry: Entry
    last: Entry


def suspends(config: ModelConfig) -> bool:
    """Whether the current flow run may suspend until a person has decided: Prefect does that with a deployment only."""
    return config.promotion.approval.wait and deployment.id is not None and flow_run.parent_flow_run_id is None


def question_of(model: str, run: str) -> Question | None:
    """What a flow run asked a person, also in an earlier process of it; None when it did not get that far."""
    entries = open_ledger().history(model)
    asked = [entry for entry in entries if entry.action == "pending" and entry.payload.get("flow_run") == run]
    if not asked:
        return None
    return Question(asked[-1], standing(entries).latest[asked[-1].version or 0])


def suspended(question: Question) -> Approval | None:
    """Suspend the current flow run until a person has answered, or return the answer that it was resumed with.

    Returns:
        The answer; None when the question was decided elsewhere, by `gauntlet promote` for example.

    Raises:
        Pause: The flow run suspends here, and its process ends.
    """
    until = question.entry.waits_until
    assert until is not None
    if question.last.sequence != question.entry.sequence:
        return None
    seconds = max(1, int((until - datetime.now(UTC)).total_seconds()))
    reason = question.entry.payload["verdict"]["reason"]
    asking = Approval.with_initial_data(description=bounded(f"{question.entry.model}: {reason}", 1_000))
    return suspend_flow_run(wait_for_input=asking, timeout=seconds, key=PAUSE_KEY)


def conclude(question: Question, answer: Approval | None) -> dict[str, Any]:
    """Do what a person decided.

    Returns:
        What `gauntlet promote --json` prints; of a refusal model, version, verdict, reason and champion.

    Raises:
        GauntletError: A rule or a gate stands against the promotion; the challenger still waits.
    """
    entry = question.entry
    model, version = entry.model, entry.version or 0
    if answer is not None and answer.decision == "approve":
        return promote_version(model, version, answer.why, answer.override, SOMEBODY)
    last = question.last
    if answer is not None:
        registry.initialise()
        repair_first(model, LOG.warning)
        last = refuse(model, version, why=answer.why, actor=SOMEBODY)
        repair(model)
    return decided(last)
