import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shap
from fastapi.testclient import TestClient

import bentos.explain
import bentos.release
from bentos.explain import Explainer, NotExplainable
from bentos.frame import to_frame
from bentos.inputs import typed_rows
from bentos.messages import Answer, BatchAnswer, Refusal
from bentos.release import Release, prepare
from models.config import Layer, ModelConfig, resolve
from steps.families import build_pipeline, one_thread
from tests.bentos.samples import HOUSES, PARAMETERS, client_of, config_of, fitted, frame_of, write

CASES = [
    ("heart_disease", "logistic_regression"),
    ("heart_disease", "random_forest"),
    ("heart_disease", "xgboost"),
    ("wine", "logistic_regression"),
    ("wine", "random_forest"),
    ("wine", "xgboost"),
    ("houses", "linear_regression"),
    ("houses", "random_forest"),
    ("houses", "xgboost"),
    ("pipeline_errors", "logistic_regression"),
    ("pipeline_errors", "random_forest"),
    ("pipeline_errors", "xgboost"),
]
TREES = [case for case in CASES if case[1] in ("random_forest", "xgboost")]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, made = tmp_path_factory.mktemp("releases"), dict[tuple[str, str], Release]()

    def release(model: str, family: Any) -> Release:
        if (model, family) not in made:
            made[model, family] = write(folder / f"{model}-{family}", model, family)
        return made[model, family]

    return release


@pytest.fixture(scope="module")
def client(releases: Any) -> TestClient:
    return client_of(releases("heart_disease", "xgboost"))


def _rows(model: str, count: int = 40) -> pd.DataFrame:
    """Rows of which some lack all that may be missing."""
    frame = frame_of(model).head(count).copy()
    holes = [name for name, column in config_of(model).columns.items() if column.missing and not column.personal]
    frame.loc[frame.index[::7], holes] = np.nan
    return frame


def _by_name(release: Release, effects: Any) -> dict[str, Any]:
    """Effects of prepared features summed by what scikit-learn calls them: another way to the same sums."""
    names = release.pipeline[:-1].get_feature_names_out(list(release.schema.inputs))
    seen: list[str] = list(release.pipeline.steps[0][1].features)
    texts = [name for name in seen if name in release.schema.inputs and release.schema.inputs[name].type == "text"]
    sums: dict[str, Any] = {}
    for place, name in enumerate(names):
        kind, _, rest = name.partition("__")
        rest = rest.removeprefix("missingindicator_")
        owner = texts[int(kind[5:])] if kind.startswith("text_") else max((n for n in seen if _of(n, rest)), key=len)
        expression = release.config.derived.get(owner)
        columns = [owner] if expression is None else list(expression.inputs)
        for column in columns:
            sums[column] = sums.get(column, 0) + effects[:, place] / len(columns)
    return sums


def _of(column: str, feature: str) -> bool:
    return feature == column or feature.startswith(f"{column}_")


@pytest.mark.parametrize(("model", "family"), CASES)
def test_base_and_effects_add_up_to_the_output(model: str, family: Any, releases: Any) -> None:
    release, frame = releases(model, family), _rows(model)
    explainer, answers = Explainer.of(release), release.answer(frame)
    told = explainer.attribute(frame, answers)
    assert told.effects.shape == (len(frame), len(release.schema.inputs))
    outputs = told.base + told.effects.sum(axis=1)
    size = np.abs(told.base) + np.abs(told.effects).sum(axis=1)
    estimator, prepared = release.pipeline.steps[-1][1], prepare(release.pipeline, frame)
    if release.schema.task == "regression":
        expected = answers.values
    elif family == "random_forest":
        expected = answers.probabilities[np.arange(len(frame)), told.codes]
    else:
        margin = {"output_margin": True} if family == "xgboost" else {}
        score = estimator.predict(prepared, **margin) if margin else estimator.decision_function(prepared)
        expected = score if score.ndim == 1 else score[np.arange(len(frame)), told.codes]
    assert (np.abs(outputs - expected) <= 1e-5 * size).all()
    if len(release.schema.labels) == 2:
        assert set(told.codes) == {1}
    elif release.schema.labels:
        assert [release.schema.labels[code] for code in told.codes] == list(answers.values)


