"""Batch scoring: all rows of a table answered by the champion, logged as the service logs, and written out once.

A run remembers how far it is in a folder beside its output: `run.json`, written first, says which version answers and
the moment that all ids are made of; each chunk of rows that was answered and logged is a file there. So the same
command, after whatever ended it, goes on with the same version and the same ids: the log has each id once, and what is
written out is the same, byte for byte. A chunk's id follows from its rows; where other rows come than before, the run
stops and says so.
"""

import csv
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from bentos.fetch import fetch
from bentos.prediction_log import DirectLog, LogUnavailable, Record, is_sampled
from bentos.served import Served
from models.errors import DataError, WorkError, shown
from models.section import Section
from stacks.handover import reign_of
from stacks.home import home_dir
from stacks.ledger import open_ledger
from steps.publish import Output, output_of
from steps.resume import Finished, Order, Run, read_chunk, read_notes, remember, remembered, write_chunk
from steps.score import BadRow, Rows, Scored, require_free, score, typed_chunk
from steps.table import Table

ROWS: Final = 10_000
TEXT_ROWS: Final = 1_000
MOST_NAMED: Final = 10_000
OnBadRow = Literal["stop", "skip"]


class Predicted(Section):
    """What became of a run.

    Attributes:
        model: Name of the model.
        version: The version that answered.
        output: Where the answers are.
        rows: Answered.
        bad_rows: Left out; `report` names them.
        logged: Rows that the prediction log holds.
        lost: Rows that it should hold and could not be given (`serving.log.mode: best_effort`).
        resumed: Chunks that an earlier attempt had answered.
        repeated: Whether nothing was left to do.
        report: File that names the bad rows, 10,000 at most: row (from 1, the header not counted), column, reason.
        seconds: From the first look to the last.
        rows_per_second: Rows answered by this attempt or an earlier one, by the seconds of this one.
    """

    model: str
    version: int
    output: str
    rows: int
    bad_rows: int
    logged: int
    lost: int
    resumed: int
    repeated: bool
    report: str | None
    seconds: float
    rows_per_second: int


class InputChanged(DataError):
    """The input holds other rows than when the run began."""


def predict(
    order: Order, on_bad_row: OnBadRow = "stop", force: bool = False, tell: Callable[[int], None] = lambda _: None
) -> Predicted:
    """Answer all rows of a table with the champion, and write the answers out.

    Args:
        order: What is asked for.
        on_bad_row: Whether a row that the model cannot be asked about stops the run or is left out and reported.
        force: Whether a run begins anew where another one's output, or rows that are others by now, are in the way.
        tell: Told how many rows were read since.

    Raises:
        DataError: The input cannot be used, or holds bad rows, or another run's output is in the way.
        WorkError: There is no champion, or it cannot be loaded; the log or the output cannot be written.
        ConfigError: The order makes no sense.
    """
    begun = time.monotonic()
    table, output = Table.of(order.input, order.query, order.separator), output_of(order)
    with _alone(output.folder):
        work = _Work.begin(order, table, output, force)
        try:
            done, resumed, repeated = work.finish(on_bad_row, tell)
        except InputChanged:
            if not force:
                raise
            work = _Work.anew(order, table, output)
            done, resumed, repeated = work.finish(on_bad_row, tell)
    seconds = time.monotonic() - begun
    told = done.model_dump(include={"rows", "bad_rows", "logged", "lost"})
    return Predicted(
        model=order.model,
        version=work.run.version,
        output=shown(order.output),
        **told,
        resumed=resumed,
        repeated=repeated,
        report=str(work.report) if done.bad_rows else None,
        seconds=round(seconds, 2),
        rows_per_second=round(done.rows / seconds),
    )


