"""Promotion: the gates a challenger must pass, the verdict, and the one order in which it is written."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stacks.ledger import Entry

Decision = Literal["promoted", "kept", "rejected", "pending"]


class Gate(BaseModel):
    """One gate and what came of it.

    Attributes:
        name: A metric's name, or `quality_score`, `beats_dummy`, `smoke_test`, `improvement`, ….
        value: What was measured; None when it could not be.
        threshold: What was asked for; None where the gate is a plain yes or no.
        margin: How far `value` lies on the good side of `threshold` (negative: on the bad side).
        blocking: Whether failing it stops the promotion; otherwise it is a warning.
        verdict: `skipped` when there was nothing to measure against.
        reason: The same in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | None
    threshold: float | None
    margin: float | None
    blocking: bool
    verdict: Literal["passed", "failed", "skipped"]
    reason: str


class Verdict(BaseModel):
    """What became of a challenger.

    Attributes:
        champion: The champion's version after the verdict.
        former: The champion it was judged against.
        rows: Rows that champion and challenger were compared on; neither was trained on them.
        sequence: The ledger's entry that holds this verdict; 0 before it is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    decision: Decision
    champion: int | None
    former: int | None
    gates: tuple[Gate, ...]
    rows: int
    reason: str
    sequence: int = 0


def repair(model: str | None = None) -> tuple[str, ...]:
    """Bring aliases, tags and `<model>:latest` back to what the ledger says, of one model or all; what was done."""
    raise NotImplementedError


def rollback(model: str, to: int | None = None, *, why: str = "", actor: str | None = None) -> Entry:
    """Make an earlier champion the champion again: ledger, aliases, `<model>:latest`."""
    raise NotImplementedError
