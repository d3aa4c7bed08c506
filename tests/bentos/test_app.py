import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from bentos.app import add_model, new_app
from bentos.desk import Desk
from bentos.fleet import Fleet
from bentos.inputs import plain_rows
from bentos.messages import Answer, BatchAnswer, Health, Refusal, requests_of
from bentos.metrics import metrics
from bentos.release import Release
from bentos.served import Served
from models.config import Serving
from tests.bentos.samples import client_of, config_of, frame_of, write

JSON = {"content-type": "application/json"}
SECRET = "Zq7-private"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("releases")


@pytest.fixture(scope="module")
def heart(folder: Path) -> Release:
    return write(folder / "heart", "heart_disease", "logistic_regression")


@pytest.fixture(scope="module")
def client(heart: Release) -> TestClient:
    return client_of(heart, max_batch=3_000)


@pytest.fixture(scope="module")
def houses(folder: Path) -> TestClient:
    return client_of(write(folder / "houses", "houses", "random_forest"))


def _predict(client: TestClient, **changes: Any) -> Any:
    inputs = client.release.golden[0].inputs  # type: ignore[attr-defined]
    return client.post("/predict", json={"features": {**inputs, **changes}})


@pytest.mark.parametrize(
    ("model", "family"),
    [("wine", "random_forest"), ("heart_disease", "xgboost"), ("heart_disease", "logistic_regression")],
)
def test_served_and_offline_answers_are_equal_on_every_row(model: str, family: Any, folder: Path) -> None:
    release = write(folder / f"every-{model}-{family}", model, family)
    client, frame = client_of(release, max_batch=3_000), frame_of(model)
    rows = plain_rows(frame, release.schema.inputs)
    told = BatchAnswer.model_validate_json(client.post("/predict/batch", json={"instances": rows}).content)
    offline = release.answer(frame)
    assert offline.probabilities is not None
    served = [[(a.probabilities or {})[label] for label in release.schema.labels] for a in told.predictions]
    np.testing.assert_allclose(np.array(served), offline.probabilities, rtol=0, atol=1e-6)
    assert [answer.prediction for answer in told.predictions] == list(offline.values)
    for row in range(0, len(rows), max(1, len(rows) // 40)):
        alone = Answer.model_validate_json(client.post("/predict", json={"features": rows[row]}).content)
        assert alone.probabilities == pytest.approx(told.predictions[row].probabilities, abs=1e-9)


def test_an_answer_says_what_who_and_which(client: TestClient, heart: Release) -> None:
    answer = Answer.model_validate_json(_predict(client).content)
    golden = heart.golden[0]
    assert golden.probabilities is not None
    assert (answer.prediction, answer.model, answer.version, answer.variant) == (
        golden.prediction,
        "heart_disease",
        12,
        "champion",
    )
    assert answer.probability == pytest.approx(golden.probabilities[-1], abs=1e-6)
    assert answer.flags == []
    assert _predict(client).json()["prediction_id"] != answer.prediction_id


@pytest.mark.parametrize(("probability", "level"), [(0.0, "low"), (0.3299, "low"), (0.33, "medium"), (0.66, "high")])
def test_risk_is_the_level_that_the_probability_reached(heart: Release, probability: float, level: str) -> None:
    levels = heart.config.serving.risk
    assert levels == {"low": 0.0, "medium": 0.33, "high": 0.66}
    from bentos.release import Answers

    served = Served.load(heart, 1)
    answers = Answers(np.array(["healthy"], dtype=object), np.array([[1 - probability, probability]]))
    assert served._told(answers)[0]["risk"] == level


def test_a_batch_keeps_its_order_and_numbers_its_rows(client: TestClient, heart: Release) -> None:
    rows = [golden.inputs for golden in heart.golden]
    told = client.post("/predict/batch", json={"instances": rows}).json()["predictions"]
    assert [answer["prediction"] for answer in told] == [golden.prediction for golden in heart.golden]
    batch = told[0]["prediction_id"].removesuffix("-0")
    assert [answer["prediction_id"] for answer in told] == [f"{batch}-{row}" for row in range(len(rows))]


def test_regression_answers_a_number_and_no_probability(houses: TestClient) -> None:
    answer = _predict(houses).json()
    assert isinstance(answer["prediction"], float)
    assert not {"probability", "probabilities", "risk"} & answer.keys()


def test_health_names_version_and_digest(client: TestClient, heart: Release) -> None:
    health = Health.model_validate_json(client.get("/health").content)
    assert (health.model, health.version, health.digest) == ("heart_disease", 12, heart.digest)


def test_nothing_is_answered_before_a_release_is_loaded(heart: Release) -> None:
    app = new_app(Desk(Fleet()))
    add_model(app, heart, at_root=True)
    client = TestClient(app)
    assert client.get("/health").status_code == 503
    assert client.post("/predict", json={"features": heart.golden[0].inputs}).status_code == 503


def test_openapi_shows_the_model_s_own_inputs(client: TestClient, houses: TestClient) -> None:
    shown = client.get("/openapi.json").json()
    body = shown["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/HeartDiseaseRequest")
    features = shown["components"]["schemas"]["HeartDiseaseFeatures"]
    assert list(features["properties"])[:3] == ["age", "sex", "cp"]
    assert features["additionalProperties"] is False
    assert features["required"] == ["age", "sex", "cp"]
    age = features["properties"]["age"]
    assert (age["type"], age["minimum"], age["maximum"]) == ("integer", 18, 110)
    assert features["properties"]["sex"]["anyOf"][0] == {"enum": [0, 1]}
    assert {"enum": [0], "description": "means missing"} in features["properties"]["chol"]["anyOf"]
    assert {"type": "null"} in features["properties"]["chol"]["anyOf"]
    homes = houses.get("/openapi.json").json()["components"]["schemas"]["HousesFeatures"]["properties"]
    assert "owner" not in homes
    assert homes["size m²"]["x-range"] == [10, 1000]
    assert homes["kind"]["enum"] == ["flat", "house"]
    assert homes["sold"] == {"type": "string", "format": "date-time", "title": "sold"} | homes["sold"]


def test_the_request_classes_bear_the_model_s_name(heart: Release) -> None:
    requests = requests_of(heart.schema, 10)
    assert [c.__name__ for c in (requests.features, requests.single, requests.batch)] == [
        "HeartDiseaseFeatures",
        "HeartDiseaseRequest",
        "HeartDiseaseBatch",
    ]


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"age": SECRET}, "age"),
        ({"age": None}, "age"),
        ({"age": True}, "age"),
        ({"age": 63.5}, "age"),
        ({"age": [63]}, "age"),
        ({"age": 10**400}, "age"),
        ({"age": 17}, "age"),
        ({"age": -(2**70)}, "age"),
        ({"sex": {"a": SECRET}}, "sex"),
        ({"sex": [SECRET]}, "sex"),
        ({"sex": None}, "sex"),
        ({"sex": "  "}, "sex"),
        ({"thalach": 1e300}, "thalach"),
        ({"surname": SECRET}, "surname"),
        ({"ünïcode 😀": SECRET}, "ünïcode 😀"),
        ({"field_0": 63}, "field_0"),
    ],
)
def test_a_wrong_value_is_refused_by_path_and_reason_and_never_repeated(
    client: TestClient, changes: dict[str, Any], column: str
) -> None:
    response = _predict(client, **changes)
    assert response.status_code == 422
    fault = Refusal.model_validate_json(response.content).detail[0]
    assert fault.loc == ["body", "features", column]
    assert fault.msg
    assert SECRET not in response.text


