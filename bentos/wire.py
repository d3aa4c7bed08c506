"""Bytes of a request to rows and answers to bytes, where nothing is wrong with them.

What is not accepted here goes through the classes of `bentos.messages`, which say why; nothing is accepted here that
they refuse.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
import numpy as np
from pydantic_core import PydanticCustomError

from bentos.messages import MAX_ENTITY, MAX_TEXT, Variant, explained, moment
from bentos.schema import Schema
from models.config import Column

if TYPE_CHECKING:
    from bentos.release import Answers, Release

Array = np.ndarray[Any, Any]
Row = tuple[Any, ...]

_TYPES: Mapping[str, Any] = {
    "number": float,
    "integer": float,
    "boolean": bool,
    "category": str | bool | int | float,
    "text": Annotated[str, msgspec.Meta(max_length=MAX_TEXT)],
    "datetime": str,
}
_UNWIRED = re.compile(r'[\x00-\x1f"\\]')
_REFUSALS = (msgspec.MsgspecError, PydanticCustomError, UnicodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Request:
    """Rows to answer.

    Attributes:
        rows: Values in the order of the schema's inputs, None where missing; of a single request one row.
        explain: How many effects to tell; None for none.
        entity: Whom it is about.
        at: When its values were true, ISO 8601.
    """

    rows: Sequence[Row]
    explain: int | None
    entity: str | None
    at: str | None


@dataclass(frozen=True)
class Wire:
    """Reads the plain requests of one model."""

    _single: "msgspec.json.Decoder[Any]"
    _batch: "msgspec.json.Decoder[Any]"
    _row: Callable[[Any], Row]

    @classmethod
    def of(cls, schema: Schema, max_batch: int) -> Self | None:
        """Make the decoders of a model's requests; a batch has at most `max_batch` rows.

        Returns:
            None where a column's name holds a quote, a backslash or a control character, which msgspec does not take.
        """
        if any(_UNWIRED.search(name) for name in schema.inputs):
            return None
        fields = [f"field_{place}" for place in range(len(schema.inputs))]
        typed = [_field(f, column) for f, column in zip(fields, schema.inputs.values(), strict=True)]
        names = dict(zip(fields, schema.inputs, strict=True))
        features = msgspec.defstruct(
            "Features", typed, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False
        )
        instances = Annotated[list[features], msgspec.Meta(min_length=1, max_length=max_batch)]  # type: ignore[valid-type]
        # Of one field, attrgetter gives no tuple.
        row = attrgetter(*fields) if len(fields) > 1 else msgspec.structs.astuple
        return cls(_decoder("features", features), _decoder("instances", instances), row)

    def single(self, body: bytes) -> Request | None:
        """The request in the body of a `/predict`; None where the body needs a closer look."""
        try:
            asked = self._single.decode(body)
            return _request([self._row(asked.features)], asked)
        except _REFUSALS:
            return None

    def batch(self, body: bytes) -> Request | None:
        """The request in the body of a `/predict/batch`; None where the body needs a closer look."""
        try:
            asked = self._batch.decode(body)
            return _request(list(map(self._row, asked.instances)), asked)
        except _REFUSALS:
            return None


def single_record(columns: Sequence[str], request: Request, answer: bytes) -> bytes:
    """What the log keeps of a single request: `{"inputs": {...}, "answer": {...}, "at"?: "..."}`."""
    inputs = msgspec.json.encode(dict(zip(columns, request.rows[0], strict=True)))
    return b'{"inputs":%b,"answer":%b%b}' % (inputs, answer, _at(request.at))


def batch_record(columns: Sequence[str], rows: Sequence[Row], answers: bytes, at: str | None = None) -> bytes:
    """What the log keeps of a batch: `{"columns": [...], "inputs": [[...], ...], "answers": [...], "at"?: "..."}`."""
    told = (msgspec.json.encode(columns), msgspec.json.encode(rows), answers, _at(at))
    return b'{"columns":%b,"inputs":%b,"answers":%b%b}' % told


@dataclass(frozen=True)
class Teller:
    """Writes the answers of one served version, to rows that nothing is unusual about: without flags.

    Attributes:
        labels: JSON of the classes; empty for a regression.
        levels: JSON of the risk levels; empty where there are none.
        starts: Probabilities that they begin at.
        abstains: Whether the model may tell no class.
        template: An answer but for what differs between rows, and its end.
        tail: Its end but for the prediction's id.
    """

    labels: tuple[bytes, ...]
    levels: tuple[bytes, ...]
    starts: Array
    abstains: bool
    template: bytes
    tail: bytes

    @classmethod
    def of(cls, release: "Release", version: int, variant: Variant) -> Self:
        """Prepare what is the same in all answers."""
        levels, labels = release.config.serving.risk or {}, tuple(map(_json, release.schema.labels))
        abstains = release.config.serving.abstain_below is not None and bool(labels)
        parts = [b'{"prediction":%b']
        if labels:
            shares = b",".join(label.replace(b"%", b"%%") + b":%b" for label in labels)
            parts.append(b'"probability":%b')
            parts += [b'"abstained":%b'] if abstains else []
            parts.append(b'"probabilities":{' + shares + b"}")
            parts += [b'"risk":%b'] if levels else []
        same = {"model": release.schema.model, "version": version, "variant": variant}
        tail = b"," + _json(same)[1:-1] + b',"prediction_id":"%b"' + b',"flags":[]}'
        return cls(labels, tuple(map(_json, levels)), np.array([*levels.values()]), abstains, b",".join(parts), tail)

    def answer(self, answers: "Answers", identity: str, why: Mapping[str, Any] | None = None) -> bytes:
        """JSON of the answer to one row, with what is told of its explanation."""
        (parts,) = self._parts(answers)
        told = self.template % parts + self.tail % identity.encode()
        return told if why is None else _explained(told, why)

    def answers(self, answers: "Answers", identity: str, whys: Sequence[Mapping[str, Any]] | None = None) -> bytes:
        """JSON of the list of answers to a batch; row i has the id `<identity>-<i>`."""
        template = self.template + self.tail % (identity.encode() + b"-%d")
        told = [template % (*parts, row) for row, parts in enumerate(self._parts(answers))]
        if whys is not None:
            told = [_explained(one, why) for one, why in zip(told, whys, strict=True)]
        return b"[%b]" % b",".join(told)

    def _parts(self, answers: "Answers") -> Sequence[tuple[bytes, ...]]:
        """By row: what differs, in the template's order."""
        if answers.probabilities is None:
            if not np.isfinite(answers.values).all():
                raise ValueError("the model answered with no finite number")
            return [(number,) for number in _numbers(answers.values)]
        shares = answers.probabilities
        codes = shares.argmax(axis=1)
        classes = [self.labels[code] for code in codes.tolist()]
        told = [_numbers(share) for share in shares.T]
        probability = shares[:, -1] if len(self.labels) == 2 else shares.max(axis=1)
        parts = [classes, told[-1] if len(self.labels) == 2 else _numbers(probability)]
        if answers.abstained is not None:
            silent = answers.abstained.tolist()
            parts[0] = [b"null" if still else label for still, label in zip(silent, classes, strict=True)]
            parts.append([b"true" if still else b"false" for still in silent])
        parts += told
        if self.levels:
            reached = np.searchsorted(self.starts, probability, side="right") - 1
            parts.append([self.levels[level] for level in reached.tolist()])
        return list(zip(*parts, strict=True))


def _at(at: str | None) -> bytes:
    return b"" if at is None else b',"at":"%b"' % at.encode()


def _field(name: str, column: Column) -> Any:
    typed = _TYPES[column.type]
    return (name, typed | None, None) if column.missing > 0 else (name, typed)


def _decoder(field: str, typed: Any) -> "msgspec.json.Decoder[Any]":
    entity = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ENTITY)]
    fields: list[Any] = [
        (field, typed),
        ("explain", int | bool | None, None),
        ("entity", entity | None, None),
        ("at", str | None, None),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Body", fields, forbid_unknown_fields=True, gc=False))


def _request(rows: Sequence[Row], asked: Any) -> Request:
    at = moment(asked.at) if asked.at is not None else None
    return Request(rows, explained(asked.explain), asked.entity, at)


def _numbers(values: Array) -> list[bytes]:
    return msgspec.json.encode(values.tolist())[1:-1].split(b",")


def _json(data: Any) -> bytes:
    return msgspec.json.encode(data)


def _explained(told: bytes, why: Mapping[str, Any]) -> bytes:
    return told[:-1] + b"," + _json(why)[1:]
