"""`gauntlet predict`, `gauntlet outcomes` and the flow `predict`, on a champion that the ledger names."""

from pathlib import Path

import pandas as pd
import pytest

from bentos.release import Release
from tests.bentos.samples import write
from tests.flows.conftest import Invoke
from tests.steps.scoring import MODEL, crowned, patients


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write(tmp_path_factory.mktemp("command") / "release", MODEL, "logistic_regression")


@pytest.fixture
def folder(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with patients, their model's champion known."""
    url = f"sqlite:///{tmp_path / 'gauntlet.db'}"
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    crowned(url, release)
    patients(60).to_csv(tmp_path / "in.csv", index=False)
    return tmp_path


def test_scored_and_later_labelled(folder: Path, invoke: Invoke) -> None:
    ask = ["predict", MODEL, "--input", str(folder / "in.csv"), "--output", str(folder / "out.csv"), "--key", "patient"]
    done = invoke(ask)
    assert done.code == 0, done.printed
    assert done.json is not None
    assert (done.json["rows"], done.json["version"], done.json["bad_rows"], done.json["repeated"]) == (60, 1, 0, False)
    assert done.json["seconds"] > 0 and done.json["rows_per_second"] > 0
    again = invoke(ask)
    assert again.code == 0 and again.json is not None and again.json["repeated"]
    answered = pd.read_csv(folder / "out.csv")
    truth = pd.DataFrame({"prediction_id": answered["prediction_id"], "outcome": answered["prediction"]})
    truth.to_csv(folder / "truth.csv", index=False)
    told = invoke(["outcomes", MODEL, "--input", str(folder / "truth.csv")])
    assert told.code == 0 and told.json is not None, told.printed
    assert (told.json["recorded"], told.json["repeated"]) == (60, 0)


def test_exit_codes_say_whose_fault_it_is(folder: Path, invoke: Invoke) -> None:
    ask = ["predict", MODEL, "--input", str(folder / "in.csv"), "--output"]
    for arguments, code, said in (
        ([*ask, str(folder / "out.txt")], 2, "ends in none of '.csv', '.parquet'"),
        ([*ask, str(folder / "out.csv"), "--on-bad-row", "maybe"], 2, "--on-bad-row is stop or skip"),
        (["predict", "hart_disease", *ask[2:], str(folder / "out.csv")], 2, "did you mean 'heart_disease'?"),
        ([*ask, str(folder / "nowhere" / "out.csv")], 1, "there is no such folder"),
        (["predict", "wine", *ask[2:], str(folder / "out.csv")], 1, "'wine' has no champion"),
        (["outcomes", MODEL, "--input", str(folder / "in.csv")], 1, "'prediction_id'"),
        (["outcomes", MODEL, "--input", "sqlite:///x.db"], 2, "needs --query"),
    ):
        done = invoke(arguments)
        assert (done.code, said in done.printed) == (code, True), done.printed


def test_the_flow_gives_what_the_command_gives(folder: Path) -> None:
    from flows.predict import predict

    order = {"model": MODEL, "input": str(folder / "in.csv"), "output": str(folder / "out.parquet")}
    done = predict.fn(**order, keep=["patient"])
    assert (done["rows"], done["version"]) == (60, 1)
    assert pd.read_parquet(folder / "out.parquet")["patient"].tolist() == patients(60)["patient"].tolist()
