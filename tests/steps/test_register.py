import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.inputs import plain_rows
from bentos.release import Release
from models.errors import DataError
from stacks import registry, runs
from steps.register import register_release, requirements_of, signature_of
from steps.train import fit_family
from tests.steps.learning import configured, rows_of
from tests.steps.test_evaluate import released

ANYWHERE = """
import importlib.metadata, json, sys
clone = sys.argv[1]
sys.path = [entry for entry in sys.path if entry not in ("", clone)]
real = importlib.metadata.version
def version(name):
    if name == "gauntlet":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[2])
answers = model.predict(pd.read_json(sys.argv[3], orient="records"))
import bentos
assert not bentos.__file__.startswith(clone), bentos.__file__
print(json.dumps(answers["probabilities"].tolist()))
"""


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A heart_disease Release, registered and champion."""
    folder = tmp_path_factory.mktemp("champion") / "r"
    config = configured("heart_disease").model_copy(update={"name": "registered"})
    release = released(folder, config, rows_of("heart_disease").train, "xgboost", n_estimators=10)
    number = register_release(folder, runs.start_run("registered"))
    registry.mirror("registered", champion=number, previous=None, challenger=None)
    return release


def load(model: str = "registered") -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(f"models:/{model}@champion")


def test_mlflow_gives_the_release_s_answers_to_raw_rows(champion: Release) -> None:
    test = rows_of("heart_disease").test
    answers = champion.answer(test)
    raw = pd.DataFrame(plain_rows(test, champion.schema.inputs))
    said = load().predict(raw)
    assert said["prediction"].tolist() == answers.values.tolist()
    assert answers.probabilities is not None
    expected = [dict(zip(champion.schema.labels, row, strict=True)) for row in answers.probabilities.tolist()]
    assert said["probabilities"].tolist() == expected


def test_rows_of_a_csv_file_and_of_json_are_answered_alike(champion: Release, tmp_path: Path) -> None:
    raw = pd.DataFrame(plain_rows(rows_of("heart_disease").test, champion.schema.inputs))
    raw.to_csv(tmp_path / "rows.csv", index=False)
    expected = load().predict(raw)["probabilities"].tolist()
    for read in ({"dtype": str, "keep_default_na": True}, {}):
        frame = pd.read_csv(tmp_path / "rows.csv", **read)  # type: ignore[call-overload]
        assert load().predict(frame)["probabilities"].tolist() == expected


def test_one_row_with_gaps_and_without_a_column_that_may_be_missing_is_answered(champion: Release) -> None:
    row = {"age": 54, "sex": 1, "cp": 4, "trestbps": None, "chol": None, "fbs": "0", "restecg": 0.0, "thalach": 150}
    said = load().predict(pd.DataFrame([row], index=["patient"]))
    assert said.index.tolist() == ["patient"]
    assert said.loc["patient", "prediction"] in ("healthy", "disease")
    assert sum(said.loc["patient", "probabilities"].values()) == pytest.approx(1)


def test_what_cannot_be_read_is_refused_in_words_without_values(champion: Release) -> None:
    from mlflow.exceptions import MlflowException

    raw = pd.DataFrame(plain_rows(rows_of("heart_disease").test.head(3), champion.schema.inputs))
    with pytest.raises(DataError, match="1 columns cannot be read: age: 1 rows, no whole number") as caught:
        load().predict(raw.astype({"age": object}).assign(age=[50, "secret", 60]))
    assert "secret" not in str(caught.value)
    with pytest.raises(MlflowException, match="missing inputs"):
        load().predict(raw.drop(columns="age"))


def test_it_loads_where_gauntlet_is_not_installed(champion: Release, tmp_path: Path) -> None:
    rows = plain_rows(rows_of("heart_disease").test.head(5), champion.schema.inputs)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    clone = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", ANYWHERE, clone, "models:/registered@champion", str(tmp_path / "rows.json")]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert told.returncode == 0, told.stderr[-2000:]
    said = json.loads(told.stdout.splitlines()[-1])
    expected = champion.answer(rows_of("heart_disease").test.head(5)).probabilities
    np.testing.assert_allclose([[row[label] for label in champion.schema.labels] for row in said], expected, atol=1e-6)


def test_loading_leaves_the_path_to_our_own_packages(champion: Release) -> None:
    before = list(sys.path)
    load()
    import bentos.release

    assert Path(bentos.release.__file__).is_relative_to(Path(__file__).parents[2])
    assert sys.path == before


def test_a_release_keeps_its_number_and_its_example_and_signature(champion: Release) -> None:
    again = register_release(champion.directory, runs.start_run("registered"))
    assert again == registry.aliases("registered")["champion"]
    metadata = load().metadata
    assert metadata.signature.inputs.input_names() == list(champion.schema.inputs)
    assert "age" in metadata.signature.inputs.required_input_names()
    assert "ca" in metadata.signature.inputs.optional_input_names()
    assert metadata.signature == signature_of(champion.schema)
    example = load().input_example
    assert list(example.columns) == list(champion.schema.inputs) and len(example) == 5
    stored = Path(registry.client().get_logged_model(registry.version("registered", again).model_id).artifact_location)
    code = {path.relative_to(stored / "code").as_posix() for path in (stored / "code").rglob("*") if path.is_file()}
    assert {"bentos/release.py", "models/config.py"} <= code
    assert {Path(name).suffix for name in code} == {".py"}
    pins = (stored / "requirements.txt").read_text().split()
    assert [pin.split("==")[0] for pin in pins if pin.startswith("xgboost")] == ["xgboost"]


def test_only_what_a_family_needs_is_required(tmp_path: Path) -> None:
    config = configured("wine").model_copy(update={"name": "slim"})
    release = released(tmp_path / "r", config, rows_of("wine").train)
    assert not [pin for pin in requirements_of(release) if pin.startswith("xgboost")]


def test_a_regression_answers_numbers(tmp_path: Path) -> None:
    config, rows = configured("houses"), rows_of("houses")
    release = released(tmp_path / "r", config, rows.train, "linear_regression")
    number = register_release(tmp_path / "r", runs.start_run("houses"))
    registry.mirror("houses", champion=number, previous=None, challenger=None)
    said = load("houses").predict(pd.DataFrame(plain_rows(rows.test, release.schema.inputs)))
    assert list(said.columns) == ["prediction"]
    np.testing.assert_allclose(
        said["prediction"], fit_family(config, "linear_regression", {}, rows.train).predict(rows.test)
    )


def test_a_run_of_another_store_does_not_stop_registering(tmp_path: Path) -> None:
    config = configured("wine").model_copy(update={"name": "moved"})
    released(tmp_path / "r", config, rows_of("wine").train)
    assert register_release(tmp_path / "r", "0" * 32) == 1
