"""Fitted pipelines as files that are the same whenever the fit is the same, and that hold no pickle.

Everything but an XGBoost estimator is stored as skops, rewritten: skops names members after memory addresses and
stamps times, and scikit-learn's trees carry memory that was never written (padding, a flag of leaves). An XGBoost
estimator is stored as its booster (UBJ) and its parameters (JSON). What is loaded is checked against `TRUSTED`
before anything of it is built.
"""

import copy
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.errors import WorkError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

PIPELINE, BOOSTER, BOOSTER_PARAMETERS = "pipeline.skops", "booster.ubj", "booster.json"
TRUSTED = frozenset(
    {
        "bentos.features.DerivedColumns",
        "bentos.text.TextTfidf",
        "builtins.bool",
        "builtins.dict",
        "builtins.float",
        "builtins.int",
        "builtins.list",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "numpy.bool",
        "numpy.dtype",
        "numpy.float32",
        "numpy.float64",
        "numpy.int32",
        "numpy.int64",
        "numpy.ndarray",
        "scipy.sparse._csr.csr_matrix",
        "sklearn.compose._column_transformer.ColumnTransformer",
        "sklearn.compose._column_transformer._RemainderColsList",
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.ensemble._forest.RandomForestRegressor",
        "sklearn.impute._base.MissingIndicator",
        "sklearn.impute._base.SimpleImputer",
        "sklearn.linear_model._base.LinearRegression",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.Ridge",
        "sklearn.pipeline.FeatureUnion",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._encoders.OneHotEncoder",
        "sklearn.preprocessing._encoders.OrdinalEncoder",
        "sklearn.preprocessing._function_transformer.FunctionTransformer",
        "sklearn.tree._classes.DecisionTreeClassifier",
        "sklearn.tree._classes.DecisionTreeRegressor",
        "sklearn.tree._tree.Tree",
    }
)
_NODES = frozenset(
    {
        "DictNode",
        "DTypeNode",
        "JsonNode",
        "ListNode",
        "NdArrayNode",
        "ObjectNode",
        "SliceNode",
        "SparseMatrixNode",
        "TreeNode",
        "TupleNode",
        "TypeNode",
    }
)
_XGBOOST = {"XGBClassifier", "XGBRegressor"}
_STEP = "model"


def dump_pipeline(pipeline: "Pipeline") -> dict[str, bytes]:
    """File name to content; equal content for equal fits.

    Raises:
        WorkError: The pipeline holds a type that is not in `TRUSTED`, or does not end in a step named "model".
    """
    import skops.io
    from sklearn.pipeline import Pipeline

    name, estimator = pipeline.steps[-1]
    if name != _STEP:
        raise WorkError(f"a Release's pipeline ends in a step named '{_STEP}'; this one ends in '{name}'")
    files: dict[str, bytes] = {}
    steps = list(pipeline.steps)
    if type(estimator).__name__ in _XGBOOST:
        steps[-1] = (_STEP, "passthrough")
        files[BOOSTER] = bytes(estimator.get_booster().save_raw("ubj"))
        files[BOOSTER_PARAMETERS] = _json({"class": type(estimator).__name__, "parameters": _parameters(estimator)})
    state, members = _read(skops.io.dumps(Pipeline(steps)))
    _require_trusted(state)
    files[PIPELINE] = _write(state, members)
    return dict(sorted(files.items()))


def search_no_types() -> None:
    """Import skops so that it trusts no class of scikit-learn by itself: what is loaded here is held against `TRUSTED`.

    To trust them all it imports every module of scikit-learn, Dask too: a fifth of what a worker takes to start. For
    processes that load nothing but Releases.
    """
    from sklearn import utils

    search = utils.all_estimators
    utils.all_estimators = list
    try:
        import_module("skops.io")
    finally:
        utils.all_estimators = search


def load_pipeline(read: Callable[[str], bytes | None]) -> "Pipeline":
    """Build the pipeline from its files.

    Args:
        read: Content of a file by name; None when there is none.

    Raises:
        WorkError: A file is no pipeline, or holds a type that is not in `TRUSTED`.
    """
    import skops.io

    content = read(PIPELINE)
    if content is None:
        raise WorkError(f"the Release has no {PIPELINE}")
    try:
        state, _ = _read(content)
        older = state["protocol"] != _read(skops.io.dumps(None))[0]["protocol"]
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise WorkError(f"{PIPELINE} is no skops file") from None
    if older:
        raise WorkError(f"{PIPELINE} was written by another version of skops")
    _require_trusted(state)
    pipeline: Pipeline = skops.io.loads(content, trusted=sorted(TRUSTED))
    booster, parameters = read(BOOSTER), read(BOOSTER_PARAMETERS)
    if booster is not None and parameters is not None:
        pipeline.steps[-1] = (_STEP, _xgboost(booster, parameters))
    return pipeline


