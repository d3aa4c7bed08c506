"""What the service takes and answers: pydantic classes made from a Release's schema, shown in its OpenAPI."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    Strict,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from bentos.schema import Schema
from models.config import Column

MAX_TEXT = 1_000_000
MAX_ENTITY = 200
MOST_EXPLAINED, USUALLY_EXPLAINED = 20, 5
FIRST_YEAR, LAST_YEAR = 1970, 2199
Variant = Literal["champion", "canary", "shadow"]


class Message(BaseModel):
    """A body of JSON: unknown fields are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Flag(Message):
    """Something unusual about an input that was answered all the same."""

    column: str
    reason: str


class TokenEffect(Message):
    """A term of a text and its part of the text's effect."""

    token: str
    effect: float


class Contribution(Message):
    """What one column adds to the output of the explanation."""

    column: str
    value: str | float | bool | None = Field(description="Null where missing; of a long text the beginning.")
    effect: float = Field(description="Signed, on the scale of the explanation.")
    tokens: list[TokenEffect] | None = Field(None, description="Of a text: the terms in it with the largest effects.")


class Explanation(Message):
    """What contributions speak of: `base` and the effects of all columns add up to `output`."""

    label: str | None = Field(
        None, description="The positive class of two, the predicted one of more; absent for regression."
    )
    base: float = Field(description="The output before anything is known of the row.")
    output: float
    method: Literal["tree_shap", "linear"]
    scale: Literal["log-odds", "probability", "value"]


class Answer(Message):
    """The answer to one row."""

    prediction: str | float | None = Field(description="The class, or the number; null where the model abstains.")
    abstained: bool | None = Field(
        None, description="Whether the best class was too improbable to be told; absent where the model always answers."
    )
    probability: float | None = Field(
        None, description="Of the positive class where there are two, of the most probable one where there are more."
    )
    probabilities: dict[str, float] | None = Field(None, description="By class; absent for regression.")
    risk: str | None = Field(None, description="Level of the probability, where the model has levels.")
    model: str
    version: int
    variant: Variant
    prediction_id: str
    flags: list[Flag]
    contributions: list[Contribution] | None = Field(
        None, description="The largest effects first; absent where none were asked for."
    )
    explanation: Explanation | None = None


class BatchAnswer(Message):
    """The answers to a batch, in its order."""

    predictions: list[Answer]


class Health(Message):
    """Which version answers, and since when."""

    status: Literal["ok"]
    model: str
    version: int
    variant: Variant
    since: str | None = Field(
        description="When this process began to serve it, ISO 8601, UTC; null while it is not in memory."
    )
    digest: str | None = Field(description="The Release digest; null while it is not in memory.")
    log: Literal["ok", "unavailable"] = Field(description="Whether answers can be logged, without which none is given.")


class Standing(Message):
    """What answers for one model."""

    model: str
    version: int | None = Field(description="Null while nothing answers for it.")
    resident: bool = Field(description="Whether it is in memory; else it comes back when it is asked.")


class Models(Message):
    """The models of a service."""

    models: list[Standing]


class Fault(Message):
    """One thing that is wrong with a request: where and why, never the value."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(Message):
    """The body of a 4xx answer."""

    detail: list[Fault]


@dataclass(frozen=True)
class Requests:
    """The request classes of one model.

    Attributes:
        features: `<Model>Features`: one field a column, in the order of the schema's inputs.
        single: `<Model>Request`: `{"features": {...}, "explain"?, "entity"?, "at"?}`.
        batch: `<Model>Batch`: `{"instances": [{...}, ...], "explain"?, "entity"?, "at"?}`.
    """

    features: type[BaseModel]
    single: type[BaseModel]
    batch: type[BaseModel]


def requests_of(schema: Schema, max_batch: int) -> Requests:
    """Make the request classes of a model.

    Ranges and categories are shown here and enforced by `bentos.inputs.examine`, on the typed frame: whether 0 is a
    pressure out of range or a missing one is known there only.
    """
    prefix = "".join(part.capitalize() for part in schema.model.split("_"))
    fields: dict[str, Any] = {}
    for position, (name, column) in enumerate(schema.inputs.items()):
        # A column may be named anything; a field may not. Outside they carry the column's name.
        fields[f"field_{position}"] = _field(name, column)
    features = create_model(f"{prefix}Features", __base__=Message, __doc__=f"A row for {schema.model}.", **fields)
    single = create_model(
        f"{prefix}Request",
        __base__=Message,
        __doc__="One row to answer.",
        features=(features, Field()),
        explain=(Explain, None),
        entity=(Entity | None, None),
        at=(At | None, None),
    )
    instances = Annotated[list[features], FailFast(), Field(min_length=1, max_length=max_batch)]  # type: ignore[valid-type]
    batch = create_model(
        f"{prefix}Batch",
        __base__=Message,
        __doc__="Rows to answer.",
        instances=(instances, Field()),
        explain=(Explain, None),
        entity=(Entity | None, None),
        at=(At | None, None),
    )
    return Requests(features, single, batch)


def row_of(features: BaseModel) -> list[Any]:
    """Values of a `<Model>Features` in the order of the schema's inputs."""
    return list(features.__dict__.values())


