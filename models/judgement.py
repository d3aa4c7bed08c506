"""How a model's challengers are judged, as its YAML says it: figures, slices, behaviour, fairness, gates, promotion."""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.section import Name, Scalar, Section, Share, Span, length

MOST_CROSSINGS = 50


class Floor(Section):
    """A gate on one number of the evaluation."""

    min: float | None = None
    max: float | None = None
    blocking: bool = True

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("give min or max")
        return self


class Slices(Section):
    """Parts of the test rows that are looked at by themselves."""

    columns: tuple[str, ...] = Field((), description="Every value of these is a slice; numbers are cut in quarters.")
    find: int = Field(5, ge=0, description="How many of the worst slices, by one column or two, are found and shown.")
    min_rows: int = Field(50, ge=50, description="Smaller slices are not judged.")


class OwnMetric(Section):
    """A figure of the user's: a function of truth, predicted and probabilities (None for a regression).

    It returns a number, or NaN where the rows do not allow it.
    """

    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = Field(
        description="Import path, as package.module:function."
    )
    greater_is_better: bool = True
    source: str = Field("", description="Sum of the function's file, filled in by a run; leave it out.")


class Behaviour(Section):
    """A behavioural check of the fitted model (Ribeiro et al. 2020): what a change of a row may do to its answer.

    invariance: one column is given each of `values`, moved by `shift`, or its text changed by `replace`; the answer
    stays. direction: the same change makes the answer rise or fall, or stay. minimum: the answers to `rows` are as
    expected. An answer is the probability of `label`, or the number of a regression.
    """

    name: Name
    kind: Literal["invariance", "direction", "minimum"]
    column: str | None = None
    values: tuple[Scalar | None, ...] = Field((), description="Values that the column is given, one after the other.")
    shift: float | None = Field(None, description="What is added to the column.")
    replace: tuple[str, str] | None = Field(
        None, description="Regular expression that is replaced in a text, and what takes its place."
    )
    expect: str | tuple[float, float] | None = Field(
        None, description="direction: rises or falls. minimum: the class, or smallest and largest number."
    )
    label: str | None = Field(None, description="Class whose probability is looked at; the last one when left out.")
    rows: tuple[dict[str, Scalar | None], ...] = Field((), description="minimum: raw rows.")
    tolerance: float = Field(1e-6, ge=0, description="What an answer may move by and still count as unmoved.")
    min_share: Share = Field(1.0, description="Share of the rows that must behave.")
    blocking: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Raw columns that the check names."""
        named = {name: None for row in self.rows for name in row}
        return (*((self.column,) if self.column else ()), *named)

    @field_validator("replace")
    @classmethod
    def _is_pattern(cls, given: tuple[str, str] | None) -> tuple[str, str] | None:
        try:
            if given is not None:
                re.compile(given[0])
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return given

    @model_validator(mode="after")
    def _whole(self) -> Self:
        changes = [key for key in ("values", "shift", "replace") if getattr(self, key) not in (None, ())]
        if self.kind == "minimum":
            if not self.rows or self.expect is None or changes or self.column:
                raise ValueError("kind minimum takes rows and expect, and no column or change")
            return self
        if self.column is None or len(changes) != 1 or self.rows:
            raise ValueError(f"kind {self.kind} takes a column and one of values, shift, replace")
        if self.kind == "direction" and (self.expect not in ("rises", "falls") or changes == ["values"]):
            raise ValueError("kind direction takes shift or replace, and expect: rises or falls")
        if self.kind == "invariance" and self.expect is not None:
            raise ValueError("kind invariance expects nothing: the answer stays")
        return self


class Evaluating(Section):
    """How figures are computed."""

    resamples: int = Field(1_000, ge=1_000, description="Bootstrap resamples behind every interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the intervals.")
    metrics: dict[Name, OwnMetric] = Field(default_factory=dict)
    slices: Slices = Slices()
    behaviour: tuple[Behaviour, ...] = ()

    @field_validator("behaviour")
    @classmethod
    def _names_differ(cls, checks: tuple[Behaviour, ...]) -> tuple[Behaviour, ...]:
        if len({check.name for check in checks}) < len(checks):
            raise ValueError("names of checks repeat")
        return checks


class Fairness(Section):
    """How groups of the sensitive columns are compared."""

    positive: str | None = Field(None, description="The class that counts as selected; the last one when left out.")
    intersections: int = Field(2, ge=1, le=3, description="How many sensitive columns are crossed at most.")
    min_rows: int = Field(50, ge=50, description="Smaller groups are shown and not judged.")
    reweigh: tuple[str, ...] = Field(
        (), description="Sensitive columns by which training rows are weighed (Kamiran & Calders 2012)."
    )


class Improvement(Section):
    """By how much a challenger must beat the champion."""

    value: float = Field(0.02, ge=0)
    of: Literal["metric", "error"] = Field("metric", description="error: share of what the champion still gets wrong.")


class Approval(Section):
    """Whether a person has to agree to a promotion; written as one word or as a mapping."""

    mode: Literal["auto", "manual", "on_warning"] = Field("auto", description="on_warning: when a warning gate failed.")
    wait: bool = Field(False, description="A deployment's run suspends until a person has decided.")
    expires: Span = Field("14d", description="90d, 12h, 30m.")

    @property
    def period(self) -> timedelta:
        """How long a challenger waits for a person."""
        return length(self.expires)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, given: Any) -> Any:
        return {"mode": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _waits_for_someone(self) -> Self:
        if self.wait and self.mode == "auto":
            raise ValueError("wait needs mode manual or on_warning: nobody is asked with auto")
        return self


class Promotion(Section):
    """When a challenger replaces the champion."""

    min_improvement: Improvement = Improvement()
    min_rows: int = Field(200, ge=1, description="Rows to compare on, where the champion cannot read them all.")
    approval: Approval = Approval()
    four_eyes: bool = Field(False, description="Who ran the training may not promote, and nobody unverified.")


class Card(Section):
    """What people say of a model on its card (Mitchell et al. 2019, "Model cards for model reporting")."""

    intended_use: str = Field("", max_length=2_000, description="Who may use the answers, and for what.")
    limits: tuple[Annotated[str, Field(max_length=500)], ...] = Field(
        (), max_length=20, description="What it must not be used for, and where it is known to be weak."
    )
    owners: tuple[Annotated[str, Field(max_length=200)], ...] = Field(
        (), max_length=20, description="Teams or roles that answer for it."
    )
