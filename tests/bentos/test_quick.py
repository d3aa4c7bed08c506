from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.explain import Explainer
from bentos.frame import to_frame
from bentos.inputs import examine, plain_rows, typed_rows
from bentos.quick import EVIDENCE, Quick, largest_gap
from bentos.release import Release, add_evidence
from models.config import Layer, resolve
from models.errors import WorkError
from steps.families import build_pipeline, one_thread
from steps.prove import fast_path, prove_fast_path
from tests.bentos.samples import HOUSES, PARAMETERS, config_of, frame_of, write

CASES = [
    ("heart_disease", "logistic_regression"),
    ("heart_disease", "random_forest"),
    ("heart_disease", "xgboost"),
    ("wine", "logistic_regression"),
    ("wine", "random_forest"),
    ("wine", "xgboost"),
    ("homes", "linear_regression"),
    ("homes", "random_forest"),
    ("homes", "xgboost"),
]
# Every kind of column and of derived column but dates; bins and categories that are rare or not declared.
HOMES = HOUSES | {
    "name": "homes",
    "columns": {name: c for name, c in HOUSES["columns"].items() if name != "sold"}
    | {
        "place": {"type": "category", "missing": 0.5},
        "listed": {"type": "category", "categories": [True, False], "missing": 0.5},
        "floors": {"type": "integer", "missing": 0.5, "missing_values": [0, "?"]},
    },
    "derived": {
        "space": {"ratio": ["size m²", "rooms"]},
        "per_income": {"ratio": ["size m²", "income"]},
        "spare": {"difference": ["size m²", "rooms"]},
        "band": {"bin": "income", "edges": [2e4, 5e4]},
        "log_income": {"log": "income"},
    },
}


def _frame(model: str) -> pd.DataFrame:
    if model != "homes":
        return frame_of(model)
    rng = np.random.default_rng(9)
    frame, count = frame_of("houses").drop(columns=["sold"]), 300
    # More than a hundred places: the rare ones share a feature.
    places = np.array([f"place {place}" for place in range(140)], dtype=object)
    raw = frame.assign(
        place=np.where(rng.random(count) < 0.2, None, rng.choice(places, count)),
        listed=rng.choice(np.array([True, False, None], dtype=object), count),
        floors=rng.integers(0, 4, count),
    )
    config = resolve([Layer("test", HOMES)]).config
    return to_frame(raw, config.columns).frame.assign(price=frame["price"])


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, made = tmp_path_factory.mktemp("releases"), dict[tuple[str, str], Release]()

    def release(model: str, family: Any) -> Release:
        if (model, family) in made:
            return made[model, family]
        given: dict[str, Any] = {}
        if model == "homes":
            config, frame = resolve([Layer("test", HOMES)]).config, _frame("homes")
            with one_thread():
                pipeline = build_pipeline(config, family, PARAMETERS[family]).fit(frame, frame["price"].to_numpy())
            given = {"pipeline": pipeline, "config": config, "train": frame}
        made[model, family] = write(folder / f"{model}-{family}", model.replace("homes", "houses"), family, **given)
        return made[model, family]

    return release


def _quick(release: Release) -> Quick:
    quick = Quick.unproven(release)
    assert quick is not None
    return quick


def _rows(release: Release, frame: pd.DataFrame) -> list[list[Any]]:
    return [list(row.values()) for row in plain_rows(frame, release.schema.inputs)]


@pytest.mark.parametrize(("model", "family"), CASES)
def test_rows_alone_and_together_are_answered_as_by_the_pipeline(model: str, family: Any, releases: Any) -> None:
    release, frame = releases(model, family), _frame(model).head(300)
    holes = [name for name, column in release.schema.inputs.items() if column.missing]
    for place, name in enumerate(holes):
        frame.loc[frame.index[place :: 2 * len(holes)], name] = np.nan
    quick, rows, expected = _quick(release), _rows(release, frame), release.answer(frame)
    truth = expected.values if expected.probabilities is None else expected.probabilities
    whole = quick.prepare(rows)
    assert whole is not None and len(rows) > 100
    for row, alone in enumerate(rows):
        prepared = quick.prepare([alone])
        assert prepared is not None
        np.testing.assert_array_equal(prepared[0], whole[row])
        assert largest_gap(quick.estimate(prepared), truth[row : row + 1]) <= 1e-6
        if release.schema.labels:
            assert quick.answers(prepared).values[0] == expected.values[row]
    assert largest_gap(quick.estimate(whole), truth) <= 1e-6


