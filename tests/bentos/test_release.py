import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from bentos.inputs import plain_rows, typed_rows
from bentos.release import Release, TooLarge, add_evidence
from bentos.schema import labels_of
from models.errors import DataError, WorkError
from tests.bentos.samples import config_of, fitted, frame_of, sums, write

CASES = [
    ("wine", "logistic_regression"),
    ("heart_disease", "logistic_regression"),
    ("heart_disease", "random_forest"),
    ("heart_disease", "xgboost"),
    ("houses", "linear_regression"),
    ("houses", "random_forest"),
    ("houses", "xgboost"),
    ("pipeline_errors", "logistic_regression"),
]


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write(tmp_path_factory.mktemp("wine") / "release", "wine", "logistic_regression")


@pytest.mark.parametrize(("model", "family"), CASES)
def test_what_is_loaded_answers_exactly_as_what_was_fitted(model: str, family: Any, tmp_path: Path) -> None:
    pipeline, frame = fitted(model, family), frame_of(model)
    release = Release.open(write(tmp_path / "r", model, family, pipeline=pipeline).directory)
    answers = release.answer(frame)
    assert release.family == family
    if release.schema.task == "regression":
        assert answers.probabilities is None
        np.testing.assert_array_equal(answers.values, pipeline.predict(frame).astype(float))
    else:
        np.testing.assert_array_equal(answers.probabilities, pipeline.predict_proba(frame).astype(float))
        codes = pipeline.predict(frame)
        assert list(answers.values) == [release.schema.labels[code] for code in codes]


SERVING = """
import sys
from pathlib import Path

from sklearn import utils

from bentos.canonical import search_no_types
from bentos.release import Release
from bentos.served import Served

search = utils.all_estimators
search_no_types()
assert utils.all_estimators is search
assert "sklearn.neural_network" not in sys.modules, "all of scikit-learn was imported"
for folder in sys.argv[1:]:
    Served.load(Release.open(Path(folder)), 1)
    print("answers")
"""


def test_a_service_trusts_no_class_by_itself_and_serves_each_family(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(number), *case).directory for number, case in enumerate(CASES)]  # type: ignore[arg-type]
    done = subprocess.run([sys.executable, "-c", SERVING, *map(str, folders)], capture_output=True, text=True)
    assert done.stdout.split() == ["answers"] * len(CASES), done.stderr


@pytest.mark.parametrize(("model", "family"), CASES)
def test_one_row_is_answered_as_in_a_batch(model: str, family: Any, tmp_path: Path) -> None:
    release, frame = write(tmp_path / "r", model, family), frame_of(model).head(40)
    batch = release.answer(frame)
    for row in range(len(frame)):
        alone = release.answer(frame.iloc[[row]])
        if batch.probabilities is None:
            assert alone.values[0] == pytest.approx(batch.values[row], rel=1e-12)
        else:
            assert alone.probabilities is not None
            assert alone.probabilities[0] == pytest.approx(batch.probabilities[row], abs=1e-12)


@pytest.mark.parametrize(("model", "family"), CASES)
def test_golden_answers_are_the_release_s_own(model: str, family: Any, tmp_path: Path) -> None:
    release = write(tmp_path / "r", model, family)
    inputs = release.schema.inputs
    assert len(release.golden) == 20
    typed = typed_rows([list(golden.inputs.values()) for golden in release.golden], inputs)
    assert not typed.problems
    answers = release.answer(typed.frame)
    for row, golden in enumerate(release.golden):
        assert list(golden.inputs) == list(inputs)
        if answers.probabilities is None:
            assert golden.prediction == pytest.approx(answers.values[row], rel=1e-9)
        else:
            assert golden.prediction == answers.values[row]
            assert golden.probabilities == pytest.approx(answers.probabilities[row], abs=1e-9)


@pytest.mark.parametrize("model", ["wine", "heart_disease", "houses"])
def test_rows_of_json_come_back_as_the_same_typed_frame(model: str) -> None:
    frame = frame_of(model)
    inputs = {name: config_of(model).columns[name] for name in config_of(model).input_names()}
    rows = json.loads(json.dumps(plain_rows(frame, inputs), allow_nan=False))
    typed = typed_rows([list(row.values()) for row in rows], inputs)
    assert not typed.problems
    pd.testing.assert_frame_equal(typed.frame, frame[list(inputs)].reset_index(drop=True))


