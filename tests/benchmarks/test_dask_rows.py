"""The whole life of a model in partitions, by the real command: the small form of `benchmarks.dask_rows`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.dask_rows import LIMIT, METRIC, agrees, measure

ROWS = 200_000


def test_the_metric_of_all_rows_has_to_lie_in_the_interval_of_a_tenth() -> None:
    tenth = {"metrics": {METRIC: 0.80}, "interval": {"low": 0.79, "high": 0.81}}
    assert agrees({"metrics": {METRIC: 0.805}}, tenth)
    assert not agrees({"metrics": {METRIC: 0.82}}, tenth)


@pytest.mark.prove
def test_rows_in_partitions_train_a_champion_as_good_as_that_of_memory(
    tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    found = measure(tmp_path, ROWS)
    assert found["met"], found
    assert found["dask"]["verdict"] == "promoted"
    assert 0 < found["dask"]["workers"] < LIMIT
    said = f"{METRIC} {found['dask'][METRIC]:.4f}, of a tenth in memory {found['tenth'][METRIC]:.4f}"
    proof("compute: dask on two workers of 2 GiB, rows", f"{ROWS:,}", said)
