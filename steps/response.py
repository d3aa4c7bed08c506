"""What follows from findings: the artifact that `respond` hands to `alert` and to the flow."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from models.monitoring import CheckName

Decision = Literal["watch", "wait", "retrain", "rollback"]


class Response(BaseModel):
    """A decision about a champion.

    Attributes:
        model: Name of the model.
        version: The champion that it is about.
        decision: `watch`: nothing to do; `wait`: there is trouble, and a training may not start yet; `retrain`: one
            starts; `rollback`: the previous champion takes over.
        why: In words, with the findings that it stands on; what the ledger and the training are told.
        checks: Whose findings it stands on.
        reasons: The same in single words (the checks, and what holds a training back): a decision is written to the
            ledger when it or these change.
        sequence: Its entry in the ledger; None where none was written, because nothing changed.
        to: The version that a rollback returns to.
        wait_until: When a training may start; None unless the decision is `wait`, or where only a person can say.
        cooldown_factor: 1, 2, 4 or 8: by what the cooldown was multiplied.
        budget_left: Trainings that may still start in the 30 days.
        last_training: What became of the training that the loop started last: `promoted`, `kept`, `rejected`,
            `pending`, `failed`, `running`; None where it never started one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    decision: Decision
    why: str
    checks: tuple[CheckName, ...] = ()
    reasons: tuple[str, ...] = ()
    sequence: int | None = None
    to: int | None = None
    wait_until: AwareDatetime | None = None
    cooldown_factor: Literal[1, 2, 4, 8] = 1
    budget_left: int
    last_training: str | None = None