def test_the_same_fit_is_the_same_bytes_in_two_processes_on_one_core_and_on_all(tmp_path: Path) -> None:
    pairs = [":".join(case) for case in CASES]
    runs = []
    for run, one_core in enumerate((True, False)):
        runs.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.bentos.samples", str(tmp_path / str(run)), *pairs],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONHASHSEED": str(run), "GAUNTLET_SECRET": f"secret-{run}"},
                preexec_fn=_on_one_core if one_core else None,
            )
        )
    told = [json.loads(run.communicate()[0].splitlines()[-1]) for run in runs]
    assert told[0] == told[1]
    assert len({entry["digest"] for entry in told[0].values()}) == len(pairs)


def test_what_is_no_part_of_the_model_is_no_part_of_its_digest(wine: Release, tmp_path: Path) -> None:
    config = config_of("wine")
    elsewhere = config.model_copy(
        update={
            "sources": (config.sources[0].model_copy(update={"name": "other"}),),
            "logging": config.logging.model_copy(update={"level": "ERROR"}),
            "tuning": config.tuning.model_copy(update={"seconds": 1.0}),
        }
    )
    same = write(tmp_path / "a", "wine", "logistic_regression", config=elsewhere, evidence={"seconds": 99})
    assert same.digest == wine.digest
    for family in ("random_forest", "xgboost"):
        one, four = (
            write(tmp_path / f"{family}-{n}", "wine", family, pipeline=fitted("wine", family, n)) for n in (1, 4)
        )
        assert one.digest == four.digest


@pytest.mark.parametrize(
    "change", [{"data_digest": "e" * 64}, {"trials": 8}, {"metrics": {"accuracy": 0.92}}, {"config": "seed"}]
)
def test_what_shapes_the_model_is_part_of_its_digest(wine: Release, tmp_path: Path, change: dict[str, Any]) -> None:
    if "config" in change:
        change = {"config": config_of("wine").model_copy(update={"seed": 43})}
    assert write(tmp_path / "r", "wine", "logistic_regression", **change).digest != wine.digest


def test_a_release_written_again_from_what_was_loaded_is_the_same(tmp_path: Path) -> None:
    for family in ("logistic_regression", "random_forest", "xgboost"):
        first = write(tmp_path / f"{family}-1", "heart_disease", family)
        again = write(tmp_path / f"{family}-2", "heart_disease", family, pipeline=first.pipeline)
        assert (sums(again), again.digest) == (sums(first), first.digest)


@pytest.mark.parametrize("name", ["pipeline.skops", "config.yaml", "golden.json", "reference/sample.parquet"])
def test_a_changed_file_is_never_loaded(name: str, wine: Release, tmp_path: Path) -> None:
    copy = _copy(wine, tmp_path)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(WorkError, match=f"{name} is not what its manifest says"):
        Release.open(copy)


def test_a_missing_an_extra_and_a_linked_file_are_refused(wine: Release, tmp_path: Path) -> None:
    copy = _copy(wine, tmp_path)
    (copy / "evidence/more.json").write_text("{}")
    with pytest.raises(WorkError, match=r"evidence/more\.json not in its manifest"):
        Release.open(copy)
    (copy / "evidence/more.json").unlink()
    Release.open(copy)
    aside = (copy / "metrics.json").rename(tmp_path / "metrics.json")
    with pytest.raises(WorkError, match=r"metrics\.json missing"):
        Release.open(copy)
    (copy / "metrics.json").symlink_to(aside)
    with pytest.raises(WorkError, match=r"metrics\.json is not what"):
        Release.open(copy)


def test_a_file_changed_after_opening_is_not_used(wine: Release, tmp_path: Path) -> None:
    release = Release.open(_copy(wine, tmp_path))
    (release.directory / "pipeline.skops").write_bytes(b"other")
    with pytest.raises(WorkError, match="is not what its manifest says"):
        _ = release.pipeline


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"format": 1}', '{"format": 2, "files": {}}'])
def test_a_folder_without_a_sound_manifest_is_no_release(manifest: str | None, tmp_path: Path) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(WorkError, match=r"Release"):
        Release.open(tmp_path)


def test_a_manifest_with_another_digest_is_noticed(wine: Release, tmp_path: Path) -> None:
    copy = _copy(wine, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"release_digest": "0" * 64}))
    with pytest.raises(WorkError, match="digest"):
        _ = Release.open(copy).digest


