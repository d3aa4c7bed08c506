"""The whole life of a model in partitions, by the real command: the small form of `benchmarks.dask_rows`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.dask_rows import LIMIT, METRIC, agrees, measure

ROWS = 100_000


def test_the_metric_of_all_rows_has_to_lie_in_the_interval_of_a_sample() -> None:
    sample = {"metrics": {METRIC: 0.80}, "interval": {"low": 0.79, "high": 0.81}}
    assert agrees({"metrics": {METRIC: 0.805}}, sample)
    assert not agrees({"metrics": {METRIC: 0.82}}, sample)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_rows_in_partitions_train_a_champion_as_good_as_that_of_memory(
    tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    # So few rows still teach: a tenth of them is a worse model, ten times as many are none.
    found = measure(tmp_path, ROWS, ROWS)
    assert found["met"], found
    assert found["dask"]["verdict"] == "promoted"
    assert 0 < found["dask"]["workers"] < LIMIT
    said = f"{METRIC} {found['dask'][METRIC]:.4f}, in memory {found['sample'][METRIC]:.4f}"
    proof("compute: dask on two workers of 2 GiB, rows", f"{ROWS:,}", said)