@pytest.mark.parametrize("family", ["linear_regression", "random_forest"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_taken_is_answered_as_by_the_careful_path(family: Any, seed: int, releases: Any) -> None:
    """Cells of any type and size: the fast path either declines or says the same; unusual ones it declines."""
    release = releases("homes", family)
    quick, rng, base = _quick(release), np.random.default_rng(seed), _rows(release, _frame("homes"))
    odd = [None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 2.5, "1", "?", "", "flat", "House", "place 7", "nowhere"]
    odd += [1e300, -1e39, 3.4e38, 1e-300, 2**63, 1e15, "true", "(missing)", "place 3 "]
    taken = 0
    for row in (list(base[place]) for place in rng.integers(0, len(base), 400)):
        for place in rng.integers(0, len(row), rng.integers(1, 3)):
            row[place] = odd[rng.integers(len(odd))]
        prepared, together = quick.prepare([row]), quick.prepare([row, row])
        assert (prepared is None) == (together is None)
        typed = typed_rows([row], release.schema.inputs)
        if typed.problems or examine(typed.frame, release.schema.inputs):
            assert prepared is None
        elif prepared is not None and together is not None:
            taken += 1
            np.testing.assert_array_equal(prepared[0], together[1])
            gap = largest_gap(quick.estimate(prepared), release.answer(typed.frame).values)
            assert gap <= 1e-6
            assert quick.plain([row]) == plain_rows(typed.frame, release.schema.inputs)
    assert taken > 30


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("age", 17),
        ("age", 30.5),
        ("age", None),
        ("age", "30"),
        ("age", True),
        ("age", 10**400),
        ("cp", 9),
        ("cp", None),
        ("sex", "male"),
    ],
)
def test_what_needs_a_closer_look_is_declined(column: str, cell: Any, releases: Any) -> None:
    release = releases("heart_disease", "xgboost")
    quick, usual = _quick(release), _rows(release, frame_of("heart_disease").head(3))
    row = list(usual[0])
    row[list(release.schema.inputs).index(column)] = cell
    assert quick.prepare([row]) is None and quick.prepare([*usual, row]) is None
    assert quick.prepare([usual[0]]) is not None and quick.prepare([["x"], ["y"]]) is None
    assert quick.prepare([[[], *usual[0][1:]]]) is None and quick.prepare([usual[0], [{}, *usual[0][1:]]]) is None


@pytest.mark.parametrize(
    "params", [{"objective": "reg:tweedie"}, {"booster": "dart"}, {"max_depth": 9}, {"base_score": 3e5}]
)
def test_boosters_of_other_kinds_are_answered_too(params: dict[str, Any], tmp_path: Path) -> None:
    config, frame = resolve([Layer("test", HOMES)]).config, _frame("homes")
    frame["price"] = frame["price"].abs() + 1
    with one_thread():
        pipeline = build_pipeline(config, "xgboost", {**PARAMETERS["xgboost"], **params})
        pipeline.fit(frame, frame["price"].to_numpy())
    release = write(tmp_path / "r", "houses", "xgboost", pipeline=pipeline, config=config, train=frame)
    proof = fast_path(release, frame, _quick(release))
    assert proof.used and proof.answered == 1 and proof.rows == 300


