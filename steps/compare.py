"""Comparing: champion and challenger on the same raw rows, none of which either was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from bentos.frame import canonical_text, spelling, to_frame
from bentos.release import Answers, Release, cut_texts
from models.config import Column, ModelConfig
from models.errors import DataError, GauntletError
from steps.hashes import content_hashes
from steps.metrics import compute_metrics
from steps.paired import Difference, Paired, Side, paired_difference, paired_differences
from steps.split import hashed_columns, in_test

Array = np.ndarray[Any, Any]

_NUMBERS = ("number", "integer")
# By the type that cells have: the types that are read from them as from the raw ones, or not at all.
_KEPT: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "category", "boolean", "datetime", *_NUMBERS),
    "category": ("category", "boolean", "datetime", *_NUMBERS),
    "number": _NUMBERS,
    "integer": _NUMBERS,
    "boolean": ("boolean",),
    "datetime": ("datetime",),
}


@dataclass(frozen=True)
class Sides:
    """What two models said to the same rows.

    Attributes:
        config: The challenger's configuration.
        labels: Classes of both, in the order of the probabilities' columns; empty for regression.
        truth: Shape (n,): labels, or numbers for regression.
        champion: The champion's answers.
        challenger: The challenger's.
    """

    config: ModelConfig
    labels: tuple[str, ...]
    truth: Array
    champion: Answers
    challenger: Answers


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the same rows; without figures where that cannot be, and why.

    Attributes:
        rows: How many rows were compared.
        champion: The champion's figures on them.
        challenger: The challenger's.
        paired: By how much the challenger is better.
        notes: What a reader of the figures has to know.
        sides: What the figures are made of.
    """

    rows: int
    champion: dict[str, float] | None
    challenger: dict[str, float] | None
    paired: Paired | None = None
    notes: tuple[str, ...] = ()
    sides: Sides | None = field(default=None, repr=False)

    def differences(self, known: Mapping[str, Array] | None = None) -> dict[str, Difference]:
        """By how much the challenger is better in each figure, as `steps.paired.paired_differences` has it.

        Args:
            known: The challenger's figures in each resample of the compared rows, where these were drawn before.

        Returns:
            Figure to difference, the model's metric as `paired` has it; nothing where nothing was compared.
        """
        if self.sides is None or self.paired is None or self.champion is None or self.challenger is None:
            return {}
        sides, decides = self.sides, self.paired
        champion = Side(sides.champion, self.champion)
        challenger = Side(sides.challenger, self.challenger, known or {})
        others = paired_differences(sides.config, sides.labels, sides.truth, champion, challenger)
        return {decides.metric: Difference(estimate=decides.estimate, low=decides.low, high=decides.high), **others}


@dataclass(frozen=True)
class _Reading:
    """Rows as the champion reads them.

    Attributes:
        frame: All rows, its own columns typed by its own configuration.
        whole: Shape (n,) of bool: rows of which it can read every value.
        unread: Column and reason to the number of values that it cannot read.
        unsplit: Columns that its split by content hashes and that the rows do not have.
    """

    frame: pd.DataFrame
    whole: Array
    unread: Mapping[tuple[str, str], int]
    unsplit: tuple[str, ...] = ()


@dataclass(frozen=True)
class Meeting:
    """Some test rows, as champion and challenger meet on them.

    Attributes:
        rows: Those that the challenger was not trained on.
        readable: Of them those that the champion can read all.
        left: Of them those that it was not trained on either.
        unread: Column and reason to the number of values that it cannot read.
        unsplit: Columns that its split by content hashes and that the rows do not have.
        truth: Shape (left,): labels or numbers; empty where nobody was asked.
        champion: Its answers to those left; None where nobody was asked.
        challenger: Its answers to the same.
    """

    rows: int
    readable: int
    left: int
    unread: Mapping[tuple[str, str], int]
    unsplit: tuple[str, ...]
    truth: Array
    champion: Answers | None = None
    challenger: Answers | None = None


