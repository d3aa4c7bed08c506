import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from bentos.canonical import BOOSTER, BOOSTER_PARAMETERS, PIPELINE, TRUSTED, dump_pipeline, load_pipeline, types_in
from models.errors import WorkError
from tests.bentos.samples import fitted, frame_of


def test_skops_bytes_of_one_object_differ_and_ours_do_not() -> None:
    """Trap: skops names members after memory addresses."""
    pipeline = fitted("wine", "random_forest")
    assert skops.io.dumps(pipeline) != skops.io.dumps(pipeline)
    assert dump_pipeline(pipeline) == dump_pipeline(pipeline)


def test_trees_hold_bytes_that_were_never_written_and_ours_are_zero() -> None:
    """Trap: scikit-learn's nodes have padding, and a flag that leaves leave as the memory was."""
    forest = RandomForestClassifier(5, random_state=0).fit(np.arange(80).reshape(40, 2), np.arange(40) % 2)
    files = dump_pipeline(Pipeline([("scale", StandardScaler()), ("model", forest)]))
    with zipfile.ZipFile(io.BytesIO(files[PIPELINE])) as archive:
        contents = [archive.read(name) for name in archive.namelist() if name.endswith(".npy")]
    nodes = [(np.load(io.BytesIO(content)), content) for content in contents if b"left_child" in content[:500]]
    assert len(nodes) == 5
    for array, content in nodes:
        assert not array["missing_go_to_left"][array["left_child"] == -1].any()
        used = sum(array.dtype.fields[name][0].itemsize for name in array.dtype.names)  # type: ignore[index]
        assert used < array.dtype.itemsize
        # As stored: numpy may fill padding anew when it loads.
        raw = np.frombuffer(content[-array.nbytes :], np.uint8).reshape(len(array), -1)
        assert not raw[:, used:].any()


def test_xgboost_comes_back_with_answers_and_parameters() -> None:
    """Trap: UBJ restores answers, not hyperparameters."""
    pipeline, frame = fitted("heart_disease", "xgboost"), frame_of("heart_disease")
    files = dump_pipeline(pipeline)
    assert set(files) == {PIPELINE, BOOSTER, BOOSTER_PARAMETERS}
    loaded = load_pipeline(files.get)
    np.testing.assert_array_equal(loaded.predict_proba(frame), pipeline.predict_proba(frame))
    kept = {k: v for k, v in pipeline[-1].get_params().items() if v is not None and v == v}
    assert {k: loaded[-1].get_params()[k] for k in kept} == kept
    assert type(pipeline.steps[-1][1]).__name__ == "XGBClassifier"  # the given pipeline is left as it was


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_only_listed_types_are_stored(family: str) -> None:
    content = dump_pipeline(fitted("heart_disease", family))[PIPELINE]  # type: ignore[arg-type]
    assert types_in(content) <= TRUSTED
    assert b"pickle" not in content


def test_a_type_outside_the_list_is_neither_stored_nor_loaded(tmp_path: Path) -> None:
    x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    strange = Pipeline([("scale", StandardScaler()), ("model", SGDClassifier().fit(x, y))])
    with pytest.raises(WorkError, match="SGDClassifier"):
        dump_pipeline(strange)
    stored = skops.io.dumps(strange)
    assert skops.io.get_untrusted_types(data=stored) == []  # skops alone would have loaded it
    with pytest.raises(WorkError, match="SGDClassifier"):
        load_pipeline({PIPELINE: stored}.get)


def test_functions_and_forged_loaders_are_refused() -> None:
    x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    model = RandomForestClassifier(2).fit(x, y)
    with pytest.raises(WorkError, match="log1p"):
        dump_pipeline(Pipeline([("log", FunctionTransformer(np.log1p)), ("model", model)]))
    files = dump_pipeline(Pipeline([("scale", StandardScaler()), ("model", model)]))
    for change in (
        {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode"},
        {"__class__": "methodcaller", "__module__": "operator", "__loader__": "OperatorFuncNode", "attrs": {}},
        {"__loader__": "MethodNode"},
    ):
        with pytest.raises(WorkError, match="not trusted"):
            load_pipeline({PIPELINE: _forged(files[PIPELINE], change)}.get)
    with pytest.raises(WorkError, match="another version of skops"):
        load_pipeline({PIPELINE: _forged(files[PIPELINE], {"protocol": 0})}.get)
    for rubbish in (b"", b"PK", b"\x80\x04K\x01."):
        with pytest.raises(WorkError, match="no skops file"):
            load_pipeline({PIPELINE: rubbish}.get)


def test_a_pipeline_must_end_in_its_model() -> None:
    with pytest.raises(WorkError, match="ends in 'last'"):
        dump_pipeline(Pipeline([("last", StandardScaler())]))


def _forged(content: bytes, change: dict[str, object]) -> bytes:
    """The same archive, whose outermost node is another one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps(json.loads(data) | change) if name == "schema.json" else data)
    return buffer.getvalue()
