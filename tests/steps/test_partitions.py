"""Partitions beside frames: the same rows, checks, sides and digests, whatever files they come in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.errors import ConfigError, DataError
from steps.ingest import ingest_frame, source_digest
from steps.partitions import Partitions, PartitionsMaterializer, in_turn, sample_rows
from steps.split import split_frame
from steps.split_parts import part
from steps.validate import validate_frame
from steps.validate_parts import check_partitions
from tests.steps.partitioned import ingested, parquet_config, plain, raw_table, write_partitions

ROWS = 1_200


def whole(data: Partitions) -> pd.DataFrame:
    return pd.concat([data.read(one) for one in data.parts], ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_partitions(tmp_path_factory.mktemp("source") / "rows", raw_table(ROWS), 5)


def test_partitions_hold_the_rows_that_memory_holds_and_the_same_digest(folder: Path, tmp_path: Path) -> None:
    parts = ingested(parquet_config(folder), tmp_path / "raw")
    frame = ingest_frame(parquet_config(folder, "memory"))
    assert len(parts.frame.parts) == 5
    pd.testing.assert_frame_equal(whole(parts.frame), frame.frame, check_exact=True)
    assert parts.digest == frame.digest


def test_the_digest_depends_on_the_rows_and_not_on_their_files(folder: Path, tmp_path: Path) -> None:
    table = raw_table(ROWS)
    turned = write_partitions(tmp_path / "turned", table.iloc[::-1], 3)
    other = write_partitions(tmp_path / "other", table.assign(steps=table["steps"].where(table.index != 3, -5)), 5)
    digests = [ingested(parquet_config(f), tmp_path / f"{n}").digest for n, f in enumerate((folder, turned, other))]
    assert digests[0] == digests[1] != digests[2]


def test_a_source_in_partitions_is_known_by_the_bytes_of_its_files(folder: Path, tmp_path: Path) -> None:
    config = parquet_config(folder)
    before = source_digest(config)
    for path in folder.iterdir():
        (tmp_path / f"renamed-{path.name}").write_bytes(path.read_bytes())
    assert source_digest(config) == before
    renamed = parquet_config(tmp_path / "*.parquet")
    named = renamed.model_copy(update={"sources": config.sources})
    assert source_digest(named) == before
    write_partitions(tmp_path, raw_table(10), 1)
    assert source_digest(renamed) != source_digest(parquet_config(tmp_path / "renamed*"))


@pytest.mark.parametrize(
    "split",
    [
        {"by": "content", "test": 0.3},
        {"by": "entity", "column": "colour", "test": 0.3},
        {"by": "time", "column": "when", "test": 0.3},
        {"by": "entity", "column": "colour", "held_out": ["red"]},
    ],
    ids=lambda split: "-".join(map(str, split.values())),
)
def test_checks_and_sides_are_those_of_memory(split: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    checks = {"max_duplicates": 0.01, "severity": dict.fromkeys(("duplicates", "constant", "leakage"), "warning")}
    config = parquet_config(folder, split=split, validation=checks)
    data = ingested(config, tmp_path / "raw").frame
    frame = whole(data)
    report, _ = check_partitions(in_turn, config, data, frame.head(400))
    alone = validate_frame(config, frame, frame.head(400))
    assert {c.key for c in alone.failed()} >= {"duplicates"}
    assert plain(report) == plain(alone)
    train, test = part(in_turn, config, data, str(tmp_path / "train"), str(tmp_path / "test"))
    sides = split_frame(config, frame)
    pd.testing.assert_frame_equal(whole(train), sides.train, check_exact=True)
    pd.testing.assert_frame_equal(whole(test), sides.test, check_exact=True)
    assert train.classes == sides.train["y"].value_counts().sort_index().to_dict()


def test_critical_failures_stop_with_counts_of_all_partitions(folder: Path, tmp_path: Path) -> None:
    columns = parquet_config(folder).model_dump(mode="json")["columns"]
    columns["size"] |= {"range": [0, 50], "missing": 0.05}
    config = parquet_config(folder, columns=columns)
    data = ingested(config, tmp_path / "raw").frame
    with pytest.raises(DataError) as parted:
        check_partitions(in_turn, config, data)
    with pytest.raises(DataError) as alone:
        validate_frame(config, whole(data))
    assert str(parted.value) == str(alone.value)
    assert "missing:size" in str(alone.value)


def test_quarantine_counts_through_all_partitions(folder: Path, tmp_path: Path) -> None:
    columns = parquet_config(folder).model_dump(mode="json")["columns"]
    columns["size"]["type"] = "integer"
    table = raw_table(ROWS).assign(size=lambda t: t["size"].round())
    table.loc[[3, 700, 701], "size"] = 7.5
    source = write_partitions(tmp_path / "source", table, 4)
    config = parquet_config(source, columns=columns, on_bad_row="quarantine")
    parts = ingested(config, tmp_path / "raw")
    alone = ingest_frame(parquet_config(source, "memory", columns=columns, on_bad_row="quarantine"))
    assert parts.quarantined["quarantine_row"].tolist() == [4, 701, 702]
    pd.testing.assert_frame_equal(parts.quarantined, alone.quarantined)
    pd.testing.assert_frame_equal(whole(parts.frame), alone.frame)
    assert parts.notices == alone.notices
    few = config.model_copy(update={"max_bad_rows": 0.001})
    with pytest.raises(DataError, match=r"3 of 1,200 rows .* would be quarantined"):
        ingested(few, tmp_path / "few")
    assert not list((tmp_path / "few").glob("*.parquet")), "nothing is left of a stopped ingest"
    with pytest.raises(DataError, match=r"3 of 1200 values: no whole number \(first in row 4"):
        ingested(config.model_copy(update={"on_bad_row": "stop"}), tmp_path / "stop")


def test_personal_columns_are_pseudonyms_before_a_partition_is_written(tmp_path: Path) -> None:
    source = write_partitions(
        tmp_path / "source",
        raw_table(300).assign(mail=lambda t: [f"p{n % 40}@clinic-4711.example" for n in t.index]),
        2,
    )
    columns = {**parquet_config(source).model_dump(mode="json")["columns"], "mail": {"type": "text", "personal": True}}
    config = parquet_config(source, columns=columns, split={"by": "entity", "column": "mail"})
    parts = ingested(config, tmp_path / "raw")
    assert b"@clinic-4711.example" not in b"".join(path.read_bytes() for path in (tmp_path / "raw").iterdir())
    assert whole(parts.frame)["mail"].str.startswith("p.").all()
    assert parts.frame.columns[-1] == "split_bucket"


def test_a_sample_depends_on_rows_and_seed_alone(folder: Path, tmp_path: Path) -> None:
    config = parquet_config(folder)
    turned = write_partitions(tmp_path / "turned", raw_table(ROWS).sample(frac=1, random_state=1), 3)
    one, other = (
        sample_rows(in_turn, ingested(parquet_config(f), tmp_path / f.name).frame, config, 400, "search")
        for f in (folder, turned)
    )
    pd.testing.assert_frame_equal(one, other)
    assert 330 < len(one) < 470
    reseeded = config.model_copy(update={"seed": 7})
    assert not one.equals(sample_rows(in_turn, ingested(reseeded, tmp_path / "r").frame, reseeded, 400, "search"))


def test_large_row_groups_are_pieces_and_small_ones_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.pieces.PIECE_ROWS", 250)
    (tmp_path / "rows").mkdir()
    raw_table(1_000).to_parquet(tmp_path / "rows" / "one.parquet", index=False, row_group_size=100)
    parts = ingested(parquet_config(tmp_path / "rows"), tmp_path / "raw").frame
    assert [one.rows for one in parts.parts] == [200] * 5
    assert len(ingested(parquet_config(tmp_path / "rows" / "one.parquet"), tmp_path / "file").frame) == 1_000


def test_the_artifact_is_an_index_and_comes_back(folder: Path, tmp_path: Path) -> None:
    from zenml.client import Client

    store = Client().active_stack.artifact_store
    uri = f"{store.path}/partitions-{tmp_path.name}"
    store.makedirs(uri)
    data = ingested(parquet_config(folder), Path(uri)).frame
    kept = PartitionsMaterializer(uri, store)
    kept.save(data)
    loaded = kept.load(Partitions)
    assert loaded == data
    assert kept.compute_content_hash(loaded) == data.digest
    assert kept.extract_metadata(data) == {"rows": ROWS, "columns": 6, "partitions": 5}
    assert "red" not in json.dumps(kept.extract_metadata(data))
    (Path(uri) / data.parts[2].name).write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"partition part-00002.parquet .* cannot be read"):
        whole(loaded)


def _spoil(folder: Path, table: pd.DataFrame) -> None:
    table.to_parquet(folder / "rows-001.parquet", index=False)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: (f / "rows-001.parquet").write_bytes(b"PAR1 and no more"),
            r"rows-001.parquet is no readable Parquet",
        ),
        (
            lambda f: _spoil(f, raw_table(30).drop(columns="steps")),
            r"rows-001.parquet\): declared columns are missing: 'step",
        ),
        (
            lambda f: _spoil(f, raw_table(30).astype({"size": str})),
            r"'size' is a number in .*rows-000.* and a text in .*-001",
        ),
        (
            lambda f: [_spoil(f, raw_table(30).head(0)), *((f / f"rows-00{n}.parquet").unlink() for n in (0, 2))],
            r"no rows",
        ),
        (lambda f: [path.unlink() for path in f.iterdir()], r"no Parquet file in"),
    ],
    ids=["unreadable", "column", "type", "empty", "none"],
)
def test_a_spoiled_partition_is_named(spoil: Any, said: str, tmp_path: Path) -> None:
    source = write_partitions(tmp_path / "rows", raw_table(90), 3)
    spoil(source)
    with pytest.raises(DataError, match=said):
        ingested(parquet_config(source), tmp_path / "raw")
    with pytest.raises(DataError, match=said):
        ingest_frame(parquet_config(source, "memory"))


def test_an_empty_partition_and_one_of_missing_values_fit(tmp_path: Path) -> None:
    table = raw_table(90)
    source = write_partitions(tmp_path / "rows", table, 3)
    _spoil(source, table.head(0))
    table.tail(30).assign(size=None).to_parquet(source / "rows-002.parquet", index=False)
    parts = ingested(parquet_config(source), tmp_path / "raw")
    assert [one.rows for one in parts.frame.parts] == [30, 30]
    assert parts.notices == ("1 Parquet files hold no rows",)
    assert np.isnan(parts.frame.column("size").tail(30)).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample_size": 100}, "leave sample_size out"),
        ({"sources": [{"name": "s", "kind": "csv", "path": "a.csv"}]}, "no source has `kind: parquet`"),
        ({"columns": {"note": {"type": "text"}}}, "exclude 'note' from the features"),
        (
            {"fairness": {"reweigh": ["colour"]}, "columns": {"colour": {"type": "category", "sensitive": True}}},
            "leave fairness.reweigh out",
        ),
        ({"compute": "spark"}, "compute"),
    ],
)
def test_what_partitions_cannot_do_is_refused_with_the_configuration(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parquet_config(Path("rows"), **{"compute": "dask", **changes})


def test_another_source_than_parquet_is_refused_before_it_is_read(folder: Path) -> None:
    made_up = {"name": "made_up", "kind": "synthetic", "generator": "heart_disease", "rows": 10}
    own = {"name": "folder", "kind": "parquet", "path": str(folder)}
    config = parquet_config(folder, sources=[own, made_up])
    with pytest.raises(ConfigError, match="compute: dask reads Parquet, and source 'made_up' is 10 made-up rows"):
        source_digest(config, "made_up")


def test_compute_shapes_the_release_only_where_it_is_dask(folder: Path) -> None:
    memory, dask = parquet_config(folder, "memory"), parquet_config(folder)
    assert dask.shaping() == {**memory.shaping(), "compute": "dask", "search_rows": 1_000}
