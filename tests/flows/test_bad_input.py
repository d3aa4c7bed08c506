"""Bad input through the real command: bounded words, the right exit code, champion, ledger and registry as before."""

from collections.abc import Callable

import pandas as pd
import pytest

from models.errors import LIMIT
from stacks import registry
from stacks.ledger import open_ledger
from tests.flows.conftest import Done, Invoke, Place, toy_frame

GOOD = toy_frame()


def _csv(change: Callable[[pd.DataFrame], pd.DataFrame]) -> bytes:
    return change(GOOD.copy()).to_csv(index=False).encode()


def _set(column: str, rows: slice, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(object)
        frame.iloc[rows, frame.columns.get_loc(column)] = value  # type: ignore[index]
        return frame

    return change


TEXT = GOOD.to_csv(index=False)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "empty"),
    "header only": (TEXT.splitlines()[0].encode() + b"\n", "no rows"),
    "wrong separator": (TEXT.replace(",", ";").encode(), "separator"),
    "duplicate columns": (TEXT.replace("pressure", "age", 1).encode(), "age"),
    "ragged rows": (TEXT.replace("\n", ",1,2\n", 40).replace(",1,2\n", "\n", 1).encode(), "row"),
    "binary junk": (bytes(range(256)) * 40, "text"),
    "missing target": (_csv(lambda f: f.drop(columns="ill")), "ill"),
    "missing column": (_csv(lambda f: f.rename(columns={"pressure": "presure"})), "pressure"),
    "one class only": (_csv(_set("ill", slice(None), "yes")), "class"),
    "all-missing column": (_csv(_set("pressure", slice(None), None)), "pressure"),
    "NaN in target": (_csv(_set("ill", slice(3, 9), None)), "ill"),
    "unknown label": (_csv(_set("ill", slice(3, 9), "perhaps")), "ill"),
    "mixed types": (_csv(_set("age", slice(5, 8), "old-SECRET")), "age"),
    "out of range": (_csv(_set("age", slice(0, 60), 4000)), "age"),
    "10 rows": (_csv(lambda f: f.head(10)), "rows"),
}


@pytest.fixture(scope="module")
def trained(place: Place) -> Place:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAUNTLET_MODELS", str(place.models))
        patch.setenv("GAUNTLET_DATA", str(place.data))
        from flows.run import run_model

        result = run_model("toy", None, [], "", quiet=True)
    assert result["verdict"] == "promoted"
    return place


@pytest.fixture
def here(trained: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("GAUNTLET_MODELS", str(trained.models))
    monkeypatch.setenv("GAUNTLET_DATA", str(trained.data))
    return trained


def _state() -> object:
    ledger = open_ledger()
    return (
        ledger.history("toy"),
        registry.aliases("toy"),
        [(version.number, version.digest) for version in registry.versions("toy")],
    )


def _is_clear(done: Done, code: int) -> None:
    assert done.code == code, done.printed[-2000:]
    assert done.json is not None
    assert done.json["exit_code"] == code
    assert len(done.json["error"]) <= LIMIT
    assert "Traceback" not in done.printed


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_told_in_words_and_changes_nothing(case: str, here: Place, invoke: Invoke) -> None:
    content, word = BAD_FILES[case]
    (here.data / "bad.csv").write_bytes(content)
    before = _state()
    done = invoke(["run", "toy", "--set", "sources=[{name: bad, kind: csv, path: bad.csv}]"])
    _is_clear(done, 1)
    assert done.json is not None
    assert word in done.json["error"]
    assert "SECRET" not in done.printed
    assert _state() == before


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["run", "toi"], 2, "did you mean 'toy'"),
        (["run", "toy", "--set", "tunning.trials=2"], 2, "did you mean 'tuning'"),
        (["run", "toy", "--set", "tuning.trials=two"], 2, "tuning.trials"),
        (["run", "toy", "--source", "real"], 2, "no source 'real'"),
        (["run", "toy", "--set", "metric=rocauc"], 2, "roc_auc"),
        (["run", "toy", "--set", "gates.speed.min=1"], 2, "nothing measures 'speed'"),
        (["run", "toy", "--set", "sources=[{name: gone, kind: csv, path: gone.csv}]"], 1, "GAUNTLET_DATA"),
        (["show", "toi"], 2, "did you mean"),
        (["history", "toy", "--at", "yesterday"], 2, "is no time"),
        (["rollback", "toy", "--to", "99"], 1, "99"),
        (["new", "Bad Name", "--data", "x.csv", "--target", "y"], 2, "no model name"),
        (["new", "toy", "--data", "x.csv", "--target", "y"], 2, "exists"),
    ],
)
def test_wrong_usage_is_told_in_words_and_changes_nothing(
    arguments: list[str], code: int, word: str, here: Place, invoke: Invoke
) -> None:
    before = _state()
    done = invoke(arguments)
    _is_clear(done, code)
    assert done.json is not None
    assert word in done.json["error"]
    assert _state() == before


def test_a_byte_order_mark_is_read_over(here: Place, invoke: Invoke) -> None:
    (here.data / "bad.csv").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    done = invoke(["run", "toy", "--set", "sources=[{name: bad, kind: csv, path: bad.csv}]"])
    assert done.json is not None
    assert done.json["verdict"] == "kept"


def test_a_category_never_seen_and_a_leak_are_warnings(here: Place, invoke: Invoke) -> None:
    frame = _set("ward", slice(0, 3), "d")(GOOD.copy())
    frame["leak"] = (frame["ill"] == "yes").astype(int)
    frame.to_csv(here.data / "bad.csv", index=False)
    settings = ["sources=[{name: bad, kind: csv, path: bad.csv}]", "columns.leak={type: integer}"]
    done = invoke(["run", "toy", *(part for text in settings for part in ("--set", text))])
    assert done.code == 0, done.printed[-2000:]
    assert "leak" in done.printed
    assert "ward" in done.printed


def test_a_real_process_prints_no_traceback(here: Place) -> None:
    (here.data / "bad.csv").write_bytes(b"")
    done = here.gauntlet("run", "toy", "--set", "sources=[{name: bad, kind: csv, path: bad.csv}]")
    _is_clear(done, 1)
