"""Reading by partition: each piece of a Parquet source is typed by itself; what does not fit is counted together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bentos.frame import Problem
from models.config import FileSource, ModelConfig
from steps.partitions import Each, Part, Partitions, remove_parts, row_sums, rows_digest, write_part
from steps.pieces import Piece, look, read_piece
from steps.quarantine import reject, rejected_rows, stop_on
from steps.read import names_text
from steps.rows import typed_chunk


@dataclass(frozen=True)
class IngestedParts:
    """What a partitioned source holds: `steps.ingest.Ingested`, its frame in partitions.

    Attributes:
        frame: The typed rows, columns as `Ingested.frame` has them.
        digest: Of the rows without personal columns, whatever partitions and order they come in.
        source_line: One line that says which source was used and how much it gave.
        quarantined: The rows that did not fit; `quarantine_row` counts through all pieces.
        notices: What a person should know.
    """

    frame: Partitions
    digest: str
    source_line: str
    quarantined: pd.DataFrame
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Typed:
    """A piece that was typed; `part` is None where no row of it is left."""

    part: Part | None
    columns: tuple[str, ...]
    public: tuple[int, ...]
    problems: tuple[Problem, ...]
    bad: pd.DataFrame


def type_pieces(
    each: Each, config: ModelConfig, source: FileSource, line: str, place: str, others: Sequence[str] = ()
) -> IngestedParts:
    """Type every piece of a source and write it as a partition.

    Args:
        each: What calls a function for each piece.
        config: The model.
        source: A Parquet source.
        line: What begins the source line.
        place: The folder to write into.
        others: Names of the other sources, for messages.

    Raises:
        DataError: As `steps.ingest.ingest_frame`.
    """
    needed = [*config.columns, config.target.column]
    seen = look(source, needed, others)
    try:
        found: list[_Typed] = each(_type_piece, list(enumerate(seen.pieces)), config, source, place)
        problems = [
            replace(problem, rows=tuple(piece.start + row for row in problem.rows))
            for piece, typed in zip(seen.pieces, found, strict=True)
            for problem in typed.problems
        ]
        if problems and config.on_bad_row == "stop":
            stop_on(problems, config, seen.rows)
        rejected = reject(config, problems, [typed.bad for typed in found], seen.rows)
    except BaseException:
        remove_parts(place)
        raise
    partitions = Partitions(place.rstrip("/"), found[0].columns, tuple(typed.part for typed in found if typed.part))
    public = [name for name in found[0].columns if name not in config.columns or not config.columns[name].personal]
    digest = rows_digest(public, len(partitions), [typed.public for typed in found])
    told = f"{line}: {len(partitions):,} rows, {len(config.columns)} columns, {len(partitions.parts)} partitions"
    notices = [f"columns that the YAML does not declare are left out: {names_text(seen.extra)}"] if seen.extra else []
    notices += [f"{seen.empty} Parquet files hold no rows"] if seen.empty else []
    notices += [rejected.notice] if rejected.notice else []
    return IngestedParts(partitions, digest, told, rejected.frame, tuple(notices))


def _type_piece(numbered: tuple[int, Piece], config: ModelConfig, source: FileSource, place: str) -> _Typed:
    number, piece = numbered
    raw = read_piece(source, piece, [*config.columns, config.target.column]).frame
    frame, problems = typed_chunk(config, raw)
    bad = rejected_rows(config, raw, frame, problems, piece.start)
    if problems and config.on_bad_row == "stop":
        return _Typed(None, tuple(frame.columns), (), tuple(problems), bad.head(0))
    good = np.ones(len(frame), dtype=bool)
    for problem in problems:
        good[list(problem.rows)] = False
    frame = frame[good].reset_index(drop=True)
    public = [name for name in frame.columns if name not in config.columns or not config.columns[name].personal]
    sums = row_sums(frame, public)
    target = config.target.column if config.task == "classification" else None
    part = write_part(place, number, frame, target) if len(frame) else None
    return _Typed(part, tuple(frame.columns), sums, tuple(problems), bad)
