"""`gauntlet new`, then `gauntlet run`, on a stranger's table: a champion without editing."""

import numpy as np
import pandas as pd
import pytest
import yaml

from models.config import load_model
from tests.flows.conftest import Invoke, Place


def _strangers_table(rows: int = 400) -> pd.DataFrame:
    draw = np.random.default_rng(8)
    income = draw.lognormal(10, 0.4, rows).round(2)
    visits = draw.poisson(4, rows)
    member = draw.choice(["yes", "no"], rows)
    joined = pd.Timestamp("2021-01-01") + pd.to_timedelta(draw.integers(0, 1200, rows), unit="D")
    score = visits * 0.5 + (member == "yes") * 1.5 - income / 20_000 + draw.normal(0, 0.7, rows)
    frame = pd.DataFrame(
        {
            "customer_id": [f"C{i:05d}" for i in range(rows)],
            "email": [f"person{i}@example.org" for i in range(rows)],
            "income": income,
            "visits": visits.astype(object),
            "member": member,
            "joined": joined.strftime("%Y-%m-%d"),
            "region": draw.choice(["north", "south", "east"], rows),
            "cancelled": np.where(score > np.median(score), "stay", "leave"),
        }
    )
    frame["refund_code"] = np.where(frame["cancelled"] == "leave", "R1", "R0")
    for marker, column in (("?", "visits"), ("NA", "region"), ("", "income")):
        frame[column] = frame[column].astype(object)
        frame.loc[draw.random(rows) < 0.05, column] = marker
    return frame


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("GAUNTLET_MODELS", str(place.models))
    return place


def test_a_strangers_table_becomes_a_champion(here: Place, invoke: Invoke) -> None:
    path = here.data / "strangers.csv"
    _strangers_table().to_csv(path, index=False, sep=";")
    made = invoke(["new", "stranger", "--data", str(path), "--target", "cancelled"])
    assert made.code == 0, made.printed
    config = load_model("stranger").config
    assert config.columns["email"].personal
    assert not config.columns["customer_id"].feature
    assert not config.columns["refund_code"].feature, "a leak"
    assert config.columns["joined"].type == "datetime"
    assert config.columns["visits"].missing > 0
    assert "confirm" in (here.models / "stranger.yaml").read_text()
    done = invoke(["run", "stranger", "--set", "tuning.trials=4"])
    assert done.code == 0, done.printed[-3000:]
    assert done.json is not None
    assert done.json["verdict"] == "promoted"
    assert done.json["metrics"]["roc_auc"] > 0.7
    assert "example.org" not in done.printed


def test_a_wrong_target_leaves_no_file(here: Place, invoke: Invoke) -> None:
    path = here.data / "strangers.csv"
    _strangers_table(60).to_csv(path, index=False)
    done = invoke(["new", "nobody", "--data", str(path), "--target", "canceled"])
    assert done.code == 1
    assert done.json is not None and "cancelled" in done.json["error"]
    assert not (here.models / "nobody.yaml").exists()


def test_the_yaml_is_plain_and_names_the_schema(here: Place, invoke: Invoke) -> None:
    path = here.data / "strangers.csv"
    _strangers_table(200).to_csv(path, index=False)
    assert invoke(["new", "plain", "--data", str(path), "--target", "cancelled"]).code == 0
    text = (here.models / "plain.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json")
    assert yaml.safe_load(text)["name"] == "plain"