@dataclass(frozen=True)
class _Work:
    """One run, and what it needs.

    Attributes:
        run: What its folder remembers.
        table: What is read.
        output: What is written.
    """

    run: Run
    table: Table
    output: Output

    @classmethod
    def begin(cls, order: Order, table: Table, output: Output, force: bool) -> "_Work":
        """Go on with the run that the output's folder remembers, or begin one.

        A run with other settings that has put no answers aside, such as one whose input lacked a column, is forgotten.

        Raises:
            DataError: Something else is in the place of the output.
        """
        run = remembered(output.folder)
        if run and run.order == order and not (run.finished and force):
            return cls(run, table, output)
        if not force and run and (run.finished or any((output.folder / "chunks").glob("*.arrow"))):
            raise DataError(
                f"output {shown(order.output)} belongs to a run with other settings (model {run.order.model}, input "
                f"{shown(run.order.input)}); choose another output, or begin anew with --force"
            )
        if not force and output.exists():
            raise DataError(f"output {shown(order.output)} exists already; choose another, or replace it with --force")
        return cls.anew(order, table, output)

    @classmethod
    def anew(cls, order: Order, table: Table, output: Output) -> "_Work":
        """Begin a run with today's champion.

        Raises:
            WorkError: There is none.
        """
        champion = reign_of(open_ledger().history(order.model)).champion
        if champion is None:
            raise WorkError(f"'{order.model}' has no champion that could answer; train one: gauntlet run {order.model}")
        run = Run(
            order=order,
            version=champion.version,
            sequence=champion.sequence,
            moment=time.time(),
            nonce=secrets.token_hex(16),
        )
        shutil.rmtree(output.folder / "chunks", ignore_errors=True)
        (output.folder / "bad_rows.csv").unlink(missing_ok=True)
        remember(output.folder, run)
        return cls(run, table, output)

    def finish(self, on_bad_row: OnBadRow, tell: Callable[[int], None]) -> tuple[Finished, int, bool]:
        """Do what is left; how it ended, how many chunks were there before, and whether nothing was left.

        Raises:
            InputChanged: The input holds other rows than before.
            DataError: There are bad rows, or what was written has been changed.
        """
        require_free(self.kept, self.served)
        if (done := self.run.finished) and self._is_whole(done, tell):
            return done, len(done.chunks), True
        self.chunks.mkdir(exist_ok=True)
        before = len(list(self.chunks.glob("*.arrow")))
        ids = self._answer(on_bad_row, tell)
        done = self._publish(ids)
        remember(self.output.folder, self.run.model_copy(update={"finished": done}))
        shutil.rmtree(self.chunks)
        return done, before, False

    @property
    def chunks(self) -> Path:
        """Folder of the chunks that were answered and logged."""
        return self.output.folder / "chunks"

    @property
    def report(self) -> Path:
        """File that names the bad rows."""
        return self.output.folder / "bad_rows.csv"

    @property
    def kept(self) -> tuple[str, ...]:
        """Input columns that are handed on: keys first."""
        return tuple(dict.fromkeys((*self.run.order.key, *self.run.order.keep)))

    @cached_property
    def served(self) -> Served:
        """The version that the run began with, checked and warm."""
        model, version = self.run.order.model, self.run.version
        crown = reign_of(open_ledger().history(model)).at(self.run.sequence)
        if crown is None or open_ledger().state(model, version) == "retired":
            raise WorkError(
                f"the run began with version {version} of '{model}', which is gone; begin anew with --force"
            )
        return Served.load(fetch(crown, home_dir() / "serving"), version)

    @cached_property
    def size(self) -> int:
        """Rows of a chunk; fewer of long texts, so that a record stays small."""
        return TEXT_ROWS if any(c.type == "text" for c in self.served.release.schema.inputs.values()) else ROWS

    def _rows(self, tell: Callable[[int], None]) -> Iterator[tuple[str, Rows]]:
        """Every chunk's id and rows."""
        inputs, columns = self.served.release.schema.inputs, self.served.release.config.columns
        personal = {name for name, column in columns.items() if column.personal}
        hidden = [name for name in self.run.order.keep if name in personal and name not in self.run.order.key]
        for number, chunk in enumerate(self.table.chunks(list(inputs), self.kept, self.size)):
            rows = typed_chunk(chunk, inputs, hidden)
            yield self.run.identity(number, rows.digest), rows
            tell(len(chunk.frame))

    def _is_whole(self, done: Finished, tell: Callable[[int], None]) -> bool:
        """Whether the input is what it was and the answers are in their place; False where they are gone."""
        if tuple(identity for identity, _ in self._rows(tell)) != done.chunks:
            raise self._changed()
        if self.output.holds(done.digest):
            return True
        if self.output.exists():
            raise DataError(
                f"output {shown(self.run.order.output)} was changed after it was written; move it away, or replace it "
                "with --force"
            )
        return False

    def _answer(self, on_bad_row: OnBadRow, tell: Callable[[int], None]) -> list[str]:
        """Answer, log and put aside every chunk that is not there yet; the ids of all."""
        ids: list[str] = []
        log = DirectLog()
        pending: Future[None] | None = None
        try:
            with ThreadPoolExecutor(1, "gauntlet-batch") as writer:
                for number, (identity, rows) in enumerate(self._rows(tell)):
                    ids.append(identity)
                    path = self._path(number, identity)
                    if path.exists():
                        continue
                    if any(self.chunks.glob(f"{number:06d}-*.arrow")):
                        raise self._changed()
                    scored = score(self.served, rows, identity)
                    if scored.bad and on_bad_row == "stop":
                        raise self._stopped(number, scored.bad)
                    if pending:
                        pending.result()
                    pending = writer.submit(self._keep, log, number, identity, scored)
                if pending:
                    pending.result()
        finally:
            log.close()
        if len(list(self.chunks.glob("*.arrow"))) != len(ids):
            raise self._changed()
        return ids

    def _keep(self, log: DirectLog, number: int, identity: str, scored: Scored) -> None:
        """Have a chunk in the log, durably, and then put its answers aside."""
        settings, rows = self.served.release.config.serving.log, scored.table.num_rows
        logged = lost = 0
        if rows and is_sampled(identity, settings.sample):
            model, version = self.run.order.model, self.run.version
            try:
                log.write(
                    Record(identity, self.run.at(number), model, version, "champion", None, None, rows, scored.record)
                )
                logged = rows
            except LogUnavailable as error:
                if settings.mode == "required":
                    raise WorkError(f"{error}; the same command goes on from here") from None
                lost = rows
        first = number * self.size + 1
        named = [(first + bad.row, bad.column, bad.reason) for bad in scored.bad[:MOST_NAMED]]
        notes = {"logged": logged, "lost": lost, "bad": len({bad.row for bad in scored.bad}), "named": named}
        write_chunk(self._path(number, identity), scored.table, notes)

    def _publish(self, ids: Sequence[str]) -> Finished:
        """Put all answers in their place, and the bad rows in their report."""
        paths = [self._path(number, identity) for number, identity in enumerate(ids)]
        notes = [read_notes(path) for path in paths]
        total = {name: sum(note[name] for note in notes) for name in ("logged", "lost", "bad")}
        rows = sum(read_chunk(path).num_rows for path in paths)
        if not rows:
            first = next(iter(notes[0]["named"]))
            raise DataError(f"{self.table.where}: none of its rows can be answered; {_place(*first)}")
        if total["bad"]:
            _write_report(self.report, notes)
        schema = read_chunk(paths[0]).schema.remove_metadata()
        digest = self.output.publish((read_chunk(path).replace_schema_metadata() for path in paths), schema)
        return Finished(
            chunks=tuple(ids),
            digest=digest,
            rows=rows,
            bad_rows=total["bad"],
            logged=total["logged"],
            lost=total["lost"],
        )

    def _path(self, number: int, identity: str) -> Path:
        return self.chunks / f"{number:06d}-{identity}.arrow"

    def _changed(self) -> InputChanged:
        return InputChanged(
            f"{self.table.where} holds other rows than when the run for output {shown(self.run.order.output)} began; "
            "give the same rows (a query in the same order), choose another output, or begin anew with --force"
        )

    def _stopped(self, number: int, bad: Sequence[BadRow]) -> DataError:
        first, rows = bad[0], len({one.row for one in bad})
        place = _place(number * self.size + first.row + 1, first.column, first.reason)
        return DataError(
            f"{self.table.where}: {place}; of {self.size:,} rows there {rows:,} cannot be answered. Correct them, or "
            "leave such rows out with --on-bad-row skip; nothing was written out"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second run away from an output, for as long as this process lives.

    Raises:
        WorkError: One is at it, or nothing can be written there.
    """
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise WorkError(f"another run is writing to {folder.name.removesuffix('.run')}; wait for its end") from None
    except OSError as error:
        raise WorkError(
            f"{folder.name} cannot be written: {error.strerror}; the same command goes on from here"
        ) from None


def _write_report(path: Path, notes: Sequence[Mapping[str, Any]]) -> None:
    named = [line for note in notes for line in note["named"]][:MOST_NAMED]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("row", "column", "reason"), *named])


def _place(row: int, column: str, reason: str) -> str:
    return f"row {row:,}{f', column {column!r:.60}' if column else ''}: {reason}"
