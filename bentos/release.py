"""The Release: one directory that is logged, promoted, packaged and served."""

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import yaml

from bentos.canonical import dump_pipeline, load_pipeline, pipeline_digest
from bentos.schema import Schema, schema_of
from models.config import Family, ModelConfig
from models.errors import DataError, WorkError, bounded

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from sklearn.pipeline import Pipeline

FORMAT = 1
MANIFEST = "manifest.json"
EVIDENCE = "evidence"
BACKGROUND = "reference/background.json"
_LINEAR: tuple[Family, ...] = ("linear_regression", "logistic_regression")
REFERENCE_ROWS = 20_000
REFERENCE_CHARACTERS = 8_000_000
GOLDEN_ROWS = 20
GOLDEN_CHARACTERS = 2_000
FAMILIES: dict[str, Family] = {
    "LogisticRegression": "logistic_regression",
    "LinearRegression": "linear_regression",
    "Ridge": "linear_regression",
    "RandomForestClassifier": "random_forest",
    "RandomForestRegressor": "random_forest",
    "XGBClassifier": "xgboost",
    "XGBRegressor": "xgboost",
}
_LARGEST = 3.4028234e38  # of a float32, which trees compute with
_TEXTS = (".txt", ".md", ".html", ".csv", ".svg", ".yaml")


@dataclass(frozen=True)
class Answers:
    """What a Release says to n rows.

    Attributes:
        values: Shape (n,): predicted labels (object of str), or numbers (float64) for regression.
        probabilities: Shape (n, k), columns in the order of `Schema.labels`; None for regression.
        abstained: Shape (n,) of bool: rows whose label is not to be told, because it is less probable than
            `serving.abstain_below`; None where the model always answers.
    """

    values: "np.ndarray[Any, Any]"
    probabilities: "np.ndarray[Any, Any] | None"
    abstained: "np.ndarray[Any, Any] | None" = None

    @property
    def told(self) -> "np.ndarray[Any, Any]":
        """Shape (n,): what is said to whoever asked: the values, None where the model abstains."""
        import numpy as np

        if self.abstained is None:
            return self.values
        return np.where(self.abstained, np.array(None, dtype=object), self.values)


@dataclass(frozen=True)
class Golden:
    """A row and its answer, kept with the Release: whoever loads it must answer the same (to 1e-6).

    A prediction is kept where the model would abstain as well: when it does is not part of what was fitted.
    """

    inputs: dict[str, Any]
    prediction: str | float
    probabilities: tuple[float, ...] | None


@dataclass(frozen=True)
class Training:
    """What the pipeline was fitted on, and how.

    Attributes:
        data_digest: Digest of the data that the training rows were split from.
        seed: Seed of the configuration.
        trials: Configurations that tuning tried.
        rows: Number of training rows.
        family: Family of the estimator.
    """

    data_digest: str
    seed: int
    trials: int
    rows: int
    family: Family


@dataclass(frozen=True)
class Whole:
    """All training rows, where only a sample of them is at hand.

    Attributes:
        rows: How many.
        columns: Exact figures of each column, see `column_figures`; personal columns left out.
    """

    rows: int
    columns: Mapping[str, Mapping[str, Any]]


class TooLarge(DataError):
    """A row leads to numbers beyond the model's arithmetic.

    Attributes:
        row: Position of the first such row.
    """

    def __init__(self, row: int) -> None:
        """Name the row."""
        super().__init__(f"row {row}: the values lead to numbers that the model cannot compute with")
        self.row = row


