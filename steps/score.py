"""Scoring: rows of a table to the answers that the service would give, their record, and what is wrong with some."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from bentos.frame import pseudonym, to_frame
from bentos.inputs import examine, plain_columns
from bentos.release import Answers, TooLarge
from bentos.served import Served
from bentos.wire import batch_record
from models.config import Column
from models.errors import ConfigError, WorkError
from stacks.home import secret_key
from steps.read import names_text
from steps.table import Chunk

BEYOND: Final = "the row's values lead beyond what the model can compute with"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that the model cannot be asked about.

    Attributes:
        row: Position in its chunk, from 0.
        column: Which cell; "" for the row as a whole.
        reason: What is wrong; never the value.
    """

    row: int
    column: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """The rows of a chunk that the model can be asked about.

    Attributes:
        frame: Typed, as the fitted pipeline takes them.
        columns: The same as data of JSON, by input.
        kept: What is handed on beside the answers.
        flags: By position: names of columns that the model's YAML has something against, and its reason.
        bad: The other rows.
        digest: Of all that the answers depend on.
    """

    frame: pd.DataFrame
    columns: Mapping[str, list[Any]]
    kept: pa.Table
    flags: Mapping[int, list[dict[str, str]]]
    bad: tuple[BadRow, ...]
    digest: bytes

    def without(self, position: int) -> "Rows":
        """The same but for one row, which the model could not compute with."""
        return _chosen(self, {position}, (*self.bad, BadRow(int(self.frame.index[position]), "", BEYOND)))


@dataclass(frozen=True)
class Scored:
    """Rows and their answers.

    Attributes:
        table: What is written out: kept columns, id, answer, version.
        record: For the prediction log; empty where there is no row.
        bad: Rows that were left out.
    """

    table: pa.Table
    record: bytes
    bad: tuple[BadRow, ...]


def typed_chunk(chunk: Chunk, inputs: Mapping[str, Column], hidden: Sequence[str] = ()) -> Rows:
    """Type the rows of a chunk and set those aside that the model cannot be asked about.

    Args:
        chunk: Raw rows.
        inputs: The model's.
        hidden: Kept columns that identify a person: pseudonyms take their place.
    """
    typed = to_frame(chunk.frame, inputs)
    found = [(row, p.column, p.reason) for p in typed.problems for row in p.rows]
    findings = examine(typed.frame, inputs)
    found += [(f.row, f.column, f.reason) for f in findings if f.rejected]
    reasons: dict[tuple[int, str], str] = {}
    for row, column, reason in found:  # a cell that could not be typed is missing as well: the first reason counts
        reasons.setdefault((row, column), reason)
    bad = tuple(BadRow(row, column, reason) for (row, column), reason in sorted(reasons.items()))
    flags: dict[int, list[dict[str, str]]] = {}
    for f in findings:
        if not f.rejected:
            flags.setdefault(f.row, []).append({"column": f.column, "reason": f.reason})
    columns = plain_columns(typed.frame, inputs)
    kept = _pseudonymous(chunk.kept, hidden)
    content = [list(columns.values()), [list(map(str, c.to_pylist())) for c in kept.columns], [*reasons.items()]]
    digest = hashlib.sha256(msgspec.json.encode(content)).digest()
    every = Rows(typed.frame, columns, kept, flags, bad, digest)
    return _chosen(every, {one.row for one in bad}, bad) if bad else every


def score(served: Served, rows: Rows, identity: str) -> Scored:
    """Answer rows as the service answers a batch; the i-th one that is answered has the id `<identity>-<i>`.

    Raises:
        WorkError: The model answered with something that is no answer.
    """
    while True:
        if rows.frame.empty:
            return Scored(_table(served, rows, None, identity), b"", rows.bad)
        try:
            answers = _answers(served, rows)
            break
        except TooLarge as error:
            rows = rows.without(error.row)
    try:
        told = _told(served, rows, answers, identity)
    except ValueError:
        raise WorkError(f"version {served.version} answered with no finite number; retrain or roll back") from None
    record = batch_record(tuple(rows.columns), list(zip(*rows.columns.values(), strict=True)), told)
    return Scored(_table(served, rows, answers, identity), record, rows.bad)


