"""Tables in Parquet partitions, which the tests of `compute: dask` share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.config import FileSource, ModelConfig
from steps.ingest import source_line
from steps.ingest_parts import IngestedParts, type_pieces
from steps.partitions import in_turn
from tests.steps.tables import make_config, make_table


def parquet_config(folder: Path | str, compute: str = "dask", **changes: Any) -> ModelConfig:
    """The model of `make_config` on a folder of Parquet files."""
    source = {"name": "folder", "kind": "parquet", "path": str(folder)}
    return make_config(**{"sources": [source], "compute": compute, "search_rows": 1_000, **changes})


def raw_table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of `make_table`, typed as Parquet keeps them; some values are missing, some rows repeat others."""
    table = make_table(rows, seed)
    table["when"] = pd.to_datetime(table["when"])
    table["member"] = table["member"] == "yes"
    table.loc[table.index % 9 == 0, "size"] = np.nan
    table.loc[table.index % 50 == 7] = table.loc[table.index % 50 == 6].to_numpy()[: (table.index % 50 == 7).sum()]
    return table.infer_objects().astype({"steps": "int64", "size": "float64", "member": "bool"})


def write_partitions(folder: Path, table: pd.DataFrame, count: int) -> Path:
    """Write a table as so many Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(table)), count)):
        table.iloc[rows].to_parquet(folder / f"rows-{number:03d}.parquet", index=False)
    return folder


def ingested(config: ModelConfig, place: Path | str) -> IngestedParts:
    """What ingest makes of a model's first source, in this process."""
    source = config.source()
    assert isinstance(source, FileSource)
    return type_pieces(in_turn, config, source, source_line(config), str(place))


def plain(value: Any) -> Any:
    """JSON-ready data, so that two reports can be compared."""
    return json.loads(value.model_dump_json())