def compare(config: ModelConfig, challenger: Release, champion: Release, name: str, test: pd.DataFrame) -> Comparison:
    """Put champion and challenger on the same raw rows, none of which either was trained on.

    Each types and prepares the rows by its own configuration. Where the champion cannot read all rows, or reads a
    column that is gone as missing, `promotion.min_rows` are needed. A champion that has another target, cannot read
    the rows or fails on them is no error: the notes say why there are no figures.

    Args:
        config: The challenger's configuration: its metric is the one that counts.
        challenger: The new Release.
        champion: The present one.
        name: What the notes call the champion.
        test: Typed test rows of the challenger, with the target.
    """
    if other := other_target(config, champion.config):
        return no_figures(f"{name} cannot be compared: {other}")
    try:
        return concluded(config, challenger, champion, name, meet(config, challenger, champion, test))
    except DataError as error:
        return no_figures(f"{name} cannot be compared: {error}")


def contest(
    config: ModelConfig, labels: Sequence[str], truth: Array, champion: Answers, challenger: Answers
) -> Comparison:
    """Compare two models' answers to the same rows.

    Args:
        config: The challenger's configuration.
        labels: Classes of both, in the order of the probabilities' columns; empty for regression.
        truth: Shape (n,): labels, or numbers for regression.
        champion: Its answers to the n rows.
        challenger: Its answers to the same.

    Raises:
        DataError: The rows do not allow the model's metric, or its interval.
    """
    return Comparison(
        len(truth),
        compute_metrics(config, labels, truth, champion),
        compute_metrics(config, labels, truth, challenger),
        paired_difference(config, labels, truth, champion, challenger),
        sides=Sides(config, tuple(labels), truth, champion, challenger),
    )


def rescored(config: ModelConfig, champion: Release, previous: Release, name: str, rows: pd.DataFrame) -> Comparison:
    """Put a champion and the one before it on the same labelled rows that were served: neither was trained on them.

    The one before takes the challenger's place: a positive difference is in its favour. What it cannot read all, or
    knows other classes of, gives no figures; the notes say why.

    Args:
        config: The model's configuration: its metric is the one that counts.
        champion: The present Release.
        previous: The one before it.
        name: What the notes call it.
        rows: Rows typed for the champion, with the target.
    """
    if other := other_target(champion.config, previous.config):
        return no_figures(f"{name} cannot be compared: {other}")
    if previous.schema.labels != champion.schema.labels:
        return no_figures(f"{name} knows the classes {', '.join(previous.schema.labels)[:200]}")
    try:
        read = _read_by(previous, champion.config.columns, rows)
        if not read.whole.all():
            return no_figures(
                f"{name} cannot read {int((~read.whole).sum())} of {len(rows)} rows", *_in_words(read.unread)
            )
        truth = rows[champion.config.target.column].to_numpy()
        answers = (_answered_by(release, frame) for release, frame in ((champion, rows), (previous, read.frame)))
        return contest(config, champion.schema.labels, truth, *answers)
    except DataError as error:
        return no_figures(f"{name} cannot be compared: {error}")


def unseen(release: Release, frame: pd.DataFrame) -> Array:
    """Which rows a Release cannot have been trained on.

    By content or entity that is a property of the row; by time, whatever is newer than its newest training row.

    Returns:
        Shape (n,) of bool.

    Raises:
        DataError: The column that decides is absent or has missing values.
    """
    split = release.config.split
    if split.by != "time" or split.column is None:
        return np.asarray(in_test(release.config, frame), dtype=bool)
    if split.column not in frame.columns:
        raise DataError(f"the rows have no column '{split.column}', by which its training rows were chosen")
    newest = release.reference_summary["columns"][split.column]["quantiles"]["1"]
    moments = frame[split.column]
    return np.asarray(moments > (pd.Timestamp(newest) if moments.dtype.kind == "M" else newest), dtype=bool)