def test_a_missing_field_is_refused_unless_it_may_be_missing(client: TestClient, heart: Release) -> None:
    inputs = heart.golden[0].inputs
    without_age = client.post("/predict", json={"features": {k: v for k, v in inputs.items() if k != "age"}})
    assert without_age.status_code == 422
    assert without_age.json()["detail"][0]["loc"] == ["body", "features", "age"]
    left_out = client.post("/predict", json={"features": {k: v for k, v in inputs.items() if k != "chol"}})
    null, marked = _predict(client, chol=None), _predict(client, chol=0)
    assert left_out.status_code == null.status_code == marked.status_code == 200
    assert left_out.json()["probabilities"] == null.json()["probabilities"] == marked.json()["probabilities"]


def test_one_category_is_one_however_it_is_written(client: TestClient) -> None:
    told = [_predict(client, cp=value).json()["probabilities"] for value in (4, 4.0, "4", " 4 ", "4.0")]
    assert all(answer == told[0] for answer in told)


def test_reject_and_flag_are_the_column_s_choice(client: TestClient, houses: TestClient) -> None:
    flagged = _predict(client, cp="unheard of")
    assert flagged.status_code == 200
    assert flagged.json()["flags"] == [{"column": "cp", "reason": "not one of the model's categories"}]
    assert "unheard" not in flagged.text
    assert _predict(houses, kind="castle").status_code == 422
    large = _predict(houses, **{"size m²": 5_000})
    assert large.json()["flags"] == [{"column": "size m²", "reason": "outside the range 10 to 1000"}]
    assert _predict(houses, rooms=21).status_code == 422


