"""Reading sources: every bad input stops with a clear, bounded text that holds no value of the data."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.config import load_model
from models.errors import LIMIT, ConfigError, DataError
from steps.ingest import ingest_frame, source_digest, source_line
from tests.steps.tables import SECRETS, make_config, make_table, write

PERSON, NAME, CODE = SECRETS


def _refused(path: Path, *said: str, error: type[Exception] = DataError, **changes: Any) -> str:
    with pytest.raises(error) as caught:
        ingest_frame(make_config(path, **changes))
    text = str(caught.value)
    assert len(text) <= LIMIT and "\n" not in text
    for part in said:
        assert part in text, text
    for secret in SECRETS:
        assert secret not in text
    return text


def test_a_csv_becomes_a_typed_frame(tmp_path: Path) -> None:
    table = make_table()
    table.loc[:9, "size"] = np.nan
    ingested = ingest_frame(make_config(write(tmp_path, table)))
    assert list(ingested.frame.columns) == ["size", "steps", "colour", "member", "when", "y"]
    assert ingested.frame["size"].tolist()[10:] == table["size"].tolist()[10:]
    assert ingested.frame["size"].isna().sum() == 10
    assert set(ingested.frame["member"]) == {0.0, 1.0}
    assert ingested.rows == 200 and ingested.source_line.startswith("source 'file': csv file ")
    assert "--source: made_up" in ingested.source_line


@pytest.mark.parametrize("name", ["wine", "heart_disease"])
def test_the_first_source_of_each_shipped_model_is_read(name: str) -> None:
    config = load_model(name).config
    ingested = ingest_frame(config)
    assert set(ingested.frame[config.target.column]) == set(config.target.labels)
    assert ingested.digest == ingest_frame(config).digest


def test_real_heart_disease_rows_are_accepted(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = load_model("heart_disease").config
    ingested = ingest_frame(config, "real")
    assert ingested.rows == 920
    assert ingested.notices == ()
    assert ingested.frame["chol"].isna().sum() == 202, "0 means missing there"
    assert (ingested.frame["num"] == "disease").sum() == 509


def test_csv_and_parquet_give_the_same_digest(tmp_path: Path) -> None:
    table = make_table()
    table.loc[3, "size"] = np.nan
    from_csv = ingest_frame(make_config(write(tmp_path, table)))
    native = table.assign(when=pd.to_datetime(table["when"]), member=table["member"] == "yes")
    native.to_parquet(tmp_path / "data.parquet")
    source = [{"name": "file", "kind": "parquet", "path": str(tmp_path / "data.parquet")}]
    assert ingest_frame(make_config(sources=source)).digest == from_csv.digest


def test_a_url_of_fsspec_is_read_and_its_password_not_printed(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://bucket/data.csv", "w") as file:
        make_table().to_csv(file, index=False)
    assert ingest_frame(make_config("memory://bucket/data.csv")).rows == 200
    line = source_line(make_config("s3://me:hunter2@host/x.csv?token=abc"))
    assert "s3://host/x.csv" in line and "hunter2" not in line and "abc" not in line
    _refused(Path("x"), "cannot be read", sources=[{"name": "f", "kind": "csv", "path": "nosuch://me:pw@x/y.csv"}])


def test_relative_paths_start_at_gauntlet_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, make_table())
    monkeypatch.setenv("GAUNTLET_DATA", str(tmp_path))
    assert ingest_frame(make_config("data.csv")).rows == 200


def test_a_missing_file_names_the_ways_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAUNTLET_DATA", raising=False)
    ways = ("set GAUNTLET_DATA", "the lab's share, file tiny.csv", "--source made_up", "not set")
    _refused(Path("nowhere.csv"), *ways)
    _refused(tmp_path / "nowhere.csv", "there is no file", "correct `path`", "--source made_up")
    _refused(tmp_path, "cannot be read")
    with pytest.raises(DataError, match="there is no"):
        source_digest(make_config("nowhere.csv"))


def _text(table: pd.DataFrame) -> str:
    return table.to_csv(index=False)


BAD_FILES: dict[str, tuple[Callable[[str], bytes], tuple[str, ...]]] = {
    "empty": (lambda _: b"", ("is empty", "give it a header")),
    "blank": (lambda _: b"\n \n", ("is empty",)),
    "header only": (lambda t: t.splitlines()[0].encode(), ("a header and no rows",)),
    "header and line end": (lambda t: t.splitlines(keepends=True)[0].encode(), ("a header and no rows",)),
    "wrong separator": (lambda t: t.replace(",", ";").encode(), ("','", "set separator: ';'")),
    "short rows": (
        lambda t: f"{t}{NAME},1\n{PERSON}\n".encode(),
        ("2 rows do not have the header's 6 fields", "row 202"),
    ),
    "long rows": (lambda t: f"{t}1,2,3,4,5,6,{PERSON}\n".encode(), ("1 rows do not have", "with 7")),
    "open quote": (lambda t: f'{t}1,"{PERSON},red,yes,2024-01-01,no\n'.encode(), ()),
    "twice a name": (lambda t: t.replace("steps", "size").encode(), ("come twice: 'size'",)),
    "binary": (lambda _: bytes(range(256)) * 40, ("no text but binary data",)),
    "zip": (lambda _: b"PK\x03\x04" + bytes(1000), ("a zip or Excel file",)),
    "utf-16": (lambda t: t.encode("utf-16"), ("UTF-16 text", "encoding: utf-16")),
    "latin-1": (lambda t: (t + "1,1,rôt,yes,2024-01-01,no\n").encode("latin-1"), ("line 202", "latin-1")),
    "no header": (lambda t: t.partition("\n")[2].encode(), ("none of the 6 declared columns", "header")),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_stops_with_its_reason(case: str, tmp_path: Path) -> None:
    make, said = BAD_FILES[case]
    path = tmp_path / "data.csv"
    path.write_bytes(make(_text(make_table())))
    _refused(path, *said)


def test_no_value_of_a_file_without_header_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"{PERSON},{NAME},{CODE},x,y,z\n1,2,3,4,5,6\n")
    _refused(path, "is the first line a header?")


def test_bad_parquet_stops(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1" + bytes(100))
    source = [{"name": "file", "kind": "parquet", "path": str(path)}]
    _refused(path, "no readable Parquet file", sources=source)
    make_table().drop(columns="colour").to_parquet(path)
    _refused(path, "'colour'", sources=source)
    make_table().head(0).to_parquet(path)
    _refused(path, "no rows", sources=source)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = write(tmp_path, make_table(), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert ingest_frame(make_config(path)).rows == 200


def test_other_separators_and_encodings_are_read_when_declared(tmp_path: Path) -> None:
    table = make_table().assign(colour="rôt")
    path = write(tmp_path, table, sep="\t", encoding="utf-16")
    source = {"name": "file", "kind": "csv", "path": str(path), "separator": "\t", "encoding": "utf-16"}
    assert set(ingest_frame(make_config(sources=[source])).frame["colour"]) == {"rôt"}
    _refused(path, "unknown encoding", error=ConfigError, sources=[{**source, "encoding": "klingon"}])
    _refused(path, "one character", error=ConfigError, sources=[{**source, "separator": "::"}])


def test_quoted_text_may_hold_separators_quotes_and_line_ends(tmp_path: Path) -> None:
    columns = {"note": {"type": "text"}}
    notes = ['a, "b"\nc', "ü\r\nx", "plain"] * 20
    path = write(tmp_path, pd.DataFrame({"note": notes, "y": ["no", "yes"] * 30}))
    assert ingest_frame(make_config(path, columns=columns)).frame["note"].tolist() == notes


def test_a_declared_column_that_is_missing_stops_with_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path, make_table().rename(columns={"colour": "color"}))
    _refused(path, "'colour'; did you mean 'color'?", "There is: 'size', 'steps', 'color'")


def test_extra_columns_are_dropped_with_a_notice(tmp_path: Path) -> None:
    ingested = ingest_frame(make_config(write(tmp_path, make_table().assign(extra=1, other=2))))
    assert ingested.notices == ("columns that the YAML does not declare are left out: 'extra', 'other'",)
    assert "extra" not in ingested.frame


def test_mixed_types_in_a_column_stop_with_a_count_and_no_value(tmp_path: Path) -> None:
    table = make_table().astype({"size": object, "steps": object})
    table.loc[[5, 9], "size"] = NAME
    table.loc[3, "steps"] = 2.5
    _refused(
        write(tmp_path, table),
        "column 'size': 2 of 200 values: no number (first in row 6",
        "column 'steps': 1 of 200 values: no whole number",
        "missing_values",
    )


def test_markers_of_source_and_column_mean_missing(tmp_path: Path) -> None:
    table = make_table().astype({"size": object})
    table.loc[:4, "size"] = ["?", " NA", "", "-", "n/a "]
    columns = {"size": {"type": "number", "missing_values": ["-"]}}
    assert ingest_frame(make_config(write(tmp_path, table), columns=columns)).frame["size"].isna().sum() == 5


def test_a_missing_target_column_stops(tmp_path: Path) -> None:
    _refused(write(tmp_path, make_table().rename(columns={"y": "Y2"})), "declared columns are missing: 'y'")


def test_rows_without_target_stop(tmp_path: Path) -> None:
    table = make_table()
    table.loc[[1, 2, 3], "y"] = ["?", None, ""]
    _refused(write(tmp_path, table), "target 'y': 3 of 200 rows have no value")


def test_a_label_that_the_yaml_does_not_know_stops(tmp_path: Path) -> None:
    table = make_table()
    table.loc[[1, 2], "y"] = [NAME, "maybe"]
    _refused(write(tmp_path, table), "2 of 200 values are not in target.labels ('no', 'yes')")
    mapped = {"column": "y", "labels": ["no", "yes"], "map": {"no": "no", "yes": "yes"}}
    _refused(write(tmp_path, table), "not in target.map", target=mapped)


@pytest.mark.parametrize(
    ("cells", "keys"),
    [
        (["0", "1"], ["0", "1"]),
        (["0.0", "1.0"], ["0", "1"]),
        (["False", "True"], ["false", "true"]),
        (["a", "b "], ["a", "b"]),
    ],
)
def test_labels_agree_however_they_are_spelled(tmp_path: Path, cells: list[str], keys: list[str]) -> None:
    path = write(tmp_path, make_table(20).assign(y=cells * 10))
    target = {"column": "y", "labels": ["no", "yes"], "map": dict(zip(keys, ["no", "yes"], strict=True))}
    assert ingest_frame(make_config(path, target=target)).frame["y"].tolist() == ["no", "yes"] * 10


def test_a_regression_target_is_a_number_or_a_stop(tmp_path: Path) -> None:
    table = make_table().assign(y=np.arange(200) / 7)
    path = write(tmp_path, table)
    changes = {"task": "regression", "metric": "rmse", "target": {"column": "y"}}
    assert ingest_frame(make_config(path, **changes)).frame["y"].tolist() == table["y"].tolist()
    write(tmp_path, table.astype({"y": object}).assign(y=[NAME, *table["y"][1:]]))
    _refused(path, "column 'y': 1 of 200 values: no number", **changes)


def _personal(path: Path, **changes: Any) -> Any:
    columns = {"size": {"type": "number"}, "mail": {"type": "text", "personal": True}}
    return make_config(path, columns=columns, **changes)


def test_personal_values_leave_as_pseudonyms_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mails = [f"{i % 40}{PERSON}" for i in range(200)]
    config = _personal(write(tmp_path, make_table().assign(mail=mails)))
    ingested = ingest_frame(config)
    hashed = ingested.frame["mail"]
    assert hashed.nunique() == 40 and hashed.str.fullmatch(r"p\.[0-9a-f]{64}").all()
    assert PERSON not in ingested.frame.to_csv()
    before = source_digest(config)
    monkeypatch.setenv("GAUNTLET_SECRET", "another")
    again = ingest_frame(config)
    assert not set(again.frame["mail"]) & set(hashed)
    assert again.digest == ingested.digest, "the data's digest does not depend on the key"
    assert source_digest(config) != before, "a new key is a new cache key"


def test_the_source_digest_follows_content_and_options(tmp_path: Path) -> None:
    path = write(tmp_path, make_table())
    config = make_config(path)
    first = source_digest(config)
    stamp = path.stat()
    write(tmp_path, make_table(seed=1))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert source_digest(config) != first
    write(tmp_path, make_table())
    assert source_digest(config) == first
    assert source_digest(config, "made_up") != first
    with pytest.raises(DataError, match="changed while it was read"):
        ingest_frame(config, None, "an older digest")


def test_an_unknown_source_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source 'reel'"):
        ingest_frame(load_model("heart_disease").config, "reel")


def test_the_data_digest_follows_every_value(tmp_path: Path) -> None:
    table = make_table()
    first = ingest_frame(make_config(write(tmp_path, table))).digest
    table.loc[199, "size"] = np.nextafter(table.loc[199, "size"], 0)
    assert ingest_frame(make_config(write(tmp_path, table))).digest != first
