"""Dataset drift: every column of a window beside the training reference, judged by its effect and against chance."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from bentos.release import cut_texts
from models.config import Column, ModelConfig
from models.errors import bounded
from models.monitoring import Distance, Monitoring
from steps.drift import Tally, tally
from steps.significance import Departure, departure, holm, resamples_for
from steps.text_drift import Entities, text_departure

SAMPLE = 20_000
NONE: Mapping[str, Any] = {}
NAMED = 5
_DIGITS = 6
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
State = Literal["measured", "empty", "vanished", "unread"]
Figures = Mapping[str, Mapping[str, Any]]
_Array = np.ndarray[Any, Any]


class Effect(BaseModel):
    """A measured effect; see `steps.significance.Departure`.

    Attributes:
        effect: How far the window is from the reference.
        chance: What 19 of 20 windows of that size without drift stay below.
        p_value: Share of windows without drift that show such an effect.
        drifted: Whether the effect reaches the threshold, and chance does not explain it beside all other columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    effect: float
    chance: float
    p_value: float
    drifted: bool


class ColumnDrift(BaseModel):
    """One column of a window beside the reference.

    Attributes:
        column: Its name.
        method: What `values` measures: a distance, or `text` (see `steps.text_drift`).
        state: `vanished`: the window has no such column; `unread`: too few of its rows are of versions that read it;
            `empty`: it or the reference has no values, or too few texts, to measure.
        values: Drift of the values that are there.
        missing: Drift of the share that is missing (Jensen-Shannon); None where neither side misses any.
        reference_missing: Share of the training rows without a value.
        window_missing: Share of the window's rows without a value.
        new_categories: How many categories the window has and no training row had.
        new_share: Share of the window's values that are of these.
        named: The most frequent of them, five at most.
        reference_quantiles: 1, 25, 50, 75 and 99 % of the training rows' numbers (seconds since 1970 of dates).
        window_quantiles: The same of all the window's.
        drifted: Whether values or missing values have drifted, or the column vanished.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    method: Distance | Literal["text"]
    state: State
    values: Effect | None = None
    missing: Effect | None = None
    reference_missing: float
    window_missing: float
    new_categories: int = 0
    new_share: float = 0.0
    named: tuple[str, ...] = ()
    reference_quantiles: tuple[float, ...] = ()
    window_quantiles: tuple[float, ...] = ()
    drifted: bool


class DatasetDrift(BaseModel):
    """A window beside the reference.

    Attributes:
        judged: Whether the window was large enough.
        reason: Why it was not judged; else "".
        rows: Rows of the window.
        sampled: Rows of it that distances were measured on.
        reference_rows: Rows of the reference sample.
        threshold: Effect from which a column may drift.
        columns: One each; none where nothing was judged.
        drifted_share: Share of the columns that drifted, weighted by importance.
        drifted: Whether that reaches the share of the configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judged: bool
    reason: str = ""
    rows: int
    sampled: int = 0
    reference_rows: int
    threshold: float
    columns: tuple[ColumnDrift, ...] = ()
    drifted_share: float = 0.0
    drifted: bool = False

    @property
    def drifted_columns(self) -> tuple[str, ...]:
        """Names of the columns that drifted."""
        return tuple(found.column for found in self.columns if found.drifted)


def dataset_drift(
    config: ModelConfig,
    reference: pd.DataFrame,
    window: pd.DataFrame,
    *,
    importance: Mapping[str, float] | None = None,
    unread: Mapping[str, _Array] = NONE,
    exact: Figures = NONE,
) -> DatasetDrift:
    """Compare the inputs of a window with the reference, column by column.

    Args:
        config: The model; says which columns it reads, and how they are compared.
        reference: Typed sample of the training rows, as `Release.reference` gives it.
        window: Typed rows of the window.
        importance: Weight of each column for `drifted_share`, 0 where it has none; equal when left out.
        unread: See `steps.window.Window.unread`.
        exact: Figures of all training rows by column, as `Release.reference_summary` has them.
    """
    inputs = {name: config.columns[name] for name in config.input_names()}
    return compare(
        config.monitoring,
        inputs,
        reference,
        window,
        config.seed,
        importance,
        _entities(config, reference),
        unread,
        exact,
    )