@dataclass(frozen=True)
class Release:
    """A Release on disk whose every file has the sum that its manifest says.

    Sums are checked by `open`, and again on the very bytes that are used.
    """

    directory: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Verify and open.

        Raises:
            WorkError: A file is missing, extra, or its sum differs; or there is no Release.
        """
        release = cls(directory, _manifest(directory))
        sums: Mapping[str, str] = release.manifest["files"]
        found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
        found.discard(MANIFEST)
        if missing := sorted(set(sums) - found):
            raise WorkError(_refusal(directory, f"{_some(missing)} missing"))
        if extra := sorted(found - set(sums)):
            raise WorkError(_refusal(directory, f"{_some(extra)} not in its manifest"))
        for name in sums:
            release._read(name)
        return release

    @cached_property
    def digest(self) -> str:
        """The Release digest, computed from the content: equal for equal data, seed, lock, trials and CPU kernel.

        Raises:
            WorkError: The manifest says another one.
        """
        digest = _release_digest(
            pipeline=pipeline_digest(self._read_optional),
            schema=self._json("schema.json"),
            golden=self._json("golden.json"),
            metrics=self._json("metrics.json"),
            training=self.training,
            config=self.config,
        )
        if digest != self.manifest["release_digest"]:
            raise WorkError(_refusal(self.directory, "its digest is not the one in its manifest"))
        return digest

    @cached_property
    def config(self) -> ModelConfig:
        """The resolved configuration that it was made with."""
        # libyaml's, where PyYAML has it: a service reads this for each model that comes back into memory.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return ModelConfig.model_validate_json(json.dumps(yaml.load(self._read("config.yaml"), loader)))

    @cached_property
    def schema(self) -> Schema:
        """Its inputs and labels."""
        return Schema.model_validate_json(self._read("schema.json"))

    @cached_property
    def pipeline(self) -> "Pipeline":
        """The fitted pipeline, typed frame in.

        Raises:
            WorkError: It holds a type that is not trusted.
        """
        return load_pipeline(self._read_optional)

    @cached_property
    def golden(self) -> tuple[Golden, ...]:
        """A few training rows with their answers."""
        rows = self._json("golden.json")
        return tuple(
            Golden(r["inputs"], r["prediction"], tuple(r["probabilities"]) if r["probabilities"] else None)
            for r in rows
        )

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Its quality metrics, as `write_release` was given them (10 significant digits)."""
        return cast(dict[str, float], self._json("metrics.json"))

    @cached_property
    def training(self) -> Training:
        """What it was fitted on."""
        return Training(**self._json("training.json"))

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """Evidence by name: JSON data, text or bytes, as `write_release` and `add_evidence` were given it."""
        names = [name for name in self.manifest["files"] if name.startswith(f"{EVIDENCE}/")]
        return dict(_parse_evidence(name.removeprefix(f"{EVIDENCE}/"), self._read(name)) for name in names)

    @property
    def data_digest(self) -> str:
        """Digest of the data that the training rows were split from."""
        return self.training.data_digest

    @property
    def family(self) -> Family:
        """Family of the estimator."""
        return self.training.family

    def reference(self) -> "pd.DataFrame":
        """Typed sample of the training rows, at most 20,000, with the target and without personal columns.

        Of a long text the end is there: a text column holds 8 million characters at most.
        """
        import io

        import numpy as np
        import pandas as pd

        sample = pd.read_parquet(io.BytesIO(self._read("reference/sample.parquet")))
        # Parquet gives None back for a missing text, which the pipeline does not take for missing.
        texts = sample.select_dtypes(object)
        return sample.assign(**{str(name): texts[name].where(texts[name].notna(), np.nan) for name in texts})

    @cached_property
    def reference_summary(self) -> dict[str, Any]:
        """Exact figures of all training rows: `rows`, and by column type, missing, quantiles, categories."""
        return cast(dict[str, Any], self._json("reference/summary.json"))

    @cached_property
    def background(self) -> tuple[float, ...] | None:
        """Mean of each prepared feature over the reference; None where explanations do not measure from one."""
        return tuple(self._json(BACKGROUND)) if BACKGROUND in self.manifest["files"] else None

    def answer(self, frame: "pd.DataFrame") -> Answers:
        """Answer a typed frame (columns besides the inputs are ignored).

        Raises:
            TooLarge: A row leads to numbers that the model cannot compute with.
        """
        return self.abstaining(_answer(self.pipeline, self.schema, frame))

    def abstaining(self, answers: Answers) -> Answers:
        """The same answers, without those labels that are less probable than `serving.abstain_below`."""
        least = self.config.serving.abstain_below
        if answers.probabilities is None or least is None:
            return answers
        return replace(answers, abstained=answers.probabilities.max(axis=1) < least)

    def _read(self, name: str) -> bytes:
        """Content of a file of the manifest, verified."""
        path = self.directory / name
        try:
            content = b"" if path.is_symlink() else path.read_bytes()
        except OSError:
            raise WorkError(_refusal(self.directory, f"{name} cannot be read")) from None
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][name]:
            raise WorkError(_refusal(self.directory, f"{name} is not what its manifest says"))
        return content

    def _read_optional(self, name: str) -> bytes | None:
        return self._read(name) if name in self.manifest["files"] else None

    def _json(self, name: str) -> Any:
        return json.loads(self._read(name))


