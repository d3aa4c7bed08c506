"""Proving: the fast path answers as the fitted pipeline does, on the whole test set, or it never serves."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bentos.inputs import plain_rows
from bentos.quick import EVIDENCE, TOLERANCE, Quick, largest_gap
from bentos.release import Release, add_evidence
from steps.families import one_thread

LOG = logging.getLogger(__name__)
SINGLE_ROWS = 50_000
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class FastPath:
    """What the fast path is worth; kept as evidence.

    Attributes:
        rows: Test rows.
        largest_gap: Largest distance from the fitted pipeline's probabilities, or numbers (in parts of the number
            where that is above 1).
        answered: Share of the test rows that nothing is unusual about, so that the fast path answers them.
        used: Whether it serves: no gap above 1e-6, every label the same, as single rows and in batches.
    """

    rows: int
    largest_gap: float
    answered: float
    used: bool


def fast_path(release: Release, test: pd.DataFrame, quick: Quick | None) -> FastPath:
    """Answer the test rows one by one (of more than 50,000 a seeded sample) and in batches, and compare.

    Args:
        release: The Release.
        test: Typed test rows.
        quick: Its fast path, not proven yet; None where its pipeline has none.
    """
    if quick is None:
        return FastPath(len(test), 0.0, 0.0, False)
    rows = [list(row.values()) for row in plain_rows(test, release.schema.inputs)]
    usual = np.array([place for place, row in enumerate(rows) if quick.prepare([row]) is not None], dtype=np.int64)
    drawn = np.random.default_rng(release.config.seed).permutation(usual)[:SINGLE_ROWS]
    parts = [np.array([place]) for place in np.sort(drawn)]
    parts += [usual[start : start + BATCH_ROWS] for start in range(0, len(usual), BATCH_ROWS)]
    gap, equal = 0.0, True
    with one_thread():
        expected = release.answer(test)
        truth = expected.values if expected.probabilities is None else expected.probabilities
        for places in parts:
            prepared = quick.prepare([rows[place] for place in places])
            if prepared is None:
                equal = False  # alone each of these rows is taken
                continue
            gap = max(gap, largest_gap(quick.estimate(prepared), truth[places]))
            if expected.probabilities is not None:
                equal &= bool((quick.answers(prepared).values == expected.values[places]).all())
    used = bool(len(usual)) and equal and gap <= TOLERANCE
    return FastPath(len(test), gap, len(usual) / max(1, len(test)), used)


def prove_fast_path(release_dir: Path, test: pd.DataFrame) -> dict[str, Any]:
    """Add the evidence `fast_path` to a Release that has none.

    Args:
        release_dir: The Release.
        test: Typed test rows.

    Returns:
        The evidence.

    Raises:
        WorkError: The Release is damaged.
    """
    release = Release.open(release_dir)
    if EVIDENCE in release.evidence:
        return dict(release.evidence[EVIDENCE])
    proof = fast_path(release, test, Quick.unproven(release))
    add_evidence(release_dir, EVIDENCE, asdict(proof))
    LOG.info(
        "fast path of %s %s: %.0f %% of %d test rows, largest gap %.2g",
        release.schema.model,
        "proven" if proof.used else "not used",
        100 * proof.answered,
        proof.rows,
        proof.largest_gap,
    )
    return asdict(proof)
