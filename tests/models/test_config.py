import json
from pathlib import Path

import pytest
import yaml

from models import config as config_module
from models.config import ModelConfig, load_model, model_names, parse_set, resolve
from models.errors import LIMIT, ConfigError, DataError

MODELS = Path(config_module.__file__).parent


@pytest.mark.parametrize("name", model_names())
def test_every_shipped_yaml_is_valid_and_names_its_schema(name: str) -> None:
    config = load_model(name).config
    assert config.name == name
    assert config.feature_names()
    assert (MODELS / f"{name}.yaml").read_text().startswith("# yaml-language-server: $schema=schema.json")


def test_schema_for_editors_is_current() -> None:
    assert json.loads((MODELS / "schema.json").read_text()) == ModelConfig.model_json_schema()


def test_layers_and_who_set_what() -> None:
    resolved = load_model("wine", [parse_set(["tuning.trials=3", "promotion={min_improvement: {value: 0.1}}"])])
    assert resolved.config.tuning.trials == 3
    assert resolved.config.tuning.folds == 5
    assert resolved.config.promotion.min_improvement.of == "metric"
    assert resolved.origins["tuning.trials"] == "--set"
    assert resolved.origins["tuning.folds"] == "models/base.yaml"
    assert resolved.origins["metric"] == "models/wine.yaml"


def test_a_range_is_replaced_whole() -> None:
    layer = parse_set(["tuning.candidates.logistic_regression.C={choice: [1.0, 2.0]}"])
    parameter = load_model("wine", [layer]).config.tuning.candidates["logistic_regression"]["C"]
    assert parameter == config_module.Parameter(choice=(1.0, 2.0))


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("tunning.trials=3", "did you mean 'tuning'?"),
        ("tuning.trials=many", "tuning.trials"),
        ("tuning.trials=-1", "greater than or equal to 0"),
        ("columns.age.typ=number", "did you mean 'type'?"),
        ("columns.age.range=[9, 1]", "runs backwards"),
        ("columns.cp.range=[1, 4]", "has no range"),
        ("columns.age.missing=1.5", "less than or equal to 1"),
        ("derived.q={ratio: [age, chl]}", "did you mean 'chol'?"),
        ("derived.q={ratio: [age, chol], log: age}", "found ratio, log"),
        ("derived.q={bin: age, edges: [3, 2]}", "edges must rise"),
        ("gates.roc_auc={min: 0.5, max: 0.6}", "min"),
        ("features.exclude=[nope]", "matches no column"),
        ("split={by: time}", "needs `column`"),
        ("target.column=age", "must not be listed"),
        ("sources=[{name: a, kind: cvs}]", "sklearn"),
        ("serving.risk={low: 0.2}", "begin at 0"),
        ("task=regression", "serving.risk: a regression answers without probabilities"),
        ("tuning.candidates.xgboost.max_depth={integer: [5, 2]}", "must rise"),
        ("tuning.trials", "write key=value"),
        ("=3", "write key=value"),
        ("seed=[", "no YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model("heart_disease", [parse_set([assignment])])
    assert said in str(caught.value)
    assert len(str(caught.value)) <= LIMIT
    assert caught.value.exit_code == 2


def test_unknown_model_names_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'whine'; did you mean 'wine'\?"):
        load_model("whine")
    with pytest.raises(ConfigError, match="unknown model"):
        load_model("../models/wine")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: m\nname: n\n", "key 'name' twice"),
        ("- a\n- b\n", "must hold a mapping"),
        ("a: [", "line"),
        ("name: other\n", "Field required"),
    ],
)
def test_a_broken_yaml_is_a_clear_error(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.yaml").write_text(text)
    monkeypatch.setenv("GAUNTLET_MODELS", str(tmp_path))
    with pytest.raises(ConfigError, match=said):
        load_model("m")


def test_binary_junk_is_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.yaml").write_bytes(bytes(range(256)))
    monkeypatch.setenv("GAUNTLET_MODELS", str(tmp_path))
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        load_model("m")


def test_personal_columns_are_never_features_and_never_derived_from() -> None:
    wine = yaml.safe_load((MODELS / "wine.yaml").read_text())
    wine["columns"]["alcohol"]["personal"] = True
    layer = config_module.Layer("test", wine)
    assert "alcohol" not in resolve([layer]).config.feature_names()
    wine["derived"] = {"strength": {"log": "alcohol"}}
    with pytest.raises(ConfigError, match="'alcohol' is personal"):
        resolve([layer])


def test_inputs_are_what_the_features_need() -> None:
    config = load_model(
        "heart_disease", [parse_set(["features={include: [rate_by_age, ch*], exclude: [chol]}"])]
    ).config
    assert config.feature_names() == ["rate_by_age"]
    assert config.input_names() == ["age", "thalach"]


def test_what_shapes_the_model_leaves_out_what_does_not() -> None:
    plain = load_model("wine").config
    same = load_model("wine", [parse_set(["logging.format=json", "tuning.seconds=9", "gates.accuracy.min=0.1"])]).config
    other = load_model("wine", [parse_set(["tuning.folds=3"])]).config
    assert plain.shaping() == same.shaping()
    assert plain.shaping() != other.shaping()


def test_a_step_sees_only_its_part() -> None:
    config = load_model("wine", [parse_set(["gates.accuracy.min=0.1", "validation.min_rows=60"])]).config
    part = config.part("validation")
    rebuilt = ModelConfig.model_validate_json(json.dumps(part))
    assert rebuilt.validation.min_rows == 60
    assert rebuilt.gates == {}


def test_error_text_is_bounded() -> None:
    text = str(DataError("x" * 100_000))
    assert len(text) <= LIMIT
    assert "more characters" in text
