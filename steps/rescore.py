"""Rescoring: whether the champion before would have done better on the labelled rows that its successor failed on."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from bentos.inputs import typed_rows
from bentos.release import Release
from models.config import ModelConfig
from models.errors import GauntletError, bounded
from stacks import registry
from stacks.findings import Finding
from stacks.ledger import Entry
from stacks.lifecycle import Standing
from steps.compare import Comparison, rescored
from steps.verdict import TIE
from steps.window import Labelled, Window, read_labels, read_window


@dataclass(frozen=True)
class Rescored:
    """What a rollback would bring.

    Attributes:
        floor: The blocking floor that the champion is below, with figures, in words.
        to: The version that does better; None where there is none.
        said: How much better, or why there is none.
        figures: The metric of both versions, the lower end of the difference, and the rows.
    """

    floor: str
    to: int | None
    said: str
    figures: dict[str, float]


def below_floor(config: ModelConfig, finding: Finding | None) -> str:
    """Whether a champion's performance is below its blocking floor and not by chance, in words; empty when not.

    The near end of the figure's interval decides: `<metric>_high` under a `min`, `<metric>_low` over a `max`.

    Args:
        config: The model's configuration; `gates` holds the floor of its metric.
        finding: What the check `performance` saw.
    """
    floor = config.gates.get(config.metric)
    if finding is None or finding.check != "performance" or floor is None or not floor.blocking:
        return ""
    labels, end = finding.figures.get("labels", 0), "high" if floor.min is not None else "low"
    near = finding.figures.get(f"{config.metric}_{end}")
    bound = floor.min if floor.min is not None else floor.max
    if near is None or bound is None or finding.state == "unjudged" or labels < config.monitoring.min_labels:
        return ""
    if not (near < bound - TIE if floor.min is not None else near > bound + TIE):
        return ""
    side = ("at most", "at least") if floor.min is not None else ("at least", "at most")
    return (
        f"{config.metric} is {side[0]} {near:.4g} on {labels:.0f} labelled rows to {finding.until:%Y-%m-%d}, "
        f"{side[1]} {bound:.4g} is asked"
    )


def rescore(
    config: ModelConfig,
    finding: Finding,
    standing: Standing,
    entries: tuple[Entry, ...],
    url: str,
    now: datetime,
    floor: str,
) -> Rescored:
    """Answer the labelled rows of a window again by the champion and by the one before it.

    Args:
        config: The model's configuration: its metric counts.
        finding: The performance of the champion that is below its floor.
        standing: Of the model.
        entries: The model's ledger, oldest first.
        url: The database of the prediction log.
        now: Outcomes of later moments are not used.
        floor: What `below_floor` says.
    """
    before, champion = standing.previous, finding.version
    if before is None:
        return Rescored(floor, None, "there is no champion before it", {})
    left = {entry.payload.get("from") for entry in entries if entry.action == "rollback"}
    if before in left:
        return Rescored(floor, None, f"v{before}, the champion before it, was rolled back itself", {})
    try:
        present, previous = (Release.open(registry.release_dir(config.name, v)) for v in (champion, before))
        compared = _compare(config, present, previous, champion, before, finding, url, now)
    except GauntletError as error:
        return Rescored(floor, None, bounded(f"v{before} could not be scored on the same rows: {error}", 400), {})
    return _told(config, compared, champion, before, floor)


def _compare(
    config: ModelConfig,
    present: Release,
    previous: Release,
    champion: int,
    before: int,
    finding: Finding,
    url: str,
    now: datetime,
) -> Comparison:
    schema, least = present.schema, config.monitoring.min_rows
    window = read_window(url, schema, finding.until, finding.until - finding.since, least)
    labelled = read_labels(url, schema, window, now)
    rows = _labelled_rows(present, window, labelled, champion)
    if len(rows) < config.monitoring.min_labels:
        few = f"only {len(rows)} rows that v{champion} answered have an outcome now"
        return Comparison(0, None, None, notes=(few,))
    return rescored(config, present, previous, f"v{before}", rows)


def _labelled_rows(release: Release, window: Window, labelled: Labelled, version: int) -> pd.DataFrame:
    """The typed rows that a version answered and whose outcome is known, with it; vanished columns as missing."""
    inputs, target = release.schema.inputs, release.config.target.column
    own = np.isin(labelled.rows, window.of_version(version))
    rows: Any = labelled.rows[own]
    frame = window.inputs.iloc[rows].reset_index(drop=True)
    empty = typed_rows([[None] * len(inputs)] * len(frame), inputs).frame
    vanished = {name: empty[name] for name in inputs if name not in frame.columns}
    return frame.assign(**vanished)[list(inputs)].assign(**{target: labelled.truth[own]})


def _told(config: ModelConfig, compared: Comparison, champion: int, before: int, floor: str) -> Rescored:
    paired = compared.paired
    if paired is None or compared.champion is None or compared.challenger is None:
        return Rescored(floor, None, bounded("; ".join(compared.notes), 400), {})
    old, new = compared.challenger[config.metric], compared.champion[config.metric]
    figures = {f"v{champion}": new, f"v{before}": old, "difference_low": paired.low, "rows": float(compared.rows)}
    said = f"on the same {compared.rows} rows v{before} has {config.metric} {old:.4g}, v{champion} {new:.4g}"
    if paired.low > TIE:
        return Rescored(floor, before, f"{said}; it is better by at least {paired.low:.4g}", figures)
    return Rescored(floor, None, f"{said}: not surely better (at least {paired.low:+.4g})", figures)