def _field(name: str, column: Column) -> tuple[Any, Any]:
    shown = _shown(column)
    typed: Any = _TYPES[column.type]
    may_miss = column.missing > 0
    described = Field(default=None if may_miss else ..., alias=name, title=name, description=_description(column))
    typed = Annotated[typed, WithJsonSchema(shown)]
    return (typed | None if may_miss else typed), described


def _scalar(value: Any) -> Any:
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise PydanticCustomError("scalar_type", "Input should be a text, a number or a boolean")


def explained(value: Any) -> int | None:
    """How many effects a request asks for; None for none.

    Raises:
        PydanticCustomError: It is no such number.
    """
    if value is None or isinstance(value, bool):
        return USUALLY_EXPLAINED if value else None
    if isinstance(value, int) and 1 <= value <= MOST_EXPLAINED:
        return value
    raise PydanticCustomError("explain", f"Input should be a whole number from 1 to {MOST_EXPLAINED}, or true")


def moment(text: str) -> str:
    """The same text where it is a date and time in ISO 8601 form.

    Raises:
        PydanticCustomError: It is not, or lies too far away.
    """
    try:
        at = datetime.fromisoformat(text if _MOMENT.fullmatch(text) else "")
    except ValueError:
        reason = "Input should be a date and time in ISO 8601 form, for example 2026-11-21T16:30:00Z"
        raise PydanticCustomError("moment", reason) from None
    bearable(at)
    return text


def bearable(at: datetime) -> datetime:
    """The same moment where every reader can compute with it.

    Raises:
        PydanticCustomError: It lies before 1970, or after 2199.
    """
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        raise PydanticCustomError("value", f"Input should lie in the years {FIRST_YEAR} to {LAST_YEAR}")
    return at


_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?"
)
Explain = Annotated[
    int | None,
    BeforeValidator(explained),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST_EXPLAINED},
                {"type": "boolean"},
                {"type": "null"},
            ],
            "title": "Explain",
            "description": f"How many columns' effects to tell, the largest first; true means {USUALLY_EXPLAINED}.",
        }
    ),
]
Entity = Annotated[
    str,
    Strict(),
    Field(
        min_length=1,
        max_length=MAX_ENTITY,
        description="Whom or what the request is about. The same entity is always answered by the same version of those"
        " that share the traffic, and a person's predictions are found by it; it is stored only as a keyed hash.",
    ),
]
At = Annotated[
    str,
    Strict(),
    AfterValidator(moment),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": "When the values were true: ISO 8601 with date and time, in the years "
            f"{FIRST_YEAR} to {LAST_YEAR}; UTC where no zone is given. It is kept with the prediction.",
        }
    ),
]
_NUMBER = Annotated[float, Strict(), AllowInfNan(False)]
_TYPES: Mapping[str, Any] = {
    "number": _NUMBER,
    "integer": _NUMBER,
    "boolean": Annotated[bool, Strict()],
    "category": Annotated[Any, BeforeValidator(_scalar)],
    "text": Annotated[str, Strict(), Field(max_length=MAX_TEXT)],
    "datetime": Annotated[str, Strict()],
}


def _shown(column: Column) -> dict[str, Any]:
    """JSON Schema of a present value."""
    if column.type == "datetime":
        return {"type": "string"} | ({} if column.format else {"format": "date-time"})
    if column.type == "category":
        any_value: dict[str, Any] = {"type": ["string", "number", "boolean"]}
        if column.categories is None:
            return any_value
        known = {"enum": list(column.categories)}
        return known if column.on_unseen == "reject" else {"anyOf": [known, any_value]}
    if column.type == "text":
        return {"type": "string", "maxLength": MAX_TEXT}
    shown: dict[str, Any] = {"type": column.type}
    if column.range is None:
        return shown
    if column.on_range == "flag":
        return shown | {"x-range": list(column.range)}
    bounded = shown | {"minimum": column.range[0], "maximum": column.range[1]}
    markers = [m for m in column.missing_values if isinstance(m, int | float) and not isinstance(m, bool)]
    return {"anyOf": [bounded, {"enum": markers, "description": "means missing"}]} if markers else bounded


def _description(column: Column) -> str | None:
    notes = [column.description] if column.description else []
    if column.range is not None and column.on_range == "flag":
        notes.append(f"outside {column.range[0]:g} to {column.range[1]:g} the answer carries a flag")
    if column.categories is not None and column.on_unseen == "flag":
        notes.append("another category is answered with a flag")
    if column.format:
        notes.append(f"a date of the form {column.format}")
    return "; ".join(notes) or None