def test_a_deep_forest_walks_to_the_same_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARAMETERS, "random_forest", {"n_estimators": 30})
    release, frame = write(tmp_path / "r", "heart_disease", "random_forest"), frame_of("heart_disease").head(200)
    forest: Any = _quick(release).estimate
    prepared = _quick(release).prepare(_rows(release, frame))
    assert prepared is not None and forest.packed.depth > 10
    alone = np.concatenate([forest(prepared[row : row + 1]) for row in range(len(prepared))])
    np.testing.assert_allclose(alone, release.answer(frame).probabilities, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", ["pipeline_errors", "houses"])
def test_texts_and_dates_have_no_fast_path(model: str, tmp_path: Path) -> None:
    release = write(tmp_path / "r", model, "random_forest")
    assert Quick.unproven(release) is None
    assert prove_fast_path(release.directory, frame_of(model)) == {
        "rows": len(frame_of(model)),
        "largest_gap": 0.0,
        "answered": 0.0,
        "used": False,
    }
    assert Quick.of(Release.open(release.directory)) is None


def test_only_what_was_proven_serves(tmp_path: Path) -> None:
    release = write(tmp_path / "r", "heart_disease", "xgboost")
    assert Quick.of(release) is None
    proof = prove_fast_path(release.directory, frame_of("heart_disease"))
    assert proof["used"] and proof["rows"] == len(frame_of("heart_disease")) and 0.9 < proof["answered"] <= 1
    assert proof["largest_gap"] <= 1e-6
    opened = Release.open(release.directory)
    assert Quick.of(opened) is not None and opened.evidence[EVIDENCE] == proof and opened.digest == release.digest
    assert prove_fast_path(release.directory, frame_of("heart_disease").head(5)) == proof
    with pytest.raises(WorkError, match="never replaced"):
        add_evidence(release.directory, EVIDENCE, proof)


@pytest.mark.parametrize("family", ["random_forest", "xgboost"])
def test_a_tree_that_differs_is_found(family: Any, releases: Any) -> None:
    release, frame = releases("heart_disease", family), frame_of("heart_disease")
    quick = _quick(release)
    estimate: Any = quick.estimate
    trees = estimate.packed if family == "random_forest" else estimate.boosted.trees
    leaf = int(trees.leaves(quick.prepare(_rows(release, frame.head(1)))[0].astype(np.float32))[3])  # type: ignore[index]
    values = trees.values.copy()
    values[leaf] += 0.01
    changed = replace(trees, values=values)
    if family == "random_forest":
        wrong = replace(quick, estimate=replace(estimate, packed=changed))
    else:
        wrong = replace(quick, estimate=replace(estimate, boosted=replace(estimate.boosted, trees=changed)))
    assert fast_path(release, frame, quick).used
    proof = fast_path(release, frame, wrong)
    assert not proof.used and proof.largest_gap > 1e-6


@pytest.mark.parametrize(("right", "used"), [(2 * 2_000, False), (10_000, True)])  # the proof asks twice
def test_every_row_is_proven_alone(right: int, used: bool, releases: Any) -> None:
    """A fault of the last rows only, and only where they are asked alone."""

    class Faulty:
        def __init__(self, right: Any) -> None:
            self.right, self.alone = right, 0

        def __call__(self, prepared: Any) -> Any:
            self.alone += len(prepared) == 1
            told = self.right(prepared)
            return told + 0.01 if len(prepared) == 1 and self.alone > right else told

    release = releases("wine", "logistic_regression")
    frame = pd.concat([frame_of("wine")] * 13, ignore_index=True)
    quick = _quick(release)
    proof = fast_path(release, frame, replace(quick, estimate=Faulty(quick.estimate)))
    assert 2_000 < proof.answered * proof.rows <= proof.rows and proof.used == used


def test_a_preparation_that_differs_is_found_and_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write(tmp_path / "r", "wine", "logistic_regression")
    quick = _quick(release)
    assert quick.cells.scale is not None
    wrong = replace(quick, cells=replace(quick.cells, scale=quick.cells.scale * 1.001))
    proof = fast_path(release, frame_of("wine"), wrong)
    assert not proof.used and proof.largest_gap > 1e-6
    prove_fast_path(release.directory, frame_of("wine"))
    proven = Release.open(release.directory)
    assert Quick.of(proven) is not None
    monkeypatch.setattr(Quick, "unproven", lambda _: wrong)
    assert Quick.of(proven) is None


@pytest.mark.parametrize(("model", "family"), CASES)
def test_prepared_rows_are_explained_as_typed_ones(model: str, family: Any, releases: Any) -> None:
    release, frame = releases(model, family), _frame(model).head(20)
    quick, explainer = _quick(release), Explainer.of(release)
    rows, answers = _rows(release, frame), release.answer(frame)
    prepared = quick.prepare(rows)
    assert prepared is not None
    expected = explainer.told(explainer.explain(frame, answers, 5))
    told = explainer.told(explainer.explain_prepared(prepared, quick.plain(rows), answers, 5))
    for one, other in zip(told, expected, strict=True):
        assert [p["column"] for p in one["contributions"]] == [p["column"] for p in other["contributions"]]
        assert [p["value"] for p in one["contributions"]] == [p["value"] for p in other["contributions"]]
        for key, value in other["explanation"].items():
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-6)
            assert one["explanation"][key] == same
        effects = [[p["effect"] for p in each["contributions"]] for each in (one, other)]
        np.testing.assert_allclose(effects[0], effects[1], rtol=1e-6, atol=1e-9)
    assert explainer.most_rows >= 1000


def test_abstaining_is_the_same(tmp_path: Path) -> None:
    config = config_of("wine")
    config = config.model_copy(update={"serving": config.serving.model_copy(update={"abstain_below": 0.97})})
    release = write(tmp_path / "r", "wine", "random_forest", config=config)
    quick, expected = _quick(release), release.answer(frame_of("wine"))
    prepared = quick.prepare(_rows(release, frame_of("wine")))
    assert prepared is not None and expected.abstained is not None and 0 < expected.abstained.sum() < len(prepared)
    np.testing.assert_array_equal(quick.answers(prepared).told, expected.told)
