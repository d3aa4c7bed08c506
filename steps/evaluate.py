"""Evaluating: champion and challenger on the same raw rows, none of which either was trained on."""

from pydantic import BaseModel, ConfigDict


class Evaluation(BaseModel):
    """What a challenger is worth, beside the champion and the simplest models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    release_digest: str
    data_digest: str
    metric: str
    greater_is_better: bool
    challenger: dict[str, float]
    champion_version: int | None = None
    champion: dict[str, float] | None = None
    challenger_compared: dict[str, float] | None = None
    rows: int
    test_rows: int
    dummy: float
    linear: float
    quality_score: float
    mlflow_run_id: str
    notes: tuple[str, ...] = ()