@pytest.mark.parametrize(
    ("sold", "code"),
    [
        ("2012-05-06T07:08:09Z", 200),
        ("2012-05-06", 200),
        ("2012-05-06T07:08:09+02:00", 200),
        ("0001-01-01", 422),
        ("9999-12-31", 422),
        ("now", 422),
        ("12", 422),
        (1336287600, 422),
        ("2012-13-45", 422),
        (None, 422),
    ],
)
def test_dates_are_iso_text_within_what_can_be_held(houses: TestClient, sold: Any, code: int) -> None:
    assert _predict(houses, sold=sold).status_code == code


@pytest.mark.parametrize("heated", ["true", 1, 0.0, "yes", []])
def test_a_boolean_is_true_or_false(houses: TestClient, heated: Any) -> None:
    assert _predict(houses, heated=True).status_code == 200
    assert _predict(houses, heated=heated).status_code == 422


@pytest.mark.parametrize(("income", "code"), [(1e-300, 422), (1e300, 422), (1e-30, 200), (0, 200)])
def test_numbers_beyond_the_arithmetic_are_the_caller_s_fault(houses: TestClient, income: float, code: int) -> None:
    response = _predict(houses, income=income)
    assert response.status_code == code
    assert "Traceback" not in response.text


def test_the_refused_row_of_a_batch_is_named(client: TestClient, heart: Release) -> None:
    good = heart.golden[0].inputs
    for bad in ({"age": 5}, {"age": "x"}, {"age": 20.5}):
        response = client.post("/predict/batch", json={"instances": [good, good, {**good, **bad}]})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", "instances", 2, "age"]


def test_a_batch_has_a_smallest_and_a_largest_size(client: TestClient, heart: Release) -> None:
    good = heart.golden[0].inputs
    assert client.post("/predict/batch", json={"instances": []}).status_code == 422
    assert client.post("/predict/batch", json={"instances": [good] * 3_000}).status_code == 200
    assert client.post("/predict/batch", json={"instances": [good] * 3_001}).status_code == 413
    assert client.post("/predict/batch", json={"instances": [{}] * 100_000}).status_code == 413
    for instances in (good, None, [None], [[]], [{}] * 1_000):
        assert client.post("/predict/batch", json={"instances": instances}).status_code == 422
    assert client.post("/predict/batch", json={"rows": [good]}).status_code == 422


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"7",
    b'"features"',
    b"{",
    b'{"features": {"age": NaN}}',
    b'{"features": {"age": Infinity, "sex": -Infinity}}',
    b'{"features": {"age": 1e999}}',
    b'{"features": {"age": ' + b"9" * 5_000 + b"}}",
    b'{"features": {"sex": ' + b"9" * 5_000 + b"}}",
    b'{"features": {"sex": NaN}}',
    b'{"features": ' * 5_000,
    b"[" * 100_000,
    b'{"features": {"\\ud800": 1}}',
    b'{"features": {"sex": "\\ud800"}}',
    b"\xff\xfe\x00",
    b"\x80\x04K\x01.",
    b'{"features": {}} trailing',
    b'{"features": {}, "features": {"a": 1}}',
    b"features=1",
    json.dumps({"features": {"k" * 100_000: 1}}).encode(),
    json.dumps({"features": {f"k{i}": i for i in range(5_000)}}).encode(),
    json.dumps({"features": {"__class__": 1, "model_config": 2, "constructor": 3}}).encode(),
    json.dumps({"features": {"age": {"$ref": "file:///etc/passwd"}}}).encode(),
]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bodies_are_refused_briefly(client: TestClient, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers=JSON)
    assert response.status_code == 422 or (response.status_code, path) == (413, "/predict/batch")
    assert len(response.content) < 10_000
    Refusal.model_validate_json(response.content)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_media_type_is_415(client: TestClient, media_type: str) -> None:
    response = client.post("/predict", content=b"{}", headers={"content-type": media_type})
    assert response.status_code == 415
    assert "application/json" in response.text


def test_a_body_without_end_is_413(client: TestClient) -> None:
    response = client.post("/predict", content=b" " * (64 * 2**20 + 1), headers=JSON)
    assert response.status_code == 413


