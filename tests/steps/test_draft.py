"""`gauntlet new`: a stranger's file becomes a YAML that reads, checks and splits the data without editing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from models.config import Layer, ModelConfig, read_yaml, resolve
from models.errors import LIMIT, DataError
from steps.draft import draft_model
from steps.ingest import ingest_frame
from steps.split import split_frame
from steps.validate import validate_frame
from tests.steps.tables import BASE, SECRETS

PERSON, NAME, _ = SECRETS


def _config(text: str) -> ModelConfig:
    return resolve([Layer("base", read_yaml(BASE)), Layer("new", yaml.safe_load(text))]).config


def _stranger(rows: int = 600) -> pd.DataFrame:
    """What the issue describes: mixed types, gaps written three ways, an id, dates, a boolean, a leak."""
    rng = np.random.default_rng(0)
    spend, visits = np.round(rng.gamma(2, 30, rows), 2), rng.integers(0, 50, rows)
    active, plan = rng.choice(["yes", "no"], rows), rng.choice(["basic", "pro", "team"], rows)
    score = 0.03 * spend - 0.06 * visits + (active == "yes") + 1.2 * (plan == "basic") + rng.logistic(0, 1, rows)
    table = pd.DataFrame(
        {
            "customer_id": np.arange(1000, 1000 + rows),
            "email": [f"u{i}{PERSON}" for i in range(rows)],
            "signup": pd.date_range("2020-01-01", periods=rows, freq="13h").strftime("%d/%m/%Y"),
            "last seen": pd.date_range("2022-01-01", periods=rows, freq="7h").astype(str),
            "plan": plan,
            "spend": spend.astype(object),
            "visits": visits.astype(object),
            "active": active,
            "sex": rng.choice(["M", "F"], rows),
            "flag": rng.integers(0, 2, rows),
            "zip": [f"{z:05d}" for z in rng.integers(0, 99_999, rows)],
            "version": "v1",
            "empty": "",
            "notes": [" ".join(rng.choice(["good", "bad", "so", "very"], 6)) + f" {i}" for i in range(rows)],
            "churn": np.where(score > np.median(score), "yes", "no"),
        }
    )
    table["closed_reason"] = np.where(table["churn"] == "yes", rng.choice(["price", "quality"], rows), "")
    table.loc[rng.random(rows) < 0.1, "spend"] = "?"
    table.loc[rng.random(rows) < 0.05, "visits"] = "NA"
    table.loc[rng.random(rows) < 0.02, "visits"] = "unknown"
    table.loc[rng.random(rows) < 0.1, "plan"] = ""
    return table


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stranger") / "churn.csv"
    _stranger().to_csv(path, index=False)
    return draft_model("churn", path, "churn")


def test_a_strangers_csv_gives_a_sound_yaml(drafted: str) -> None:
    config = _config(drafted)
    assert drafted.startswith("# yaml-language-server: $schema=schema.json\n")
    assert (config.task, config.metric, config.target.labels) == ("classification", "roc_auc", ("no", "yes"))
    assert set(config.feature_names()) == {
        "plan", "spend", "visits", "active", "sex", "flag", "notes", "signup_month", "signup_weekday",
        "last seen_month", "last seen_weekday", "last seen_hour",
    }  # fmt: skip
    types = {name: column.type for name, column in config.columns.items()}
    assert types["spend"] == "number" and types["visits"] == "integer" and types["active"] == "boolean"
    assert types["flag"] == "boolean" and types["zip"] == "text", "leading zeros make a code, not a number"
    assert types["signup"] == types["last seen"] == "datetime" and config.columns["signup"].format == "%d/%m/%Y"
    assert config.columns["email"].personal and config.columns["sex"].sensitive
    assert config.columns["visits"].missing_values == ("unknown",)
    assert not {"version", "empty"} & set(config.columns)
    for name in ("customer_id", "closed_reason", "zip"):
        assert not config.columns[name].feature, name
    assert "tells the target by itself" in drafted and "seems to be an identifier" in drafted
    assert PERSON not in drafted, "no personal value"


def test_the_draft_reads_checks_and_splits_its_data(drafted: str) -> None:
    config = _config(drafted)
    ingested = ingest_frame(config)
    report = validate_frame(config, ingested.frame)
    assert report.score == 100, report.failed()
    parts = split_frame(config, ingested.frame)
    assert len(parts.train) + len(parts.test) == 600


REAL = {
    "obesity/obesity.csv": ("NObeyesdad", "classification", "accuracy"),
    "wine_quality/winequality-red.csv": ("quality", "regression", "rmse"),
    "wine_quality/winequality-white.csv": ("quality", "regression", "rmse"),
    "personality/personality.csv": ("Personality", "classification", "roc_auc"),
    "heart_disease/heart_all_920.csv": ("num", "classification", "f1_macro"),
    "bike_sharing/hour.csv": ("cnt", "regression", "rmse"),
}


@pytest.mark.parametrize("file", REAL)
def test_real_files_give_yamls_that_hold(file: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    target, task, metric = REAL[file]
    text = draft_model("new", shared_data / file, target)
    config = _config(text)
    assert (config.task, config.metric) == (task, metric)
    assert config.sources[0].path == file, "relative to GAUNTLET_DATA"  # type: ignore[union-attr]
    frame = ingest_frame(config).frame
    assert validate_frame(config, frame).score > 90
    split_frame(config, frame)
    assert len(config.feature_names()) >= 7


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_separator_and_encoding_are_found(separator: str, encoding: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"größe": rng.random(80), "ort": ["Köln", "Bonn"] * 40, "y": rng.choice(["a", "b"], 80)})
    table.to_csv(tmp_path / "x.csv", index=False, sep=separator, encoding=encoding)
    config = _config(draft_model("new", tmp_path / "x.csv", "y"))
    assert list(config.columns) == ["größe", "ort"]
    assert set(ingest_frame(config).frame["ort"]) == {"Köln", "Bonn"}


def test_parquet_is_looked_at_too(tmp_path: Path) -> None:
    table = _stranger(200).drop(columns=["spend", "visits", "empty"])
    table.assign(signup=pd.Timestamp("2024-01-05"), flag=table["flag"] == 1).to_parquet(tmp_path / "x.parquet")
    config = _config(draft_model("new", tmp_path / "x.parquet", "churn"))
    assert config.columns["flag"].type == "boolean" and "signup" not in config.columns
    assert ingest_frame(config).rows == 200


def _draft(tmp_path: Path, **columns: Any) -> str:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"a": rng.normal(size=200), "y": rng.choice(["u", "v"], 200)}).assign(**columns)
    table.to_csv(tmp_path / "x.csv", index=False)
    return draft_model("new", tmp_path / "x.csv", "y")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("contact", [f"x{i}@y.org" for i in range(200)]),
        ("tel", [f"+49 221 {i:06d}" for i in range(200)]),
        ("x", [f"{100 + i}-12-{1000 + i}" for i in range(200)]),
        ("LastName", [f"Name{i}" for i in range(200)]),
        ("patient name", [f"A{i} B" for i in range(200)]),
    ],
)
def test_what_identifies_a_person_is_set_personal(name: str, values: list[str], tmp_path: Path) -> None:
    column = _config(_draft(tmp_path, **{name: values})).columns[name]
    assert column.personal and not column.feature and column.categories is None


def test_a_repeated_identifier_keeps_its_rows_on_one_side(tmp_path: Path) -> None:
    text = _draft(tmp_path, shop_id=[1000 + i % 60 for i in range(200)])
    assert _config(text).split.column == "shop_id" and _config(text).split.by == "entity"


def test_free_text_is_a_feature_and_codes_are_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    said = [" ".join(rng.choice(["late", "broken", "good", "thanks", "refund"], 8)) + f" {i}" for i in range(200)]
    config = _config(_draft(tmp_path, complaint=said, label=[f"part {i}" for i in range(200)]))
    assert config.columns["complaint"].type == config.columns["label"].type == "text"
    assert config.feature_names() == ["a", "complaint"]


def test_ordinary_columns_are_not_taken_for_identifiers_or_persons(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    columns = {
        "price": np.round(rng.random(200) * 10, 4),
        "year": rng.integers(1990, 2020, 200),
        "number_of_rooms": rng.integers(1, 9, 200),
        "product_name": rng.choice(["pen", "cup"], 200),
    }
    config = _config(_draft(tmp_path, **columns))
    assert set(config.feature_names()) == {"a", *columns}


def test_names_and_words_that_yaml_would_misread_survive(tmp_path: Path) -> None:
    words = ["yes", "no", "on", "null", "1e3", "a: b", "#x", "'q'", '"d"', "*"] * 20
    columns = {"on": words, "a: b": range(200), "null": [1.5, 2.5] * 100, "x#y": [3, 4] * 100, 'q"q': [5, 6] * 100}
    config = _config(_draft(tmp_path, **columns))
    assert set(config.columns) == {"a", *columns}
    assert set(config.columns["on"].categories or ()) == set(words) - {"null"}


def test_a_rare_class_gets_a_seed_that_puts_it_on_both_sides(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": np.random.default_rng(0).normal(size=300), "y": ["rare"] * 4 + ["x", "y"] * 148})
    seeds = set()
    for shift in range(6):
        table.assign(a=table["a"] + shift).to_csv(tmp_path / "x.csv", index=False)
        config = _config(draft_model("new", tmp_path / "x.csv", "y"))
        seeds.add(config.seed)
        split_frame(config, ingest_frame(config).frame)
    assert len(seeds) > 1, "the default seed does not do for all of them"


def test_parts_of_a_total_are_no_features(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bike rentals: `cnt` is casual plus registered riders, which no single column tells."""
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = _config(draft_model("new", shared_data / "bike_sharing" / "hour.csv", "cnt"))
    hidden = {name for name, column in config.columns.items() if not column.feature}
    assert hidden == {"instant", "casual", "registered"}