def compare(
    monitoring: Monitoring,
    inputs: Mapping[str, Column],
    reference: pd.DataFrame,
    window: pd.DataFrame,
    seed: int,
    importance: Mapping[str, float] | None = None,
    entities: Entities | None = None,
    unread: Mapping[str, _Array] = NONE,
    exact: Figures = NONE,
) -> DatasetDrift:
    """Compare a window with a reference.

    A column drifts when its effect reaches the threshold and exceeds what windows of that size drawn from the
    reference show, by Holm's procedure over all columns: of windows without drift at most 5 % name any column.
    Distances are measured on at most 20,000 seeded rows; missing values, new categories and quantiles on all of the
    window, and on all training rows where their figures are given.

    Args:
        monitoring: Methods and thresholds.
        inputs: The columns to compare; personal ones are left out.
        reference: Typed rows.
        window: Typed rows; a column that is not there has vanished.
        seed: Seed of samples and resamples.
        importance: Weight of each column; equal when left out.
        entities: Whose the reference's rows are, for texts.
        unread: By column, shape (n,) of bool: rows of the window that say nothing of it.
        exact: By column, figures of all the rows that the reference is a sample of.
    """
    watched = {name: column for name, column in inputs.items() if not column.personal and name in reference.columns}
    rows: dict[str, Any] = {
        "rows": len(window),
        "reference_rows": len(reference),
        "threshold": monitoring.threshold,
    }
    if (reason := _unjudged(monitoring, watched, reference, window)) is not None:
        return DatasetDrift(judged=False, reason=reason, **rows)
    sample = bounded_sample(window, seed)
    sides = _Sides(reference, window, sample, entities, resamples_for(2 * len(watched)), seed, unread, exact)
    columns = _judged([_measured(monitoring, n, c, sides) for n, c in watched.items()], monitoring.threshold)
    share = _weighted_share(columns, importance)
    return DatasetDrift(
        judged=True,
        sampled=len(sample),
        columns=columns,
        drifted_share=round(share, _DIGITS),
        drifted=any(found.drifted for found in columns) and share >= monitoring.drifted_share - 1e-12,
        **rows,
    )


def bounded_sample(window: pd.DataFrame, seed: int) -> pd.DataFrame:
    """At most 20,000 seeded rows, in their order."""
    if len(window) <= SAMPLE:
        return window
    return window.iloc[np.sort(np.random.default_rng(seed).choice(len(window), SAMPLE, replace=False))]


def _entities(config: ModelConfig, reference: pd.DataFrame) -> Entities | None:
    """Of a split by entity the reference holds the training side's only; `held_out` ones are not what is served."""
    split = config.split
    if split.by != "entity" or split.held_out or split.column not in reference.columns:
        return None
    return Entities(pd.factorize(reference[split.column], use_na_sentinel=False)[0], split.test)


def _unjudged(
    monitoring: Monitoring, watched: Mapping[str, Column], reference: pd.DataFrame, window: pd.DataFrame
) -> str | None:
    if not watched or reference.empty:
        return "the reference has none of the model's columns, or no rows: train the model again"
    if len(window) < monitoring.min_rows:
        return f"too small: {len(window):,} rows, {monitoring.min_rows:,} are needed; a longer window has more"
    return None


@dataclass(frozen=True)
class _Sides:
    """What columns are compared on: all rows of the window, and those that distances are measured on."""

    reference: pd.DataFrame
    window: pd.DataFrame
    sample: pd.DataFrame
    entities: Entities | None
    resamples: int
    seed: int
    unread: Mapping[str, _Array]
    exact: Figures

    def of(self, name: str) -> "tuple[pd.Series[Any], pd.Series[Any]]":
        """A column of the window, and of the sample, in the rows that say something of it."""
        if name not in self.unread:
            return self.window[name], self.sample[name]
        read = self.window[name][~self.unread[name]]
        return read, read[read.index.isin(self.sample.index)]


def _measured(
    monitoring: Monitoring, name: str, column: Column, sides: _Sides
) -> tuple[ColumnDrift, Departure | None, Departure | None]:
    """What is to be said of a column, and the effects that are still to be judged beside all others."""
    is_text = column.type == "text"
    method = method_of(monitoring, name, column)
    old, named = sides.reference[name], "text" if is_text else method
    before = _Known.of(old, is_text).exactly(sides.exact.get(name, {}), is_text)
    if name not in sides.window.columns:
        return _column(name, named, "vanished", before, None), None, None
    rng = np.random.default_rng([sides.seed, zlib.crc32(name.encode())])
    whole, sample = sides.of(name)
    now = _Known.of(whole, is_text)
    if name in sides.unread and now.rows < monitoring.min_rows:
        return _column(name, named, "unread", before, now), None, None
    counts = Tally(*(np.array([side.rows - side.missing, side.missing]) for side in (before, now)))
    lacking = (
        departure("jensenshannon", counts, sides.resamples, rng) if counts.reference[1] + counts.window[1] else None
    )
    if is_text:
        values = text_departure(old, cut_texts(sides.reference, sample), rng, sides.entities)
    else:
        counts = tally(method, old, sample)
        some = bool(counts.reference.sum() and counts.window.sum())
        values = departure(method, counts, sides.resamples, rng) if some else None
    found = _column(name, named, "measured" if values else "empty", before, now)
    return found, values, lacking