def test_an_error_inside_is_500_without_its_message(
    heart: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(heart)

    def fail(*_: Any) -> None:
        raise ValueError(f"could not convert {SECRET}")

    monkeypatch.setattr(Release, "answer", fail)
    response = _predict(client)
    assert response.status_code == 500
    assert SECRET not in response.text + caplog.text
    assert "ValueError" in caplog.text


@pytest.fixture(scope="module")
def unsure(folder: Path) -> Release:
    """A text model that abstains below 0.6."""
    config = config_of("pipeline_errors").model_copy(update={"serving": Serving(abstain_below=0.6)})
    return write(folder / "unsure", "pipeline_errors", "logistic_regression", config=config)


def test_a_model_abstains_where_its_best_class_is_too_improbable(unsure: Release) -> None:
    client = client_of(unsure)
    rows = [{"log_text": text} for text in frame_of("pipeline_errors")["log_text"].head(200)]
    told = BatchAnswer.model_validate_json(client.post("/predict/batch", json={"instances": rows}).content).predictions
    answers = unsure.answer(frame_of("pipeline_errors").head(200))
    assert answers.abstained is not None and 5 < answers.abstained.sum() < 195
    for answer, value, abstained in zip(told, answers.values, answers.abstained, strict=True):
        assert answer.abstained == abstained == (answer.prediction is None)
        assert abstained or answer.prediction == value
        assert answer.probabilities is not None and answer.probability == max(answer.probabilities.values())
        assert (answer.probability < 0.6) == abstained
    single = client.post("/predict", json={"features": rows[int(answers.abstained.argmax())]}).json()
    assert (single["prediction"], single["abstained"]) == (None, True)
    shown = client.get("/openapi.json").json()["components"]["schemas"]["Answer"]
    assert {"type": "null"} in shown["properties"]["prediction"]["anyOf"] and "prediction" in shown["required"]


def test_a_model_that_always_answers_says_nothing_of_abstaining(client: TestClient) -> None:
    assert "abstained" not in _predict(client).json()


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, False), ("", False), (" \n\t ", False), ("\x00\x07", False), ("é 日本 \u2028", False),
     ("x" * 400_000, False), ("error " * 70_000, True), ("5" * 400_000, True)],
)  # fmt: skip
def test_any_text_is_answered_and_one_without_known_words_as_an_empty_one(
    unsure: Release, text: str | None, says: bool
) -> None:
    client = client_of(unsure)
    response = client.post("/predict", json={"features": {"log_text": text}})
    assert response.status_code == 200
    assert sum(response.json()["probabilities"].values()) == pytest.approx(1)
    empty = client.post("/predict", json={"features": {}}).json()["probabilities"]
    assert (response.json()["probabilities"] != empty) == says


@pytest.mark.parametrize("text", [7, True, ["a"], {"a": "b"}, "x" * 1_000_001])
def test_what_is_no_text_or_too_long_a_one_is_refused(unsure: Release, text: Any) -> None:
    response = client_of(unsure).post("/predict", json={"features": {"log_text": text}})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "features", "log_text"] and len(response.text) < 500


def test_a_text_must_be_there_where_none_may_be_missing(unsure: Release, folder: Path) -> None:
    columns = {name: c.model_copy(update={"missing": 0.0}) for name, c in unsure.config.columns.items()}
    config = unsure.config.model_copy(update={"columns": columns})
    client = client_of(write(folder / "needed", "pipeline_errors", "logistic_regression", config=config))
    assert [client.post("/predict", json={"features": {"log_text": text}}).status_code for text in ("", None, "a")] == [
        422, 422, 200,
    ]  # fmt: skip
    shown = client.get("/openapi.json").json()["components"]["schemas"]["PipelineErrorsFeatures"]
    assert (shown["properties"]["log_text"]["type"], shown["properties"]["log_text"]["maxLength"]) == (
        "string",
        1_000_000,
    )


def test_every_kind_of_request_is_counted_by_model_and_version(client: TestClient, heart: Release) -> None:
    metrics()

    def counted() -> list[float]:
        same = {"model": "heart_disease", "version": "12", "variant": "champion"}
        asked = (("predict", "200"), ("batch", "200"), ("outcomes", "200"), ("outcomes", "422"))
        told = [{**same, "route": route, "status": status} for route, status in asked]
        return [REGISTRY.get_sample_value("gauntlet_requests_total", labels) or 0.0 for labels in told]

    before, inputs = counted(), heart.golden[0].inputs
    identity = client.post("/predict", json={"features": inputs}).json()["prediction_id"]
    client.post("/predict/batch", json={"instances": [inputs]})
    outcome = {"prediction_id": identity, "outcome": heart.schema.labels[0]}
    assert client.post("/outcomes", json=[outcome]).json()["recorded"] == 1
    assert client.post("/outcomes", json=[{"outcome": 1}]).status_code == 422
    assert [after - one for after, one in zip(counted(), before, strict=True)] == [1.0] * 4