def pipeline_digest(read: Callable[[str], bytes | None]) -> str:
    """SHA-256 of the fitted pipeline, without `n_jobs`: how many cores fit it is not what was fitted."""
    digest = hashlib.sha256()
    state, members = _read(read(PIPELINE) or b"")
    for node in _nodes(state):
        if node.get("__loader__") == "DictNode" and "n_jobs" in node["content"]:
            node["content"]["n_jobs"] = None
    digest.update(_json(state))
    for name in sorted(members):
        digest.update(hashlib.sha256(members[name]).digest())
    for name in (BOOSTER_PARAMETERS, BOOSTER):
        digest.update(hashlib.sha256(read(name) or b"").digest())
    return digest.hexdigest()


def types_in(content: bytes) -> set[str]:
    """Dotted names of all types that a skops file would build."""
    state, _ = _read(content)
    return {f"{node['__module__']}.{node['__class__']}" for node in _nodes(state)}


def _require_trusted(state: Any) -> None:
    nodes = list(_nodes(state))
    strange = {f"{node['__module__']}.{node['__class__']}" for node in nodes} - TRUSTED
    strange |= {str(node["__loader__"]) for node in nodes} - _NODES
    if strange:
        shown = ", ".join(sorted(strange)[:5])
        raise WorkError(f"{PIPELINE} holds types that are not trusted: {shown} (the list is bentos/canonical.py)")


def _nodes(state: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a skops state, outermost first."""
    stack = [state]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if "__loader__" in part:
                yield part
            stack.extend(reversed(part.values()))
        elif isinstance(part, list):
            stack.extend(reversed(part))


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(members.pop("schema.json")), members


def _write(state: dict[str, Any], members: Mapping[str, bytes]) -> bytes:
    """The canonical zip: no ids, members numbered as they appear and equal ones stored once, no times."""
    state = copy.deepcopy(state)
    renamed: dict[bytes, str] = {}
    for node in _nodes(state):
        # skops shares objects by id. Whether two equal strings are one object is chance; a fitted pipeline answers
        # the same without sharing.
        node.pop("__id__", None)
        if "file" in node:
            content = _defined(members[node["file"]])
            node["file"] = renamed.setdefault(content, f"{len(renamed)}.npy")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [("schema.json", _json(state)), *((name, data) for data, name in renamed.items())]:
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, content)
    return buffer.getvalue()


def _defined(content: bytes) -> bytes:
    """The same array with every byte defined: padding, and the flag that trees never write for leaves, are zero."""
    import numpy as np

    array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.names is None:
        return content
    clean: np.ndarray[Any, Any] = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        clean[name] = array[name]
    if {"left_child", "missing_go_to_left"} <= set(array.dtype.names):
        clean["missing_go_to_left"][clean["left_child"] == -1] = 0
    buffer = io.BytesIO()
    # Not np.save: it copies through a buffer of its own, whose padding it leaves as it finds it.
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(clean))
    return buffer.getvalue() + clean.tobytes()


def _parameters(estimator: Any) -> dict[str, Any]:
    """What the user set, in order of name; the rest is XGBoost's default. The number of threads is left out."""
    given = {k: v for k, v in sorted(estimator.get_params(deep=False).items()) if v is not None and k != "n_jobs"}
    return {k: v for k, v in given.items() if not (isinstance(v, float) and math.isnan(v))}


def _xgboost(booster: bytes, stored: bytes) -> Any:
    import xgboost

    described = json.loads(stored)
    if described["class"] not in _XGBOOST:
        raise WorkError(f"{BOOSTER_PARAMETERS} names a class that is not trusted")
    estimator = getattr(xgboost, described["class"])(**described["parameters"], n_jobs=1)
    parameters = estimator.get_params(deep=False)
    estimator.load_model(bytearray(booster))
    return estimator.set_params(**parameters)  # loading overwrites some with what the booster came to


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
