"""What every generator's rows can have wrong with them, by how much and from which day on."""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from models.errors import ConfigError, guess
from steps.generators.draws import Array

Effect = Callable[[pd.DataFrame, Array, np.random.Generator], pd.DataFrame]
"""Changes clean rows: takes the frame, a strength per row (0: leave it alone) and randomness of its own."""

AT = "at"
START = pd.Timestamp("2026-01-01")
EFFECTS = ("drift", "bias", "missing", "outliers")
_NOTHING: Mapping[str, float] = {}
SHARED = {"days": 0.0} | {f"{name}{end}": 0.0 for name in EFFECTS for end in ("", "_from")}


@dataclass(frozen=True)
class Generator:
    """How rows of one kind are made, and what the shared knobs do to them.

    Attributes:
        draw: Makes clean rows from their number, a seed and the knobs `own`, all given.
        effects: What `drift`, `bias`, `missing` and `outliers` do; see `shift`, `relabel`, `empty`, `spike`.
        own: Knobs of this generator alone and their defaults; `draw` reads them.
    """

    draw: Callable[[int, int, Mapping[str, float]], pd.DataFrame]
    effects: Mapping[str, Effect]
    own: Mapping[str, float] = field(default_factory=dict)

    def make(self, rows: int, seed: int, knobs: Mapping[str, float], where: str = "generator") -> pd.DataFrame:
        """Draw clean rows, then plant what the knobs ask for.

        Shared knobs, all 0 by default:
            `days`: rows are spread evenly over so many days from 2026-01-01 on and carry their time as `at`.
            `drift`: columns move by so many standard deviations, growing from `drift_from` to the last day.
            `bias`: share of one group's positive labels that are turned into the negative one.
            `missing`: share of values taken away. `outliers`: share of numbers replaced by wild ones.
            `<effect>_from`: day, counted from 0, at which the effect begins.

        Clean rows, and each effect, draw from streams of their own: a knob changes nothing besides its effect.

        Args:
            rows: Number of rows.
            seed: Seed of every stream.
            knobs: Those that differ from their default.
            where: What an error names.

        Raises:
            ConfigError: A knob is unknown or out of bounds.
        """
        given = self._checked(knobs, where)
        frame = self.draw(rows, seed, {name: given[name] for name in self.own})
        days = np.arange(rows) * given["days"] / rows
        for name in EFFECTS:
            if given[name]:
                stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
                frame = self.effects[name](frame, _strength(name, given, days), stream)
        if given["days"]:
            frame = frame.assign(**{AT: (START + pd.to_timedelta(days, unit="D")).round("s")})
        return frame

    def _checked(self, knobs: Mapping[str, float], where: str) -> dict[str, float]:
        known = {**self.own, **SHARED}
        for name, value in knobs.items():
            if name not in known:
                raise ConfigError(f"{where}: unknown knob '{name}'{guess(name, list(known))}")
            if not math.isfinite(value):
                raise ConfigError(f"{where}: knob '{name}' must be a finite number")
        given = {**known, **knobs}
        for name in ("bias", "missing", "outliers"):
            if not 0 <= given[name] <= 1:
                raise ConfigError(f"{where}: knob '{name}' is a share from 0 to 1 (found {given[name]:g})")
        if given["days"] < 0:
            raise ConfigError(f"{where}: knob 'days' must not be negative (found {given['days']:g})")
        for name in (f"{effect}_from" for effect in EFFECTS):
            if given[name] and not 0 <= given[name] < given["days"]:
                raise ConfigError(
                    f"{where}: knob '{name}' is day {given[name]:g}, and the rows cover {given['days']:g} days; "
                    "set the knob 'days' above it"
                )
        return given


def shift(*columns: str, unmeasured: Mapping[str, float] = _NOTHING) -> Effect:
    """Move numbers up by a strength in standard deviations; whole numbers stay whole.

    Args:
        *columns: Numbers that move.
        unmeasured: Column to the value that stands for a missing one there and stays.
    """

    def effect(frame: pd.DataFrame, strength: Array, rng: np.random.Generator) -> pd.DataFrame:  # noqa: ARG001
        moved = {}
        for name in columns:
            values, real = _measured(frame[name], unmeasured.get(name))
            new = values + strength * np.std(values[real])
            moved[name] = _like(frame[name], np.where(real & (strength != 0), new, values))
        return frame.assign(**moved)

    return effect


def relabel(target: str, turned: Mapping[Any, Any], group: tuple[str, Any]) -> Effect:
    """Turn labels of one group's rows into others, each with its row's strength as probability.

    Args:
        target: Column of the labels.
        turned: Label to what becomes of it; others stay.
        group: A column and the value that makes the group.
    """

    def effect(frame: pd.DataFrame, strength: Array, rng: np.random.Generator) -> pd.DataFrame:
        chosen = (rng.random(len(frame)) < strength) & (frame[group[0]] == group[1]).to_numpy()
        return frame.assign(**{target: frame[target].mask(chosen, frame[target].replace(turned))})

    return effect


def empty(*columns: str) -> Effect:
    """Take values away, each with its row's strength as probability."""

    def effect(frame: pd.DataFrame, strength: Array, rng: np.random.Generator) -> pd.DataFrame:
        holed = {name: frame[name].mask(rng.random(len(frame)) < strength) for name in columns}
        return frame.assign(**holed)

    return effect


def spike(*columns: str, unmeasured: Mapping[str, float] = _NOTHING) -> Effect:
    """Replace numbers by some 4 to 8 interquartile ranges above the upper quartile, with the strength as probability.

    Args:
        *columns: Numbers that may go wild.
        unmeasured: Column to the value that stands for a missing one there and stays.
    """

    def effect(frame: pd.DataFrame, strength: Array, rng: np.random.Generator) -> pd.DataFrame:
        wild = {}
        for name in columns:
            values, real = _measured(frame[name], unmeasured.get(name))
            low, high = np.quantile(values[real], [0.25, 0.75])
            chosen = real & (rng.random(len(frame)) < strength)
            far = high + (high - low) * rng.uniform(4, 8, len(frame))
            wild[name] = _like(frame[name], np.where(chosen, far, values))
        return frame.assign(**wild)

    return effect


def _strength(name: str, knobs: Mapping[str, float], days: Array) -> Array:
    """Strength of an effect for each row: none before its day; `drift` then grows, the others are there at once."""
    begun = days >= knobs[f"{name}_from"]
    if name == "drift" and knobs["days"]:
        begun = np.clip((days - knobs["drift_from"]) / (knobs["days"] - knobs["drift_from"]), 0, 1)
    return knobs[name] * begun


def _measured(series: "pd.Series[Any]", unmeasured: float | None) -> tuple[Array, Array]:
    values = series.to_numpy(np.float64)
    return values, ~np.isnan(values) & (values != unmeasured)


def _like(series: "pd.Series[Any]", values: Array) -> Array:
    """Values in the precision of a column: its type, and whole where all of its own are whole."""
    known = series.dropna().to_numpy(np.float64)
    rounded = np.rint(values) if (known == np.rint(known)).all() else np.round(values, 6)
    return rounded.astype(series.to_numpy().dtype)