@dataclass(frozen=True)
class _Known:
    """What a column holds, found in one pass: to look for missing ones is what takes longest of a million texts.

    Attributes:
        rows: How many.
        missing: Those without a value.
        values: The values that are there; of categories each once.
        counts: How often each category is there; None of other columns.
        quantiles: Of the numbers, where they are not to be taken of the values.
    """

    rows: int
    missing: int
    values: "pd.Series[Any]"
    counts: _Array | None = None
    quantiles: tuple[float, ...] | None = None

    @classmethod
    def of(cls, column: "pd.Series[Any]", is_text: bool) -> "_Known":
        """Look at a column."""
        if is_text or column.dtype != np.dtype(object):
            values = column.dropna()
            return cls(len(column), len(column) - len(values), values)
        codes, categories = pd.factorize(column.to_numpy())
        counts = np.bincount(codes + 1, minlength=len(categories) + 1)
        return cls(len(column), int(counts[0]), pd.Series(categories, dtype=object), counts[1:])

    def exactly(self, figures: Mapping[str, Any], is_text: bool) -> "_Known":
        """What is known by the figures of all rows, where these are a sample of them."""
        if not figures:
            return self
        whole = replace(self, rows=int(figures["count"]), missing=int(figures["missing"]))
        if "categories" in figures:
            names = dict.fromkeys([*figures["categories"], *self.values])
            counts = np.array([figures["categories"].get(name, 1) for name in names])
            return replace(whole, values=pd.Series(list(names), dtype=object), counts=counts)
        if is_text or "quantiles" not in figures:
            return whole
        return replace(whole, quantiles=_told_quantiles(figures["quantiles"]))

    @property
    def share_missing(self) -> float:
        """The share of rows without a value."""
        return round(self.missing / self.rows, _DIGITS) if self.rows else 0.0


def _column(
    name: str, method: Distance | Literal["text"], state: State, old: _Known, new: _Known | None
) -> ColumnDrift:
    return ColumnDrift(
        column=name,
        method=method,
        state=state,
        reference_missing=old.share_missing,
        window_missing=1.0 if new is None else new.share_missing,
        drifted=new is None,
        **({} if new is None or method == "text" else _described(old, new)),
    )


def method_of(monitoring: Monitoring, name: str, column: Column) -> Distance:
    """The distance that a column is measured by: categories have no order, `ks` and `wasserstein` become another."""
    method = monitoring.methods.get(name, monitoring.drift)
    return "jensenshannon" if column.type == "category" and method in ("ks", "wasserstein") else method


def _described(old: _Known, new: _Known) -> dict[str, Any]:
    """Exact figures of all rows: new categories, quantiles."""
    if old.counts is not None and new.counts is not None:
        counts = pd.Series(new.counts, index=pd.Index(new.values))
        unseen = counts[~new.values.isin(old.values).to_numpy()].sort_values(ascending=False, kind="stable")
        return {
            "new_categories": len(unseen),
            "new_share": round(float(unseen.sum() / max(counts.sum(), 1)), _DIGITS),
            "named": tuple(bounded(str(name), 60) for name in unseen.index[:NAMED]),
        }
    before = _quantiles(old.values) if old.quantiles is None else old.quantiles
    return {"reference_quantiles": before, "window_quantiles": _quantiles(new.values)}


def _told_quantiles(told: Mapping[str, Any]) -> tuple[float, ...]:
    """Those of a Release's summary, which has dates as ISO 8601."""
    known = [told[f"{q:g}"] for q in _QUANTILES if f"{q:g}" in told]
    numbers = [pd.Timestamp(each).timestamp() if isinstance(each, str) else float(each) for each in known]
    return tuple(float(f"{number:.6g}") for number in numbers)


def _quantiles(known: "pd.Series[Any]") -> tuple[float, ...]:
    if known.dtype.kind == "M":
        known = known.astype("datetime64[s]").astype("int64")
    if known.dtype.kind not in "fiu":
        return ()
    numbers = known.to_numpy(np.float64)
    finite = numbers[np.isfinite(numbers)]
    return tuple(float(f"{q:.6g}") for q in np.quantile(finite, _QUANTILES)) if len(finite) else ()


def _judged(
    measured: Sequence[tuple[ColumnDrift, Departure | None, Departure | None]], threshold: float
) -> tuple[ColumnDrift, ...]:
    every = [found for _, values, missing in measured for found in (values, missing) if found is not None]
    significant = iter(holm([found.p_value for found in every]))

    def effect(found: Departure | None) -> Effect | None:
        if found is None:
            return None
        beyond = next(significant)
        return Effect(
            effect=round(found.effect, 12),
            chance=round(found.chance, _DIGITS),
            p_value=round(found.p_value, _DIGITS),
            drifted=beyond and found.effect >= threshold,
        )

    judged = []
    for column, *found in measured:
        values, missing = map(effect, found)
        drifted = column.drifted or any(e is not None and e.drifted for e in (values, missing))
        judged.append(column.model_copy(update={"values": values, "missing": missing, "drifted": drifted}))
    return tuple(judged)


def _weighted_share(columns: Sequence[ColumnDrift], importance: Mapping[str, float] | None) -> float:
    columns = [c for c in columns if c.state != "unread"]
    weights = [max(importance.get(c.column, 0.0), 0.0) if importance else 1.0 for c in columns]
    if not sum(weights) > 0:
        weights = [1.0] * len(columns)
    return sum(w for w, c in zip(weights, columns, strict=True) if c.drifted) / (sum(weights) or 1.0)
