"""What became of the trainings that the loop started, by the ledger alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from stacks.ledger import Entry

Outcome = Literal["promoted", "kept", "rejected", "pending", "failed", "running"]
PATIENCE: Final = timedelta(days=1)
OUTCOMES: Final[dict[str, Outcome]] = {
    "promote": "promoted",
    "keep": "kept",
    "reject": "rejected",
    "pending": "pending",
}


@dataclass(frozen=True)
class Training:
    """A training that the loop started.

    Attributes:
        sequence: The decision's entry in the ledger.
        at: When it was decided, by the clock of whoever looked.
        about: The champion that it was to replace.
        outcome: `running` until there is a verdict, a failure that was noted, or a day has gone.
        version: The challenger; None without a verdict.
        said: The verdict's reason, or what failed; "" where nothing was written.
    """

    sequence: int
    at: datetime
    about: int | None
    outcome: Outcome
    version: int | None = None
    said: str = ""


def reference(sequence: int) -> str:
    """How the `why` of a training or a rollback names the decision that it follows."""
    return f"(monitor entry {sequence})"


def is_decision(entry: Entry, *decisions: str) -> bool:
    """Whether an entry is a decision of the loop: one of these, or any."""
    decision = entry.payload.get("decision") if entry.action == "monitor" else None
    return decision is not None and (not decisions or decision in decisions)


def moment_of(entry: Entry) -> datetime:
    """When a decision was taken, by the clock of whoever looked: the ledger's own time never goes back."""
    said = entry.payload.get("moment")
    return datetime.fromisoformat(said) if said else entry.time


def trainings_of(entries: Sequence[Entry], now: datetime) -> tuple[Training, ...]:
    """The trainings that the loop started, the oldest first.

    Args:
        entries: A model's ledger, oldest first.
        now: The moment of looking.
    """
    return tuple(_training(entry, entries, now) for entry in entries if is_decision(entry, "retrain"))


def _training(decision: Entry, entries: Sequence[Entry], now: datetime) -> Training:
    at, named = moment_of(decision), reference(decision.sequence)
    later = [entry for entry in entries if entry.sequence > decision.sequence]
    judged = next((entry for entry in later if "verdict" in entry.payload and named in entry.why), None)
    if judged is None:
        failure = next((entry for entry in later if entry.payload.get("failed") == decision.sequence), None)
        if failure is None and now - at < PATIENCE:
            return Training(decision.sequence, at, decision.version, "running")
        said = failure.why if failure else f"no verdict came within {PATIENCE / timedelta(hours=1):.0f} hours"
        return Training(decision.sequence, at, decision.version, "failed", said=said)
    last = [e for e in later if e.version == judged.version and e.action in OUTCOMES and e.sequence >= judged.sequence]
    outcome, reason = OUTCOMES[last[-1].action], str(last[-1].payload.get("verdict", {}).get("reason", ""))
    if outcome == "pending" and last[-1].waits_until is not None and last[-1].waits_until <= now:
        outcome, reason = "rejected", f"nobody decided until {last[-1].waits_until:%Y-%m-%d %H:%M} UTC"
    return Training(decision.sequence, at, decision.version, outcome, judged.version, reason)
