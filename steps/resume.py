"""What a batch run remembers in its folder, so that the same command goes on where it ended."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc
from pydantic import ValidationError

from bentos.prediction_log import new_id
from models.errors import DataError
from models.section import Section


class Order(Section):
    """What is asked for.

    Attributes:
        model: Name of the model.
        input: A CSV or Parquet file, or the URL of a database.
        output: Likewise.
        query: What the input database is asked.
        table: Of the output database.
        keep: Input columns that are handed on; one that identifies a person as a pseudonym.
        key: Input columns that are handed on as they are, whatever they hold.
        separator: Of an input CSV.
    """

    model: str
    input: str
    output: str
    query: str | None = None
    table: str | None = None
    keep: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    separator: str = ","


class Finished(Section):
    """How a run ended.

    Attributes:
        chunks: Ids of its chunks.
        digest: Of what was published.
        rows: Answered.
        bad_rows: Left out.
        logged: Rows that the prediction log holds.
        lost: Rows that it should hold and could not be given.
    """

    chunks: tuple[str, ...]
    digest: str
    rows: int
    bad_rows: int
    logged: int
    lost: int


class Run(Section):
    """A run, as its folder remembers it.

    Attributes:
        order: What was asked for.
        version: The champion when it began; it answers all rows.
        sequence: The ledger's entry that made it champion.
        moment: When it began, in seconds since 1970: what ids are made of.
        nonce: Tells it from others of that moment.
        finished: None while it is under way.
    """

    order: Order
    version: int
    sequence: int
    moment: float
    nonce: str
    finished: Finished | None = None

    def at(self, number: int) -> float:
        """When a chunk counts as answered: a millisecond after the one before, so that ids sort as rows do."""
        return self.moment + number / 1000

    def identity(self, number: int, digest: bytes) -> str:
        """Id of a chunk: by its place and its rows."""
        return new_id(self.at(number), hashlib.sha256(f"{self.nonce} {number} ".encode() + digest).digest())


def remembered(folder: Path) -> Run | None:
    """The run of a folder; None where there is none.

    Raises:
        DataError: What is there cannot be read.
    """
    try:
        return Run.model_validate_json((folder / "run.json").read_bytes(), strict=False)
    except FileNotFoundError:
        return None
    except ValidationError:
        raise DataError(f"{folder.name}/run.json is damaged; delete that folder and begin anew") from None


def remember(folder: Path, run: Run) -> None:
    """Have a folder remember a run, durably."""
    _put(folder / "run.json", run.model_dump_json(indent=1).encode())


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_chunk(path: Path, table: pa.Table, notes: Mapping[str, Any]) -> None:
    """Put answers aside, durably, with notes about them."""
    sink = pa.BufferOutputStream()
    schema = table.schema.with_metadata({"notes": json.dumps(notes)})
    with ipc.new_file(sink, schema) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    _put(path, sink.getvalue())


def read_chunk(path: Path) -> pa.Table:
    """The answers that were put aside."""
    with pa.memory_map(str(path)) as source:
        return ipc.open_file(source).read_all()


def read_notes(path: Path) -> dict[str, Any]:
    """The notes about them."""
    with pa.memory_map(str(path)) as source:
        notes: dict[str, Any] = json.loads(ipc.open_file(source).schema.metadata[b"notes"])
    return notes