@pytest.mark.parametrize(("model", "family"), TREES)
def test_trees_are_explained_as_by_shap(model: str, family: Any, releases: Any) -> None:
    release, frame = releases(model, family), _rows(model, 12)
    explainer, answers = Explainer.of(release), release.answer(frame)
    told, prepared = explainer.attribute(frame, answers), prepare(release.pipeline, frame)
    dense = prepared.toarray() if hasattr(prepared, "toarray") else prepared
    if family == "xgboost":
        dense = np.where(dense == 0, np.nan, dense) if hasattr(prepared, "toarray") else dense
    reference = shap.TreeExplainer(release.pipeline.steps[-1][1], feature_perturbation="tree_path_dependent")
    values, rows = reference.shap_values(dense), np.arange(len(frame))
    values = values if values.ndim == 2 else values[rows, :, told.codes]
    scale = max(1.0, np.abs(values).max())
    _, effects = explainer.method.effects(prepared, told.codes)
    np.testing.assert_allclose(effects, values, rtol=0, atol=(1e-9 if family == "random_forest" else 1e-5) * scale)
    for column, sums in _by_name(release, values).items():
        place = list(release.schema.inputs).index(column)
        np.testing.assert_allclose(told.effects[:, place], sums, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize(("model", "family"), [case for case in CASES if case not in TREES])
def test_linear_models_are_explained_as_by_shap(model: str, family: Any, releases: Any) -> None:
    release, frame = releases(model, family), _rows(model, 12)
    explainer, answers = Explainer.of(release), release.answer(frame)
    told, prepared = explainer.attribute(frame, answers), prepare(release.pipeline, frame)
    # Parquet gives missing texts back as None.
    sample = prepare(release.pipeline, to_frame(release.reference(), release.schema.inputs).frame)
    if hasattr(prepared, "toarray"):
        prepared, sample = prepared.toarray(), sample.toarray()
    estimator = release.pipeline.steps[-1][1]
    masker = shap.maskers.Independent(sample, max_samples=len(sample))
    values = shap.LinearExplainer(estimator, masker).shap_values(prepared)
    values = values if values.ndim == 2 else values[np.arange(len(frame)), :, told.codes]
    _, effects = explainer.method.effects(prepared, told.codes)
    np.testing.assert_allclose(effects, values, rtol=0, atol=1e-6 * max(1.0, np.abs(values).max()))
    for column, sums in _by_name(release, values).items():
        place = list(release.schema.inputs).index(column)
        np.testing.assert_allclose(told.effects[:, place], sums, rtol=0, atol=1e-6 * max(1.0, np.abs(values).max()))


@pytest.mark.parametrize("family", ["linear_regression", "random_forest", "xgboost"])
def test_every_kind_of_derived_column_is_shared_by_what_it_reads(family: Any, tmp_path: Path) -> None:
    derived = {
        "spare": {"difference": ["size m²", "rooms"]},
        "band": {"bin": "size m²", "edges": [60, 120], "labels": ["s", "m", "l"]},
        "log_income": {"log": "income"},
        "year": {"date": "sold", "part": "year"},
        "same": {"ratio": ["rooms", "rooms"]},
    }
    config = resolve(
        [Layer("test", HOUSES | {"derived": derived, "features": {"exclude": ["size m²", "income"]}})]
    ).config
    release, frame = _written(tmp_path / "r", config, family, PARAMETERS[family]), _rows("houses")
    explainer = Explainer.of(release)
    told = explainer.attribute(frame, release.answer(frame))
    np.testing.assert_allclose(told.base + told.effects.sum(axis=1), release.answer(frame).values, rtol=1e-5)
    prepared = prepare(release.pipeline, frame)
    for column, sums in _by_name(release, explainer.method.effects(prepared, told.codes)[1]).items():
        np.testing.assert_allclose(told.effects[:, list(release.schema.inputs).index(column)], sums, atol=1e-6)
    assert {"size m²", "income", "sold"} <= set(release.schema.inputs)


def _written(folder: Path, config: ModelConfig, family: Any, params: Any, frame: pd.DataFrame | None = None) -> Release:
    frame = frame_of("houses") if frame is None else frame
    with one_thread():
        pipeline = build_pipeline(config, family, params).fit(frame, frame["price"].to_numpy())
    return write(folder, "houses", family, pipeline=pipeline, config=config, train=frame)


@pytest.mark.parametrize("family", ["linear_regression", "random_forest", "xgboost"])
def test_a_strong_column_comes_first_with_the_sign_of_its_effect(family: Any, releases: Any) -> None:
    release = releases("houses", family)
    frame = frame_of("houses").sort_values("size m²").iloc[[0, -1]].reset_index(drop=True)
    small, large = Explainer.of(release).explain(frame, release.answer(frame), 3)
    assert small.contributions[0].column in ("size m²", "rooms") and large.contributions[0].column == "size m²"
    assert small.contributions[0].effect < 0 < large.contributions[0].effect
    assert small.output < small.base < large.output


def test_a_strong_category_comes_first(tmp_path: Path) -> None:
    frame = frame_of("houses").copy()
    frame["price"] = np.where(frame["kind"] == "house", 1e6, 1e5)
    for family in ("linear_regression", "random_forest", "xgboost"):
        release = _written(tmp_path / family, config_of("houses"), family, PARAMETERS[family], frame)
        for told in Explainer.of(release).explain(frame.head(10), release.answer(frame.head(10)), 1):
            (first,) = told.contributions
            assert first.column == "kind" and (first.effect > 0) == (first.value == "house")


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_a_text_is_explained_by_terms_that_it_holds(family: Any, releases: Any) -> None:
    release, frame = releases("pipeline_errors", family), frame_of("pipeline_errors").head(30)
    (tfidf,) = [part for _, part, _ in release.pipeline.steps[1][1].transformers_ if hasattr(part, "terms_")]
    named = 0
    for text, told in zip(
        frame["log_text"], Explainer.of(release).explain(frame, release.answer(frame), 20), strict=True
    ):
        contributions = {part.column: part for part in told.contributions}
        tokens = contributions["log_text"].tokens
        assert tokens is not None and len(tokens) <= 5
        held = set(tfidf.get_feature_names_out()[tfidf.transform([text]).indices])
        assert {part.token for part in tokens} <= held
        sizes = [abs(part.effect) for part in tokens]
        assert sizes == sorted(sizes, reverse=True) and 0 not in sizes
        assert len(str(contributions["log_text"].value)) <= 240
        named += len(tokens)
    assert named > 30


def test_rows_are_explained_alone_as_together_however_many_are_held(
    releases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, family in CASES:
        release, frame = releases(model, family), _rows(model, 9)
        explainer, answers = Explainer.of(release), release.answer(frame)
        whole = explainer.attribute(frame, answers)
        with monkeypatch.context() as patched:
            patched.setattr(bentos.explain, "_CELLS", 1)
            single = explainer.attribute(frame, answers)
        np.testing.assert_allclose(single.effects, whole.effects, rtol=0, atol=1e-9 * np.abs(whole.effects).max())
        assert explainer.explain(frame, answers, 2)[8].contributions[0].effect == pytest.approx(
            whole.effects[8][np.abs(whole.effects[8]).argmax()]
        )


def test_a_model_whose_answers_are_no_sum_is_not_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of("houses").assign(price=lambda rows: rows["price"].abs() + 1)
    params = {**PARAMETERS["xgboost"], "objective": "reg:gamma"}
    with pytest.raises(NotExplainable, match="do not add up"):
        Explainer.of(_written(tmp_path / "gamma", config_of("houses"), "xgboost", params, frame))
    monkeypatch.setitem(PARAMETERS, "xgboost", {**PARAMETERS["xgboost"], "objective": "binary:hinge"})
    hinge = fitted("heart_disease", "xgboost")
    with pytest.raises(NotExplainable, match="logistic"):
        Explainer.of(write(tmp_path / "hinge", "heart_disease", "xgboost", pipeline=hinge))


def _ask(client: TestClient, explain: Any, **changes: Any) -> Any:
    inputs = client.release.golden[0].inputs  # type: ignore[attr-defined]
    return client.post("/predict", json={"features": {**inputs, **changes}, "explain": explain})


@pytest.mark.parametrize(("explain", "count"), [(1, 1), (5, 5), (13, 13), (20, 13), (True, 5)])
def test_the_k_largest_effects_come_largest_first(client: TestClient, explain: Any, count: int) -> None:
    response = _ask(client, explain)
    Answer.model_validate_json(response.content)
    answer = response.json()
    effects = [part["effect"] for part in answer["contributions"]]
    assert len(effects) == count
    assert [abs(effect) for effect in effects] == sorted(map(abs, effects), reverse=True)
    assert set(answer["contributions"][0]) == {"column", "value", "effect"}
    about = answer["explanation"]
    assert (about["method"], about["scale"], about["label"]) == ("tree_shap", "log-odds", "disease")
    assert 1 / (1 + math.exp(-about["output"])) == pytest.approx(answer["probability"], abs=1e-6)
    if count == 13:
        assert about["base"] + sum(effects) == pytest.approx(about["output"], abs=1e-6)


@pytest.mark.parametrize("explain", [None, False])
def test_nothing_is_explained_unasked(client: TestClient, explain: Any) -> None:
    plain = client.post("/predict", json={"features": client.release.golden[0].inputs})  # type: ignore[attr-defined]
    assert plain.json().keys() == _ask(client, explain).json().keys()
    assert not {"contributions", "explanation"} & plain.json().keys()


@pytest.mark.parametrize(
    "explain", [0, 21, "x", "5", 1.5, 5.0, -1, [], [5], {}, {"k": 5}, 10**400, -(2**70), "Zq7-private"]
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_any_other_number_of_effects_is_refused(client: TestClient, path: str, explain: Any) -> None:
    inputs = client.release.golden[0].inputs  # type: ignore[attr-defined]
    rows = {"features": inputs} if path == "/predict" else {"instances": [inputs]}
    response = client.post(path, json=rows | {"explain": explain})
    assert response.status_code == 422
    (fault,) = Refusal.model_validate_json(response.content).detail
    assert fault.loc == ["body", "explain"]
    assert "Zq7" not in response.text and len(response.text) < 300


@pytest.mark.parametrize("text", [b"NaN", b"1e999", b"9" * 5_000, b'"\\ud800"', b"[" * 10_000])
def test_hostile_numbers_of_effects_are_refused(client: TestClient, text: bytes) -> None:
    inputs = json.dumps(client.release.golden[0].inputs).encode()  # type: ignore[attr-defined]
    content = b'{"features": ' + inputs + b', "explain": ' + text + b"}"
    assert client.post("/predict", content=content, headers={"content-type": "application/json"}).status_code == 422


def test_values_are_told_as_they_are_written_and_missing_ones_as_null(client: TestClient) -> None:
    parts = {part["column"]: part["value"] for part in _ask(client, 20, chol=0, ca=None, cp=4).json()["contributions"]}
    assert parts["chol"] is parts["ca"] is None
    assert parts["cp"] == 4 and isinstance(parts["age"], int)


def test_an_unseen_category_and_a_refused_value_are_as_without_explanation(client: TestClient) -> None:
    unseen = _ask(client, 20, cp="unheard of")
    assert unseen.status_code == 200 and unseen.json()["flags"]
    assert _ask(client, 20, age=17).json()["detail"][0]["loc"] == ["body", "features", "age"]


@pytest.mark.parametrize("family", ["linear_regression", "random_forest", "xgboost"])
def test_a_number_is_explained_without_a_class_and_without_persons(family: Any, releases: Any) -> None:
    client = client_of(releases("houses", family))
    answer = _ask(client, 20).json()
    about = answer["explanation"]
    assert about["scale"] == "value" and "label" not in about
    assert about["output"] == pytest.approx(answer["prediction"], rel=1e-5)
    assert {part["column"] for part in answer["contributions"]} == set(releases("houses", family).schema.inputs)
    assert "owner" not in json.dumps(answer)
    for income in (1e-300, 1e300, 1e-30, 1e38, 0, None):
        assert _ask(client, 5, income=income).status_code in (200, 422)


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_a_batch_is_explained_row_by_row_on_the_predicted_class(family: Any, releases: Any) -> None:
    release = releases("wine", family)
    client, rows = client_of(release), [golden.inputs for golden in release.golden]
    response = client.post("/predict/batch", json={"instances": rows, "explain": 3})
    BatchAnswer.model_validate_json(response.content)
    for inputs, answer in zip(rows, response.json()["predictions"], strict=True):
        alone = client.post("/predict", json={"features": inputs, "explain": 3}).json()
        assert answer["explanation"]["label"] == answer["prediction"]
        assert [part["column"] for part in answer["contributions"]] == [p["column"] for p in alone["contributions"]]
        assert answer["contributions"][0]["effect"] == pytest.approx(alone["contributions"][0]["effect"], abs=1e-6)
        if family == "random_forest":
            assert answer["explanation"]["scale"] == "probability"
            assert answer["explanation"]["output"] == pytest.approx(answer["probability"], abs=1e-9)


@pytest.mark.parametrize("text", [None, "", " \n ", "\x00", "é 日本", "x" * 400_000, "error " * 70_000])
@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_any_text_is_explained(releases: Any, family: Any, text: str | None) -> None:
    response = client_of(releases("pipeline_errors", family)).post(
        "/predict", json={"features": {"log_text": text}, "explain": True}
    )
    assert response.status_code == 200 and len(response.content) < 5_000
    (part,) = [part for part in response.json()["contributions"] if part["column"] == "log_text"]
    assert part["tokens"] == [] or text is not None


def test_openapi_shows_explanations(client: TestClient) -> None:
    shown = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("HeartDiseaseRequest", "HeartDiseaseBatch"):
        explain = shown[name]["properties"]["explain"]
        assert {"type": "integer", "minimum": 1, "maximum": 20} in explain["anyOf"]
        assert "explain" not in shown[name]["required"]
    assert set(shown["Contribution"]["properties"]) == {"column", "value", "effect", "tokens"}
    assert set(shown["Explanation"]["required"]) == {"base", "output", "method", "scale"}
    assert {"contributions", "explanation"} <= shown["Answer"]["properties"].keys()


def _refuses_to_explain(release: Release, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.ERROR, "gauntlet.service"):
        client = client_of(release)
    asked = _ask(client, 5)
    assert asked.status_code == 422
    assert asked.json()["detail"][0]["loc"] == ["body", "explain"] and "cannot be explained" in asked.text
    assert _ask(client, None).status_code == 200
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "gives no explanations" in record.message
    return record.message


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_what_does_not_add_up_is_not_told(
    family: Any, releases: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    method = type(Explainer.of(releases("heart_disease", family)).method)
    right = method.effects

    def wrong(self: Any, prepared: Any, codes: Any) -> Any:
        base, effects = right(self, prepared, codes)
        return base, effects * (1 + 1e-3)

    monkeypatch.setattr(method, "effects", wrong)
    assert "do not add up" in _refuses_to_explain(releases("heart_disease", family), caplog)


def test_a_linear_release_without_its_background_is_not_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bentos.release, "_LINEAR", ())
    assert "background" in _refuses_to_explain(write(tmp_path / "r", "wine", "logistic_regression"), caplog)


def test_the_background_is_no_part_of_the_digest(
    releases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bentos.release, "_LINEAR", ())
    without = write(tmp_path / "r", "wine", "logistic_regression")
    assert without.background is None and releases("wine", "random_forest").background is None
    assert releases("wine", "logistic_regression").background is not None
    assert without.digest == releases("wine", "logistic_regression").digest


def test_a_bento_explains_without_shap_and_without_parquet(releases: Any) -> None:
    folders = [str(releases(*case).directory) for case in CASES if case[0] in ("wine", "heart_disease")]
    code = (
        "import sys; from pathlib import Path\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('shap', 'pyarrow', 'numba'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from bentos.explain import Explainer; from bentos.release import Release\n"
        "for folder in sys.argv[1:]: Explainer.of(Release.open(Path(folder)))\n"
        "assert not {'zenml', 'prefect', 'mlflow', 'shap', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-800:]


def test_golden_rows_are_explained_from_what_a_request_holds(releases: Any) -> None:
    release = releases("heart_disease", "xgboost")
    frame = typed_rows([list(golden.inputs.values()) for golden in release.golden], release.schema.inputs).frame
    told = Explainer.of(release).explain(frame, release.answer(frame), 20)
    for golden, explanation in zip(release.golden, told, strict=True):
        assert {part.column: part.value for part in explanation.contributions} == golden.inputs