def meet(config: ModelConfig, challenger: Release, champion: Release, test: pd.DataFrame, least: int = -1) -> Meeting:
    """Let both answer the test rows that neither was trained on and the champion can read.

    Args:
        config: The challenger's configuration.
        challenger: The new Release.
        champion: The present one.
        test: Typed test rows of the challenger, with the target.
        least: Where some rows cannot be read, or lack a column, so many are needed for anybody to be asked;
            `promotion.min_rows` when below 0.

    Raises:
        DataError: The champion cannot read the rows or fails on them.
    """
    rows = test[unseen(challenger, test)]
    read = _read_by(champion, config.columns, rows)
    new = read.whole.copy()
    fit = read.frame[read.whole]
    new[read.whole] = _unlearnt(champion, fit, read.unsplit) if read.unsplit else unseen(champion, fit)
    readable, left = int(read.whole.sum()), int(new.sum())
    truth = rows[new][config.target.column].to_numpy()
    met = Meeting(len(rows), readable, left, read.unread, read.unsplit, truth)
    altered = readable < len(rows) or bool(_gone(config, champion))
    if not left or (altered and left < (config.promotion.min_rows if least < 0 else least)):
        return met
    return replace(met, champion=_answered_by(champion, read.frame[new]), challenger=challenger.answer(rows[new]))


def concluded(config: ModelConfig, challenger: Release, champion: Release, name: str, met: Meeting) -> Comparison:
    """What a meeting comes to.

    Raises:
        DataError: The rows do not allow the model's metric, or its interval.
    """
    notes, gone = _notes(config, champion, name, met), _gone(config, champion)
    if met.readable == met.rows and not met.left and not met.unsplit:
        return no_figures(f"{name} was trained on all {met.rows} test rows")
    if (met.readable < met.rows or gone) and met.left < config.promotion.min_rows:
        return no_figures(
            *notes, f"{met.left} rows are left to compare on, at least {config.promotion.min_rows} are asked"
        )
    theirs, ours, labels = met.champion, met.challenger, challenger.schema.labels
    if theirs is None or ours is None:
        return no_figures(*notes)
    if (known := champion.schema.labels) != labels:
        notes.append(f"{name} knows the classes {', '.join(known)[:200]}")
        both = tuple(dict.fromkeys((*labels, *known)))
        theirs, ours, labels = _aligned(both, known, theirs), _aligned(both, labels, ours), both
    return replace(contest(config, labels, met.truth, theirs, ours), notes=tuple(notes))


def no_figures(*notes: str) -> Comparison:
    """No comparison, and why."""
    return Comparison(0, None, None, notes=notes)


def other_target(config: ModelConfig, theirs: ModelConfig) -> str:
    """What the champion predicts otherwise than the challenger, in words; empty when nothing."""
    if theirs.task != config.task:
        return f"it does {theirs.task}, the challenger {config.task}"
    if theirs.target.column != config.target.column:
        return f"its target is '{theirs.target.column}', the challenger's is '{config.target.column}'"
    different = [key for key in ("labels", "map") if getattr(theirs.target, key) != getattr(config.target, key)]
    return f"its target.{different[0]} is another one" if different else ""


def _read_by(champion: Release, typed_by: Mapping[str, Column], rows: pd.DataFrame) -> _Reading:
    """Type rows that were typed by other columns again, by the champion's own configuration.

    A column that is gone is read as missing, where the champion allows that and does not split by it alone.

    Raises:
        DataError: A column that it reads is absent, and must not be.
    """
    config = champion.config
    split_by = [config.split.column] if config.split.column else hashed_columns(config)
    absent = [name for name in champion.schema.inputs if name not in rows.columns]
    if needed := [name for name in absent if name == config.split.column or not champion.schema.inputs[name].missing]:
        raise DataError(f"the rows lack {len(needed)} columns that it reads: {', '.join(needed[:5])}")
    unsplit = () if config.split.column else tuple(name for name in split_by if name not in rows.columns)
    rows = rows.assign(**dict.fromkeys(absent, np.nan))
    used = {*champion.schema.inputs, *split_by}
    columns = {name: column for name, column in config.columns.items() if name in used and name in rows.columns}
    typed = to_frame(rows, columns)
    bad = {(problem.column, problem.reason): np.isin(np.arange(len(rows)), problem.rows) for problem in typed.problems}
    for name in (name for name in columns if name in typed_by):
        if (lost := _lost(columns[name], typed_by[name], rows[name])).any():
            bad[name, "what another type or other missing_values made of a value"] = lost
    whole = ~np.any([np.zeros(len(rows), dtype=bool), *bad.values()], axis=0)
    unread = {told: int(cells.sum()) for told, cells in bad.items()}
    return _Reading(rows.assign(**{name: typed.frame[name] for name in columns}), whole, unread, unsplit)