def _refused(path: Path, target: str, *said: str) -> None:
    with pytest.raises(DataError) as caught:
        draft_model("new", path, target)
    text = str(caught.value)
    assert len(text) <= LIMIT and PERSON not in text and NAME not in text
    for part in said:
        assert part in text, text


def test_bad_files_and_targets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    _refused(path, "y", "there is no")
    path.write_bytes(b"")
    _refused(path, "y", "is empty")
    path.write_bytes(bytes(range(256)) * 9)
    _refused(path, "y", "binary data")
    path.write_text("alone\n1\n2\n")
    _refused(path, "alone", "no columns found")
    path.write_text(f"a,y\n{NAME},1\n")
    _refused(path, "y", "1 rows are too few")
    path.write_text("a,y\n" + "1,2,3\n" * 5 + "1,2\n" * 50)
    _refused(path, "y", "5 rows do not have the header's 2 fields")
    table = pd.DataFrame({"a": range(100), "colour": ["r", "g"] * 50, "y": "one"})
    table.to_csv(path, index=False)
    _refused(path, "color", "did you mean 'colour'", "there is: 'a', 'colour', 'y'")
    _refused(path, "y", "one value only")
    table.assign(y=["", *["u", "v"] * 49, "u"]).to_csv(path, index=False)
    _refused(path, "y", "1 of 100 rows have no value")
    table.assign(y=[f"{NAME}{i}" for i in range(100)]).to_csv(path, index=False)
    _refused(path, "y", "100 different texts")
    table.assign(a=1, colour="r", y=["u", "v"] * 50).to_csv(path, index=False)
    _refused(path, "y", "besides the target no column has two different values")
