"""Pipelines that do nothing; imported only when the homes are set, since it imports ZenML."""

from zenml import pipeline, step

STEPS = 8


@step
def nothing() -> None:
    """No work, no artifact."""


@pipeline(enable_cache=False)
def nothing_chain() -> None:
    """Each step waits for the one before."""
    before: list[str] = []
    for number in range(STEPS):
        name = f"nothing_{number}"
        nothing(id=name, after=before)
        before = [name]