def _unlearnt(champion: Release, rows: pd.DataFrame, unsplit: Sequence[str]) -> Array:
    """Which rows differ from every row that it was trained on, in the columns that are left: shape (n,) of bool.

    Without a column that its split hashes, the split cannot say what it learnt; its Release can, as long as it keeps
    all training rows and not a sample of them.

    Raises:
        DataError: It keeps a sample, or no column is left.
    """
    summary, lacking = champion.reference_summary, ", ".join(unsplit[:5])
    if summary["sampled"] < summary["rows"]:
        raise DataError(
            f"the rows lack {len(unsplit)} columns that its split goes by ({lacking}), and its Release keeps "
            f"{summary['sampled']:,} of its {summary['rows']:,} training rows: which rows it learnt cannot be told"
        )
    left = [name for name in hashed_columns(champion.config) if name not in unsplit]
    if not left:
        raise DataError(f"the rows lack all columns that its split goes by ({lacking})")
    learnt = champion.reference()
    texts = [name for name in left if champion.config.columns[name].type == "text"]
    rows = rows.assign(**{name: cut_texts(learnt, rows[name]) for name in texts})
    return ~np.isin(content_hashes(rows, left), content_hashes(learnt, left))


def _gone(config: ModelConfig, champion: Release) -> list[str]:
    """Columns that the champion reads and the challenger's rows do not have."""
    return [column for column in champion.schema.inputs if column not in config.columns]


def _lost(column: Column, typed_by: Column, cells: "pd.Series[Any]") -> Array:
    """Which typed cells may be another value than `column` would have made of the raw ones: shape (n,) of bool.

    A row that the champion reads otherwise than when it learnt it would pass for one that it never saw.
    """
    missing = cells.isna().to_numpy()
    known, marked = ({canonical_text(value) for value in one.missing_values} for one in (column, typed_by))
    kept = (
        column.type in _KEPT[typed_by.type]
        and column.personal == typed_by.personal
        and (column.format == typed_by.format or typed_by.type != "datetime")
        and (spelling(typed_by) in ("text", spelling(column)) or column.type in _NUMBERS)
        # What no text is left of shows no marker any more.
        and (known <= marked or (typed_by.type not in ("boolean", "datetime") and spelling(typed_by) == "text"))
    )
    lost = missing if marked - known else np.zeros(len(cells), dtype=bool)
    return lost if kept else lost | ~missing


def _in_words(unread: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    return tuple(f"'{column}' holds {reason} in {count}" for (column, reason), count in list(unread.items())[:5])


def _notes(config: ModelConfig, champion: Release, name: str, met: Meeting) -> list[str]:
    rows, readable, left = met.rows, met.readable, met.left
    gone = _gone(config, champion)
    notes = [f"{name} reads {', '.join(gone[:5])} as missing: there is no such column any more"] if gone else []
    if readable < rows:
        notes.append(f"{name} cannot read {rows - readable} of {rows} test rows: {'; '.join(_in_words(met.unread))}")
    if left < readable:
        of = "test rows" if readable == rows else "test rows that it can read"
        learnt = "learnt the values in the columns that are left of" if met.unsplit else "was trained on"
        notes.append(f"{name} {learnt} {readable - left} of {readable} {of}")
    if champion.config.metric != config.metric:
        notes.append(f"{name} was made for {champion.config.metric}; both are judged by {config.metric}")
    return notes


def _answered_by(champion: Release, rows: pd.DataFrame) -> Answers:
    """The champion's answers.

    Raises:
        DataError: It fails on these rows, for whatever reason.
    """
    try:
        return champion.answer(rows)
    except GauntletError as error:
        raise DataError(f"it fails on the {len(rows)} rows: {error}") from error
    except Exception as error:  # a fitted pipeline of any library; its text may hold a value of a row
        raise DataError(f"it fails on the {len(rows)} rows with {type(error).__name__}") from error


def _aligned(labels: Sequence[str], own: Sequence[str], answers: Answers) -> Answers:
    """Answers of a model that knows the classes `own`, with a column of probabilities for each of `labels`."""
    if answers.probabilities is None or tuple(own) == tuple(labels):
        return answers
    wide = np.zeros((len(answers.values), len(labels)))
    wide[:, [labels.index(label) for label in own]] = answers.probabilities
    return replace(answers, probabilities=wide)