def answer_fields(served: Served) -> list[tuple[str, pa.DataType]]:
    """Names and types of what is written out beside the kept columns."""
    release, labels = served.release, served.release.schema.labels
    fields = [("prediction_id", pa.string()), ("prediction", pa.string() if labels else pa.float64())]
    if labels:
        fields.append(("probability", pa.float64()))
        fields += [("abstained", pa.bool_())] if release.config.serving.abstain_below is not None else []
        fields += [(f"probability_{label}", pa.float64()) for label in labels]
        fields += [("risk", pa.string())] if release.config.serving.risk else []
    return [*fields, ("flags", pa.string()), ("version", pa.int64())]


def require_free(kept: Sequence[str], served: Served) -> None:
    """Stop where a kept column would have the name of an answer's.

    Raises:
        ConfigError: It would.
    """
    if taken := [name for name in kept if name in dict(answer_fields(served))]:
        raise ConfigError(
            f"{names_text(taken)} cannot be kept: the answers have columns of that name; rename it in the input"
        )


def _answers(served: Served, rows: Rows) -> Answers:
    """By the fast path where packaging proved it and no row is unusual, else by the fitted pipeline."""
    quick = served.quick
    prepared = quick.prepare_columns(list(rows.columns.values())) if quick and not rows.flags else None
    if quick is None or prepared is None:
        return served.release.answer(rows.frame)
    return quick.answers(prepared)


def _told(served: Served, rows: Rows, answers: Answers, identity: str) -> bytes:
    """JSON of the answers, as `/predict/batch` gives them."""
    told = served.teller.answers(answers, identity)
    if not rows.flags:
        return told
    every = msgspec.json.decode(told)
    for position, flags in rows.flags.items():
        every[position]["flags"] = flags
    return msgspec.json.encode(every)


def _table(served: Served, rows: Rows, answers: Answers | None, identity: str) -> pa.Table:
    fields, count = answer_fields(served), len(rows.frame)
    cells: dict[str, Any] = {name: [] for name, _ in fields}
    if answers is not None:
        labels, shares = served.release.schema.labels, answers.probabilities
        cells["prediction_id"] = [f"{identity}-{row}" for row in range(count)]
        cells["prediction"] = answers.told.tolist()
        if shares is not None:
            probability = shares[:, -1] if len(labels) == 2 else shares.max(axis=1)
            cells["probability"] = probability
            cells |= {f"probability_{label}": shares[:, place] for place, label in enumerate(labels)}
            if "risk" in cells:
                cells["risk"] = _risks(served, probability)
        if answers.abstained is not None:
            cells["abstained"] = answers.abstained
        cells["flags"] = ["; ".join(flag["column"] for flag in rows.flags.get(row, ())) for row in range(count)]
        cells["version"] = np.full(count, served.version)
    columns = [pa.array(cells[name], type=kind, from_pandas=False) for name, kind in fields]
    kept = rows.kept
    return pa.table([*kept.columns, *columns], names=[*kept.column_names, *(name for name, _ in fields)])


def _risks(served: Served, probability: "np.ndarray[Any, Any]") -> list[str]:
    levels = served.release.config.serving.risk or {}
    names = list(levels)
    reached = np.searchsorted(np.array(list(levels.values())), probability, side="right") - 1
    return [names[level] for level in reached.tolist()]


def _pseudonymous(kept: pa.Table, hidden: Sequence[str]) -> pa.Table:
    for name in hidden:
        texts = to_frame(kept.select([name]).to_pandas(), {name: Column(type="text", personal=True)}).frame[name]
        key = secret_key()
        replaced = [None if pd.isna(text) else pseudonym(text, key) for text in texts]
        kept = kept.set_column(kept.column_names.index(name), name, pa.array(replaced, pa.string()))
    return kept


def _chosen(rows: Rows, out: set[int], bad: tuple[BadRow, ...]) -> Rows:
    """The rows but for those at some positions."""
    stay = [position for position in range(len(rows.frame)) if position not in out]
    places = {position: place for place, position in enumerate(stay)}
    return Rows(
        rows.frame.iloc[stay],
        {name: [cells[position] for position in stay] for name, cells in rows.columns.items()},
        rows.kept.take(pa.array(stay, pa.int64())),
        {places[position]: flags for position, flags in rows.flags.items() if position in places},
        bad,
        rows.digest,
    )
