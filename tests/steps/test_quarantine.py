"""Quarantine: rows that do not fit are set aside with their reasons, and only so many of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.errors import LIMIT, DataError
from steps.caching import parameter
from steps.ingest import Ingested, ingest_frame
from steps.rows import typed_rows
from tests.steps.tables import SECRETS, make_config, make_table, write

PERSON, NAME, _ = SECRETS
QUARANTINE = {"on_bad_row": "quarantine", "max_bad_rows": 0.1}


def _bad_table() -> pd.DataFrame:
    table = make_table().astype({"size": object, "steps": object})
    table.loc[5, "size"] = "x" * 1_000
    table.loc[[5, 9], "steps"] = 2.5
    table.loc[[30, 31, 32], "y"] = ["?", None, "perhaps"]
    return table


def _ingested(path: Path, **changes: Any) -> Ingested:
    return ingest_frame(make_config(path, **{**QUARANTINE, **changes}))


def test_rows_that_do_not_fit_are_set_aside_with_their_reasons(tmp_path: Path) -> None:
    table = _bad_table()
    ingested = _ingested(write(tmp_path, table))
    aside = ingested.quarantined
    assert aside["quarantine_row"].tolist() == [6, 10, 31, 32, 33]
    assert aside["quarantine_column"].tolist() == ["size; steps", "steps", "y", "y", "y"]
    assert aside["quarantine_reason"].tolist() == [
        "no number; no whole number",
        "no whole number",
        "no value",
        "no value",
        "not in target.labels ('no', 'yes')",
    ]
    assert aside["size"][0] == "x" * 199 + "…", "text is cut"
    assert aside["steps"][1] == "2.5" and pd.isna(aside["y"][2]) and aside["y"][4] == "perhaps"
    kept = table.drop(index=[5, 9, 30, 31, 32])
    assert ingested.rows == 195 and ingested.frame["steps"].tolist() == kept["steps"].tolist()
    assert ingested.frame.index.tolist() == list(range(195))
    assert ingested.notices == (
        "quarantined 5 of 200 rows: 'steps' 2 times no whole number, 'y' 2 times no value, 'size' 1 times no number, "
        "'y' 1 times not in target.labels ('no', 'yes')",
    )


def test_the_rows_left_are_the_same_data_as_without_the_bad_ones(tmp_path: Path) -> None:
    table = _bad_table()
    clean = table.drop(index=[5, 9, 30, 31, 32])
    left = _ingested(write(tmp_path, table))
    assert left.digest == ingest_frame(make_config(write(tmp_path, clean))).digest


def test_chunks_give_what_one_table_gives() -> None:
    table = _bad_table()
    config = make_config("x.csv", **QUARANTINE)
    whole = typed_rows(config, [table])
    parts = typed_rows(config, [table[:7], table[7:31], table[31:]])
    pd.testing.assert_frame_equal(parts.frame, whole.frame)
    pd.testing.assert_frame_equal(parts.rejected.frame, whole.rejected.frame)
    assert parts.rejected.notice == whole.rejected.notice


def test_nothing_to_quarantine_is_an_empty_artifact(tmp_path: Path) -> None:
    ingested = _ingested(write(tmp_path, make_table()))
    assert ingested.rows == 200 and len(ingested.quarantined) == 0 and ingested.notices == ()
    assert list(ingested.quarantined.columns)[:3] == ["quarantine_row", "quarantine_column", "quarantine_reason"]


def test_too_many_bad_rows_stop_with_the_reasons_by_count(tmp_path: Path) -> None:
    table = make_table().astype({"steps": object})
    table.loc[:20, "steps"] = NAME
    path = write(tmp_path, table)
    with pytest.raises(DataError) as caught:
        _ingested(path)
    assert "21 of 200 rows (10.5%) would be quarantined, max_bad_rows allows 10.0%: 'steps' 21 times" in str(
        caught.value
    )
    assert NAME not in str(caught.value)
    assert _ingested(path, max_bad_rows=0.105).rows == 179
    write(tmp_path, table.assign(steps=NAME))
    with pytest.raises(DataError, match="no row would be left"):
        _ingested(path, max_bad_rows=1.0)


@pytest.mark.parametrize("column", ["steps", "y"])
def test_the_stop_says_that_quarantine_is_a_way(column: str, tmp_path: Path) -> None:
    table = make_table().astype({"steps": object})
    table.loc[3, column] = NAME
    with pytest.raises(DataError, match="or set `on_bad_row: quarantine`") as caught:
        ingest_frame(make_config(write(tmp_path, table)))
    assert len(str(caught.value)) <= LIMIT and NAME not in str(caught.value)


@pytest.mark.parametrize("value", ["inf", "-Infinity", "", "1e999"])
def test_a_regression_target_that_is_no_finite_number_is_a_bad_row(value: str, tmp_path: Path) -> None:
    table = make_table().assign(y=np.arange(200) / 7).astype({"y": object})
    table.loc[7, "y"] = value
    path = write(tmp_path, table)
    changes = {"task": "regression", "metric": "rmse", "target": {"column": "y"}}
    ingested = _ingested(path, **changes)
    assert ingested.rows == 199 and np.isfinite(ingested.frame["y"].astype(float)).all()
    assert ingested.quarantined["quarantine_row"].tolist() == [8]
    with pytest.raises(DataError, match="'y'"):
        ingest_frame(make_config(path, **changes))


def test_personal_values_are_pseudonyms_in_quarantine_too(tmp_path: Path) -> None:
    table = make_table().assign(mail=[f"{i % 40}{PERSON}" for i in range(200)])
    table.loc[4, "y"] = "perhaps"
    columns = {"size": {"type": "number"}, "mail": {"type": "text", "personal": True}}
    split = {"by": "entity", "column": "mail"}
    ingested = _ingested(write(tmp_path, table), columns=columns, split=split)
    (alias,) = ingested.quarantined["mail"]
    assert alias == ingested.frame["mail"][43], "one person, one pseudonym"
    assert PERSON not in ingested.quarantined.to_csv()
    assert ingested.frame["split_bucket"].notna().all() and len(ingested.frame) == 199


def test_the_step_keeps_them_as_an_artifact(tmp_path: Path) -> None:
    from zenml import pipeline

    from steps.ingest import ingest, source_digest

    config = make_config(write(tmp_path, _bad_table()), **QUARANTINE)

    @pipeline
    def only_ingest(part: str, digest: str) -> None:
        ingest(part, "file", digest)

    part = parameter(config.part("seed", "split", "on_bad_row", "max_bad_rows"))
    run = only_ingest(part, source_digest(config))
    (artifact,) = run.steps["ingest"].outputs["quarantined"]
    assert artifact.load()["quarantine_row"].tolist() == [6, 10, 31, 32, 33]
    assert artifact.run_metadata["rows"] == 5