def write_release(
    directory: Path,
    *,
    pipeline: "Pipeline",
    config: ModelConfig,
    train: "pd.DataFrame",
    metrics: Mapping[str, float],
    data_digest: str,
    trials: int,
    evidence: Mapping[str, Any],
    whole: Whole | None = None,
) -> Release:
    """Write a fitted pipeline and all that belongs to it.

    Args:
        directory: New or empty.
        pipeline: Fitted on class codes 0..k-1 in the order of `labels_of(config, train)`, or on numbers.
        config: The resolved configuration.
        train: Typed frame with the target; personal columns are left out of everything written.
        metrics: Quality metrics, part of the digest: nothing timed.
        data_digest: Digest of the data that `train` was split from.
        trials: Configurations that tuning tried.
        evidence: Name to JSON-ready data, text, or bytes (the name then says the kind: "roc.png"); not in the digest.
        whole: What `train` is a sample of, with every class; None where it holds all training rows.

    Raises:
        WorkError: The directory is not empty, the pipeline cannot be stored, or a metric is no number.
        DataError: The training rows cannot be described (see `labels_of`), or none would be accepted by the service.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise WorkError(f"a Release needs an empty directory; {directory.name} is not")
    schema = schema_of(config, train)
    files = dump_pipeline(pipeline)
    stored = load_pipeline(files.get)  # what is described below is what will be loaded
    estimator = type(stored.steps[-1][1]).__name__
    training = Training(data_digest, config.seed, trials, whole.rows if whole else len(train), FAMILIES[estimator])
    golden = [asdict(row) for row in _golden(stored, schema, train, config.seed)]
    figures = _finite(metrics)
    files |= {
        "config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode(),
        "schema.json": _json(schema.model_dump(mode="json"), in_order=True),
        "golden.json": _json(golden, in_order=True),
        "metrics.json": _json(figures),
        "training.json": _json(asdict(training)),
        **_reference(config, train, stored if training.family in _LINEAR else None, whole),
    }
    files |= {f"{EVIDENCE}/{_evidence_file(name, data)}": _evidence_bytes(data) for name, data in evidence.items()}
    digest = _release_digest(
        pipeline=pipeline_digest(files.get),
        schema=json.loads(files["schema.json"]),
        golden=json.loads(files["golden.json"]),
        metrics=figures,
        training=training,
        config=config,
    )
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    _write_manifest(directory, {"format": FORMAT, "release_digest": digest, **_environment(), "files": sums})
    return Release.open(directory)


def add_evidence(directory: Path, name: str, data: Any) -> None:
    """Add evidence (JSON-ready data, text or bytes) to a Release and renew its manifest.

    Raises:
        WorkError: The Release is damaged, or has evidence of that name.
    """
    release = Release.open(directory)
    file = f"{EVIDENCE}/{_evidence_file(name, data)}"
    if file in release.manifest["files"]:
        raise WorkError(f"the Release has evidence '{name}' already; evidence is never replaced")
    content = _evidence_bytes(data)
    (directory / EVIDENCE).mkdir(exist_ok=True)
    (directory / file).write_bytes(content)
    sums = {**release.manifest["files"], file: hashlib.sha256(content).hexdigest()}
    _write_manifest(directory, {**release.manifest, "files": dict(sorted(sums.items()))})


def prepare(pipeline: "Pipeline", frame: "pd.DataFrame") -> Any:
    """Typed rows as the estimator of a fitted pipeline sees them: shape (n, features), dense or CSR."""
    prepared: Any = frame
    for _, step in pipeline.steps[:-1]:
        prepared = step.transform(prepared)
    return prepared


def _release_digest(
    *, pipeline: str, schema: Any, golden: Any, metrics: Mapping[str, float], training: Training, config: ModelConfig
) -> str:
    covered = {
        "pipeline": pipeline,
        "schema": schema,
        "golden": golden,
        "metrics": dict(metrics),
        "data_digest": training.data_digest,
        "seed": training.seed,
        "trials": training.trials,
        "config": config.shaping(),
    }
    return hashlib.sha256(_json(covered)).hexdigest()


def _answer(pipeline: "Pipeline", schema: Schema, frame: "pd.DataFrame") -> Answers:

    prepared: Any = frame[list(schema.inputs)]
    for _, step in pipeline.steps[:-1]:
        prepared = step.transform(prepared)
        _require_computable(prepared)
    return told(schema, estimated(pipeline.steps[-1][1], schema, prepared))


def estimated(estimator: Any, schema: Schema, prepared: Any) -> "np.ndarray[Any, Any]":
    """What an estimator says to prepared rows: shape (n, k), probabilities, or (n,), numbers; float64."""
    import numpy as np

    if schema.task == "regression":
        return np.asarray(estimator.predict(prepared), dtype=np.float64).reshape(-1)
    return np.asarray(estimator.predict_proba(prepared), dtype=np.float64)


def told(schema: Schema, estimates: "np.ndarray[Any, Any]") -> Answers:
    """The answers that estimates of shape (n, k), probabilities, or (n,), numbers, are."""
    import numpy as np

    if schema.task == "regression":
        return Answers(estimates, None)
    return Answers(np.array(schema.labels, dtype=object)[estimates.argmax(axis=1)], estimates)


def _require_computable(prepared: Any) -> None:
    """Raise TooLarge for numbers that scikit-learn or XGBoost would refuse; missing ones pass."""
    import numpy as np
    import pandas as pd

    if isinstance(prepared, pd.DataFrame):
        prepared = prepared.select_dtypes("number").to_numpy()
    elif hasattr(prepared, "tocsr"):
        if np.abs(prepared.data).max(initial=0) <= _LARGEST:
            return
        prepared = prepared.toarray()
    with np.errstate(invalid="ignore"):
        large = np.abs(prepared) > _LARGEST
    if large.any():
        raise TooLarge(int(large.any(axis=1).argmax()))


def _golden(pipeline: "Pipeline", schema: Schema, train: "pd.DataFrame", seed: int) -> list[Golden]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    from bentos.inputs import examine, plain_rows, typed_rows

    _require_codes(pipeline, schema)
    order = np.random.default_rng(seed).permutation(len(train))[:2_000]
    drawn = train.iloc[order][list(schema.inputs)].reset_index(drop=True)
    refused = {finding.row for finding in examine(drawn, schema.inputs) if finding.rejected}
    chosen = drawn.drop(index=sorted(refused)).head(GOLDEN_ROWS)
    if chosen.empty:
        raise DataError("no training row lies within the YAML's ranges and categories; the service would refuse all")
    texts = {name: chosen[name].str[-GOLDEN_CHARACTERS:] for name, c in schema.inputs.items() if c.type == "text"}
    rows = plain_rows(chosen.assign(**texts), schema.inputs)
    with threadpool_limits(1):
        answers = _answer(pipeline, schema, typed_rows([list(row.values()) for row in rows], schema.inputs).frame)
    values = [v if isinstance(v, str) else _rounded(v) for v in answers.values.tolist()]
    if answers.probabilities is None:
        return [Golden(row, value, None) for row, value in zip(rows, values, strict=True)]
    shares = [tuple(map(_rounded, line)) for line in answers.probabilities.tolist()]
    return [Golden(row, value, share) for row, value, share in zip(rows, values, shares, strict=True)]


def _require_codes(pipeline: "Pipeline", schema: Schema) -> None:
    fitted = [int(code) for code in getattr(pipeline.steps[-1][1], "classes_", ())]
    if fitted != list(range(len(schema.labels))):
        raise WorkError(f"the pipeline was fitted on class codes {fitted[:20]}, not on 0 to {len(schema.labels) - 1}")


def _reference(
    config: ModelConfig, train: "pd.DataFrame", linear: "Pipeline | None", whole: Whole | None
) -> dict[str, bytes]:
    """A seeded sample of the training rows as Parquet, and exact figures of all of them as JSON.

    A linear model's effects are measured from the sample's mean, which is written too: a Bento cannot read Parquet.
    """
    import io

    personal = [name for name, column in config.columns.items() if column.personal]
    known = train.drop(columns=personal, errors="ignore").reset_index(drop=True)
    sample = known.sample(min(len(known), REFERENCE_ROWS), random_state=config.seed).sort_index()
    texts = [name for name in known if name in config.columns and config.columns[name].type == "text"]
    sample = sample.assign(**{name: cut_texts(sample, sample[name]) for name in texts})
    buffer = io.BytesIO()
    sample.to_parquet(buffer, index=False)
    types = {name: column.type for name, column in config.columns.items()}
    if whole is None:
        whole = Whole(len(known), {name: column_figures(known[name], types.get(name, "")) for name in known.columns})
    means = {BACKGROUND: _json(_background(linear, sample))} if linear is not None else {}
    return means | {
        "reference/sample.parquet": buffer.getvalue(),
        "reference/summary.json": _json({"rows": whole.rows, "sampled": len(sample), "columns": dict(whole.columns)}),
    }


def cut_texts(reference: "pd.DataFrame", texts: "pd.Series[Any]") -> "pd.Series[Any]":
    """Texts as far as a Release's reference of that many rows keeps them: their ends."""
    return texts.str[-(REFERENCE_CHARACTERS // max(len(reference), 1)) :]


def _background(pipeline: "Pipeline", sample: "pd.DataFrame") -> list[float]:
    """Mean of each prepared feature over the rows of a typed sample."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return [_rounded(mean) for mean in np.ravel(prepare(pipeline, sample).mean(axis=0)).tolist()]


def column_figures(values: "pd.Series[Any]", kind: str) -> dict[str, Any]:
    """Exact figures of one column: counts and quantiles of numbers and dates, counts of categories, lengths of text."""
    import pandas as pd

    present = values.dropna()
    figures: dict[str, Any] = {"count": len(values), "missing": len(values) - len(present)}
    if pd.api.types.is_object_dtype(values) and kind != "text":
        counts = present.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        return figures | {
            "distinct": len(counts),
            "categories": {str(k): int(v) for k, v in counts.head(1_000).items()},
        }
    if present.empty:
        return figures
    if kind == "text":
        present = present.str.len()
    quantiles = {f"{q:g}": v for q, v in present.quantile([0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1]).items()}
    if values.dtype.kind == "M":
        return figures | {"quantiles": {q: moment.isoformat() for q, moment in quantiles.items()}}
    spread = {"deviation": _rounded(float(present.std()))} if len(present) > 1 else {}
    return figures | {"mean": _rounded(float(present.mean())), "quantiles": quantiles, **spread}


def _environment() -> dict[str, Any]:
    """Python, libraries and CPU kernel that a fit ran on; no path."""
    import numpy as np
    from threadpoolctl import threadpool_info

    libraries = {}
    for name in ("numpy", "scipy", "scikit-learn", "pandas", "skops", "xgboost", "pyarrow"):
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    kept = ("internal_api", "version", "architecture")
    pools = [{key: pool[key] for key in kept if pool.get(key)} for pool in threadpool_info()]
    config: Any = np.show_config(mode="dicts")
    simd = config.get("SIMD Extensions", {})
    kernel = {"machine": platform.machine(), "pools": sorted(pools, key=str), "simd": simd.get("found", [])}
    return {"python": platform.python_version(), "libraries": libraries, "kernel": kernel}


def _manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            raise WorkError(_refusal(directory, f"its format is {manifest['format']!r:.20}, this code reads {FORMAT}"))
        if not isinstance(files, dict) or not isinstance(manifest["release_digest"], str):
            raise TypeError
    except OSError:
        raise WorkError(f"there is no Release in {directory.name}: {MANIFEST} cannot be read") from None
    except (ValueError, KeyError, TypeError):
        raise WorkError(_refusal(directory, f"{MANIFEST} is damaged")) from None
    return cast(dict[str, Any], manifest)


def _write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    draft = directory / f"{MANIFEST}.tmp"
    draft.write_bytes(json.dumps(manifest, indent=1, sort_keys=True).encode())
    draft.replace(directory / MANIFEST)


def _evidence_file(name: str, data: Any) -> str:
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9]+)?", name):
        raise WorkError(f"evidence {bounded(name, 60)!r}: write lower-case letters, digits and underscores, one suffix")
    suffix = Path(name).suffix
    if isinstance(data, bytes | str):
        fits = bool(suffix) and suffix != ".json" and (suffix in _TEXTS) == isinstance(data, str)
        if not fits:
            raise WorkError(f"evidence '{name}': text needs one of {', '.join(_TEXTS)}, bytes another suffix")
        return name
    if suffix:
        raise WorkError(f"evidence '{name}': data is stored as JSON; leave out the suffix")
    return f"{name}.json"


def _evidence_bytes(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    return data.encode() if isinstance(data, str) else _json(data)


def _parse_evidence(file: str, content: bytes) -> tuple[str, Any]:
    if file.endswith(".json"):
        return file.removesuffix(".json"), json.loads(content)
    return file, content.decode() if file.endswith(_TEXTS) else content


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    if strange := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise WorkError(f"metrics {_some(strange)} are no finite numbers")
    return {name: _rounded(float(value)) for name, value in sorted(metrics.items())}


def _rounded(value: float) -> float:
    """To 10 significant digits: the last bits may depend on how sums were ordered."""
    return float(f"{value:.10g}")


def _json(data: Any, in_order: bool = False) -> bytes:
    return json.dumps(data, sort_keys=not in_order, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refusal(directory: Path, why: str) -> str:
    return f"the Release in {directory.name} is not loaded: {why}. Make it again with `gauntlet run`, or restore it"
