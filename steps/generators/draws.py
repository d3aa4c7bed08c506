"""Drawing columns of made-up rows from tables of probabilities."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def choose(rng: np.random.Generator, table: Array, given: Array) -> Array:
    """One column index per row, with the probabilities of the table's row `given`.

    Args:
        rng: Asked for one number a row.
        table: Shape (k, m), rows that sum to 1.
        given: Shape (n,), from 0 to k - 1.
    """
    ladder = np.cumsum(table, axis=1)[:, :-1]
    u = rng.random(len(given))
    return (u[:, None] >= ladder[given]).sum(axis=1)


def truncated(
    rng: np.random.Generator, mean: Array, spread: Array | float, low: Array | float, high: Array | float
) -> Array:
    """One normal number per row, drawn again where it falls outside its ends, and clipped after 100 draws.

    Args:
        rng: How often it is asked depends on what it says.
        mean: Shape (n,); the others broadcast to it.
        spread: Standard deviation before truncation.
        low: Smallest value.
        high: Largest value.
    """
    drawn = rng.normal(mean, spread)
    for _ in range(100):
        outside = (drawn < low) | (drawn > high)
        if not outside.any():
            break
        drawn = np.where(outside, rng.normal(mean, spread), drawn)
    return np.clip(drawn, low, high)
