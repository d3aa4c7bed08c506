"""Splitting by partition: each row decides for itself; only a split by time looks at one column of all rows first."""

from typing import Any

import pandas as pd

from models.config import ModelConfig
from steps.cluster import cluster
from steps.partitions import Each, Part, Partitions, remove_parts, write_part
from steps.split import Side, check_held_out, check_sides, in_test, newest_trained


def split_partitions(config: ModelConfig, data: Partitions, train: str, test: str) -> tuple[Partitions, Partitions]:
    """Part typed rows on Dask workers; as `steps.split.split_frame`.

    Args:
        config: The model.
        data: The rows.
        train: Folder of the training rows, any fsspec address.
        test: Folder of the test rows.

    Raises:
        DataError: As `split_frame`.
        WorkError: Workers do not start or are lost.
    """
    with cluster("split") as dask:
        return part(dask.each, config, data, train, test)


def part(each: Each, config: ModelConfig, data: Partitions, train: str, test: str) -> tuple[Partitions, Partitions]:
    """Part typed rows partition by partition; see `split_partitions`."""
    since = cutoff(each, config, data)
    if config.split.held_out:
        found = each(_values, data.parts, data, str(config.split.column))
        check_held_out(config, list(dict.fromkeys(value for values in found for value in values)))
    try:
        written = each(_part, list(enumerate(data.parts)), data, config, since, train, test)
        sides = tuple(
            Partitions(place.rstrip("/"), data.columns, tuple(pair[side] for pair in written if pair[side]))
            for side, place in enumerate((train, test))
        )
        check_sides(config, *(Side(len(side), side.classes) for side in sides))
    except BaseException:
        remove_parts(train)
        remove_parts(test)
        raise
    return sides[0], sides[1]


def cutoff(each: Each, config: ModelConfig, data: Partitions) -> Any:
    """Where the split is by time, the newest training row's; else None."""
    if config.split.by != "time":
        return None
    times = each(_times, data.parts, data, config)
    return newest_trained(config, pd.concat(times).to_numpy())


def _times(part: Part, data: Partitions, config: ModelConfig) -> "pd.Series[Any]":
    frame = data.read(part, [str(config.split.column)])
    in_test(config, frame)  # refuses rows without a time
    return frame[str(config.split.column)]


def _values(part: Part, data: Partitions, name: str) -> list[Any]:
    return data.read(part, [name])[name].unique().tolist()


def _part(
    numbered: tuple[int, Part], data: Partitions, config: ModelConfig, since: Any, train: str, test: str
) -> tuple[Part | None, Part | None]:
    number, part = numbered
    frame = data.read(part)
    chosen = in_test(config, frame, since)
    target = config.target.column if config.task == "classification" else None
    sides = ((train, frame[~chosen]), (test, frame[chosen]))
    written = [
        write_part(place, number, rows.reset_index(drop=True), target) if len(rows) else None for place, rows in sides
    ]
    return written[0], written[1]