def test_evidence_is_kept_added_and_never_replaced(wine: Release, tmp_path: Path) -> None:
    copy = _copy(wine, tmp_path)
    digest = Release.open(copy).digest
    add_evidence(copy, "gates", [{"name": "accuracy"}])
    add_evidence(copy, "card.md", "# A model")
    add_evidence(copy, "roc.png", b"\x89PNG")
    release = Release.open(copy)
    assert release.digest == digest
    assert release.evidence == {
        "times": {"seconds": 1.5},
        "gates": [{"name": "accuracy"}],
        "card.md": "# A model",
        "roc.png": b"\x89PNG",
    }
    with pytest.raises(WorkError, match="already"):
        add_evidence(copy, "gates", {})
    for name in ("../x", "a/b", "Gates", "x.md.md", ""):
        with pytest.raises(WorkError):
            add_evidence(copy, name, {})


def test_the_reference_is_a_sample_with_exact_figures_and_without_persons(tmp_path: Path) -> None:
    frame = pd.concat([frame_of("houses")] * 80, ignore_index=True)
    release = write(tmp_path / "r", "houses", "linear_regression", train=frame)
    reference, summary = release.reference(), release.reference_summary
    assert (len(reference), summary["rows"], summary["sampled"]) == (20_000, 24_000, 20_000)
    assert "owner" not in reference
    assert reference["sold"].dtype == "datetime64[ns]"
    heated = summary["columns"]["heated"]
    assert heated["missing"] == int(frame["heated"].isna().sum())
    assert summary["columns"]["kind"]["categories"] == frame["kind"].value_counts().to_dict()
    assert summary["columns"]["price"]["quantiles"]["0.5"] == pytest.approx(frame["price"].median())
    everything = b"".join(path.read_bytes() for path in release.directory.rglob("*") if path.is_file())
    assert b"pseudonym-" not in everything


def test_the_reference_is_answered_as_the_rows_that_it_holds(tmp_path: Path) -> None:
    frame = frame_of("heart_disease")
    assert frame["thal"].isna().any(), "a category that may be missing"
    release = write(tmp_path / "r", "heart_disease", "xgboost", train=frame)
    answered = release.answer(release.reference()).probabilities
    assert answered is not None
    np.testing.assert_array_equal(answered, release.answer(frame.reset_index(drop=True)).probabilities)


def test_a_release_says_where_it_was_made_without_a_path(wine: Release) -> None:
    manifest = (wine.directory / "manifest.json").read_text()
    assert {"python", "libraries", "kernel"} <= json.loads(manifest).keys()
    assert str(Path(sys.prefix).parent) not in manifest


def test_numbers_beyond_the_arithmetic_are_named_by_row(tmp_path: Path) -> None:
    release, frame = write(tmp_path / "r", "houses", "random_forest"), frame_of("houses").head(3).copy()
    frame.loc[1, "income"] = 1e-300
    with pytest.raises(TooLarge) as caught:
        release.answer(frame)
    assert caught.value.row == 1
    frame.loc[1, "income"] = 1e300
    with pytest.raises(TooLarge):
        release.answer(frame)


def test_what_cannot_become_a_release_is_said(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(WorkError, match="empty directory"):
        write(tmp_path / "full", "wine", "logistic_regression")
    with pytest.raises(WorkError, match="accuracy"):
        write(tmp_path / "a", "wine", "logistic_regression", metrics={"accuracy": float("nan")})
    frame, config = frame_of("wine"), config_of("wine")
    on_labels = fitted("wine", "logistic_regression")
    on_labels.steps[-1] = ("model", LogisticRegression().fit(on_labels[:-1].transform(frame), frame["target"] + "!"))
    with pytest.raises((WorkError, ValueError)):
        write(tmp_path / "b", "wine", "logistic_regression", pipeline=on_labels)
    one = frame[frame["target"] == "class_1"]
    with pytest.raises(DataError, match="two are needed"):
        labels_of(config, one)
    with pytest.raises(DataError, match="no training row lies within"):
        write(tmp_path / "c", "wine", "logistic_regression", train=frame.assign(alcohol=1e6))


def _on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):  # absent on macOS
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _copy(release: Release, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(release.directory, folder / "copy"))
