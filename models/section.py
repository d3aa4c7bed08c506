"""What every part of a model's YAML is made of."""

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9_]{0,61}[a-z0-9])?$")]
Share = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[dhm]$")]
Cron = Annotated[str, Field(pattern=r"^\S+( \S+){4}$")]
Scalar = str | int | float | bool
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


class Section(BaseModel):
    """A strict, frozen part of a model's YAML: unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def length(span: str) -> timedelta:
    """How long a `Span` such as `90d`, `12h` or `30m` is."""
    return timedelta(**{_UNITS[span[-1]]: int(span[:-1])})
