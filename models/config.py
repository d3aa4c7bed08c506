"""The schema of a model's YAML, and the layers that a resolved one is made of."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from models.errors import ConfigError, guess, shown
from models.judgement import MOST_CROSSINGS, Card, Evaluating, Fairness, Floor, Promotion
from models.monitoring import ORDERED, Monitoring
from models.section import Cron, Name, Scalar, Section, Share

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_IN_URL = re.compile(
    r"://[^/\s:@]*:[^\s@]+@|[?&;](password|passwd|pwd|token|secret|signature|(api|access)[_-]?(key|token))=[^&\s]", re.I
)
_SECRET_NAME = re.compile(r"authorization|cookie|key|token|secret|password|credential|session", re.I)
MISSING = ("", "?", "NA", "N/A", "na", "n/a", "NaN", "nan", "null", "NULL", "None")


class Column(Section):
    """One column of the raw data: what it holds and what may be wrong with it."""

    type: Literal["number", "integer", "category", "boolean", "text", "datetime"]
    description: str = ""
    range: tuple[float, float] | None = Field(None, description="Smallest and largest value, both allowed.")
    categories: tuple[Scalar, ...] | None = None
    missing: Share = Field(0.0, description="Largest share of missing values that is allowed.")
    missing_values: tuple[Scalar, ...] = Field((), description="Values that mean missing, besides the source's own.")
    format: str | None = Field(None, description="How a datetime is written, as for strptime; else ISO 8601.")
    feature: bool = Field(True, description="Whether the model may see it.")
    personal: bool = Field(False, description="Identifies a person: hashed before the first artifact, never a feature.")
    sensitive: bool = Field(False, description="Measured for fairness; kept.")
    on_range: Literal["reject", "flag"] = "reject"
    on_unseen: Literal["reject", "flag"] = "flag"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.range and self.range[0] > self.range[1]:
            raise ValueError(f"range {list(self.range)} runs backwards")
        if self.range and self.type not in ("number", "integer"):
            raise ValueError(f"a {self.type} column has no range")
        if self.categories is not None and self.type != "category":
            raise ValueError(f"a {self.type} column has no categories")
        if self.categories is not None and len(set(map(str, self.categories))) < len(self.categories):
            raise ValueError("categories repeat")
        if self.format and self.type != "datetime":
            raise ValueError(f"a {self.type} column has no format")
        return self


class Derived(Section):
    """A column computed from others inside the fitted pipeline: exactly one expression."""

    ratio: tuple[str, str] | None = Field(None, description="First divided by second; missing where second is 0.")
    difference: tuple[str, str] | None = Field(None, description="First minus second.")
    log: str | None = Field(None, description="Natural logarithm of 1 + x; missing where x <= -1.")
    bin: str | None = Field(None, description="Interval that the value falls in; see edges and labels.")
    edges: tuple[float, ...] = Field((), description="Rising inner edges; a value equal to an edge falls above it.")
    labels: tuple[str, ...] = Field((), description="One more than edges; made from the edges when left out.")
    date: str | None = Field(None, description="Datetime column to take a part of.")
    part: Literal["year", "quarter", "month", "day", "weekday", "hour"] | None = None
    feature: bool = True
    sensitive: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the expression reads."""
        pair = self.ratio or self.difference
        return pair or tuple(name for name in (self.log, self.bin, self.date) if name)

    @property
    def type(self) -> Literal["number", "category"]:
        """Type of the result."""
        return "category" if self.bin else "number"

    @model_validator(mode="after")
    def _one_expression(self) -> Self:
        given = [k for k in ("ratio", "difference", "log", "bin", "date") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of ratio, difference, log, bin, date; found {', '.join(given) or 'none'}")
        if (self.bin is None) != (not self.edges):
            raise ValueError("bin and edges go together")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must rise")
        if self.labels and len(self.labels) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} labels, found {len(self.labels)}")
        if (self.date is None) != (self.part is None):
            raise ValueError("date and part go together")
        return self


class Target(Section):
    """What is predicted."""

    column: str
    labels: tuple[str, ...] = Field((), description="Classes in order; the last is the positive one of two.")
    map: dict[str, str] | None = Field(None, description="Raw value to class, where they differ.")


class SklearnSource(Section):
    """A data set that scikit-learn carries."""

    name: Name
    kind: Literal["sklearn"]
    dataset: Literal["wine", "breast_cancer", "digits", "iris", "diabetes"]

    @property
    def label(self) -> str:
        """What is read, in words that may be printed."""
        return f"scikit-learn's {self.dataset}"


class FileSource(Section):
    """A CSV or Parquet file: a path relative to `GAUNTLET_DATA`, an absolute one, or any fsspec URL."""

    name: Name
    kind: Literal["csv", "parquet"]
    path: str
    separator: str = ","
    encoding: str = "utf-8-sig"
    missing_values: tuple[str, ...] = MISSING
    fetch: str = Field("", description="Where a person gets the file; printed when it is missing.")

    @property
    def label(self) -> str:
        """What is read, in words that may be printed."""
        return f"{self.kind} file {shown(self.path)}"


class SyntheticSource(Section):
    """Rows made by a seeded generator of ours."""

    name: Name
    kind: Literal["synthetic"]
    generator: str
    rows: int = Field(gt=0)
    seed: int = 0
    knobs: dict[str, float] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """What is made, in words that may be printed."""
        knobs = "".join(f", {knob} {value:g}" for knob, value in self.knobs.items())
        return f"{self.rows:,} made-up rows of generator '{self.generator}', seed {self.seed}{knobs}"


def _refuse_secret(url: str) -> None:
    if _SECRET_IN_URL.search(REFERENCE.sub("", url)):
        raise ValueError("url holds a password or key; write ${VARIABLE} in its place and set that variable")


class SqlSource(Section):
    """The answer of a query to any database that SQLAlchemy speaks to."""

    name: Name
    kind: Literal["sql"]
    url: str = Field(description="SQLAlchemy URL; `${VARIABLE}` is taken from the environment.")
    query: str = Field(min_length=1, description="What to read, for example SELECT * FROM loans.")
    chunk: int = Field(50_000, ge=1, description="Rows fetched at a time.")

    @property
    def label(self) -> str:
        """What is read, in words that may be printed."""
        return f"a query to {shown(self.url)}"

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        _refuse_secret(self.url)
        return self


class UrlSource(Section):
    """A CSV or Parquet file on the web, kept in the cache once its sum is right."""

    name: Name
    kind: Literal["url"]
    url: Annotated[str, Field(pattern=r"^https?://", description="`${VARIABLE}` is taken from the environment.")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    format: Literal["csv", "parquet"] = "csv"
    separator: str = ","
    encoding: str = "utf-8-sig"
    missing_values: tuple[str, ...] = MISSING
    timeout: float = Field(30, gt=0, description="Seconds without a byte after which a transfer is tried again.")
    retries: int = Field(4, ge=0)

    @property
    def label(self) -> str:
        """What is read, in words that may be printed."""
        return f"{self.format} file {shown(self.url)}"

    @property
    def file(self) -> FileSource:
        """How the bytes are read once they are here."""
        return FileSource(
            name=self.name,
            kind=self.format,
            path=self.url,
            separator=self.separator,
            encoding=self.encoding,
            missing_values=self.missing_values,
        )

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        _refuse_secret(self.url)
        return self


class HttpSource(Section):
    """Rows of a JSON API, page by page."""

    name: Name
    kind: Literal["http"]
    url: Annotated[str, Field(pattern=r"^https?://", description="`${VARIABLE}` is taken from the environment.")]
    rows: str = Field("", description="Dotted path to the list of rows in an answer; empty: the answer is the list.")
    next: str | None = Field(None, description="Dotted path to the next page's address; null ends.")
    page: str | None = Field(None, description="Query parameter that counts pages; an empty page ends.")
    first_page: int = 1
    headers: dict[str, str] = Field(default_factory=dict, description="`${VARIABLE}` is taken from the environment.")
    missing_values: tuple[str, ...] = MISSING
    timeout: float = Field(30, gt=0, description="Seconds for one answer.")
    retries: int = Field(4, ge=0, description="Tries again on 429, 5xx and broken connections, with backoff.")
    max_pages: int = Field(10_000, ge=1)

    @property
    def label(self) -> str:
        """What is read, in words that may be printed."""
        return f"JSON API {shown(self.url)}"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.next and self.page:
            raise ValueError("give next or page, not both")
        _refuse_secret(self.url)
        for name, value in self.headers.items():
            if _SECRET_NAME.search(name) and not REFERENCE.search(value):
                raise ValueError(f"headers.{name} is secret; write ${{VARIABLE}} and set that variable")
        return self


Source = Annotated[
    SklearnSource | FileSource | SyntheticSource | SqlSource | UrlSource | HttpSource, Field(discriminator="kind")
]


class Features(Section):
    """Which declared and derived columns the model sees, as glob patterns; later wins over earlier."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()


class Split(Section):
    """How rows are assigned to the test set, each by itself and never by position."""

    by: Literal["content", "entity", "time"] = "content"
    column: str | None = Field(None, description="The entity's or the time's column.")
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    held_out: tuple[str, ...] = Field((), description="By entity: the test set is these values, not a hashed share.")

    @model_validator(mode="after")
    def _column_given(self) -> Self:
        if self.held_out and self.by != "entity":
            raise ValueError("held_out names entities: it needs `by: entity`")
        if (self.by == "content") != (self.column is None):
            raise ValueError("split by entity or time needs `column`; by content takes none")
        return self


class Validation(Section):
    """Bounds of the checks on raw data; a check is named by `<kind>` or `<kind>:<column>`."""

    min_rows: int = Field(50, ge=2)
    max_duplicates: Share = 0.05
    max_outliers: Share = Field(0.05, description="Share of values beyond 3 interquartile ranges from the quartiles.")
    min_class: Share = Field(0.01, description="Smallest share of rows that a class may have.")
    max_leak: Share = Field(0.99, description="Accuracy or R² of one column alone, from which it is called a leak.")
    severity: dict[str, Literal["critical", "warning", "off"]] = Field(default_factory=dict)


class Parameter(Section):
    """A range that tuning draws from: exactly one of the forms."""

    choice: tuple[Scalar | None, ...] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, description="Both ends allowed.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [k for k in ("choice", "uniform", "loguniform", "integer") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of choice, uniform, loguniform, integer; found {', '.join(given) or 'none'}")
        ends = self.uniform or self.loguniform or self.integer
        if ends and (ends[0] >= ends[1] or (self.loguniform and ends[0] <= 0)):
            raise ValueError(f"{given[0]} {list(ends)}: the ends must rise (loguniform: above 0)")
        return self


Family = Literal["logistic_regression", "linear_regression", "random_forest", "xgboost"]


class Tuning(Section):
    """The search over families and their parameters; the first of trials, seconds, patience ends it."""

    trials: int = Field(50, ge=0, description="0: the plain linear pipeline only.")
    seconds: float = Field(180, gt=0)
    patience: int = Field(15, ge=1, description="Trials without gain after which the search ends.")
    folds: int = Field(5, ge=2)
    lag: int = Field(4, ge=1, description="Trial i is proposed from those up to i - lag, so that lag can run at once.")
    workers: int | None = Field(None, ge=1, description="Processes that score trials; one per core when left out.")
    early_stopping: int | None = Field(20, ge=1, description="Boosting rounds without gain after which a fit ends.")
    candidates: dict[Family, dict[str, Parameter | Scalar]] = Field(default_factory=dict)


class Text(Section):
    """How text columns become numbers: TF-IDF inside the fitted pipeline."""

    normalise: bool = Field(True, description="Replace times, ids, paths, addresses and numbers by their kind.")
    ngrams: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=5)]] = (1, 2)
    max_features: int = Field(20_000, ge=1)
    min_rows: int = Field(2, ge=1, description="Rows that a term must occur in.")
    max_characters: int = Field(20_000, ge=1, description="Of a longer text the end is read.")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.ngrams[0] > self.ngrams[1]:
            raise ValueError(f"ngrams {list(self.ngrams)} run backwards")
        return self


class PredictionLogging(Section):
    """Which answers the prediction log keeps, for how long, and what happens while it cannot be written.

    With `required` no answer leaves before its record is durable: while the log cannot be written the service says 503.
    With `best_effort` it answers all the same and counts what was lost. That every answered id is in the log holds for
    `required` with `sample: 1`; with a smaller share it holds for the sampled ids, and nothing can be learned later
    about the others: no outcome, no lineage. Whether an id is sampled follows from the id alone, in every process.
    """

    mode: Literal["required", "best_effort"] = "required"
    sample: float = Field(1.0, gt=0, le=1, description="Share of the answers that are logged; a batch is in or out.")
    keep_months: int | None = Field(
        None, ge=1, description="Whole months, besides the running one, that answers are kept; for ever when left out."
    )


class Serving(Section):
    """How the champion answers."""

    risk: dict[str, float] | None = Field(None, description="Level to the probability it begins at, rising from 0.")
    max_batch: int = Field(10_000, ge=1)
    abstain_below: Share | None = Field(None, description="No prediction is given when the best class has less.")
    log: PredictionLogging = PredictionLogging()

    @model_validator(mode="after")
    def _rising(self) -> Self:
        starts = list(self.risk.values()) if self.risk else [0.0]
        if starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] > 1:
            raise ValueError("risk levels begin at 0 and rise to at most 1")
        return self


class Schedule(Section):
    """When the deployment `train/<model>` runs by itself."""

    cron: Cron
    timezone: str = "UTC"
    active: bool = True


class Logging(Section):
    """How a run speaks."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"


class ModelConfig(Section):
    """All that Gauntlet knows of one model."""

    name: Name
    description: str = ""
    task: Literal["classification", "regression"] = "classification"
    metric: str = Field("accuracy", description="The figure that tuning, gates and promotion go by.")
    seed: int = Field(42, ge=0, lt=2**31)
    sample_size: int | None = Field(None, ge=10, description="Train on a seeded sample of this many rows.")
    compute: Literal["memory", "dask"] = Field(
        "memory", description="What holds the rows: one process, or Dask workers a partition at a time (docs/dask.md)."
    )
    search_rows: int = Field(
        100_000,
        ge=100,
        description="With `compute: dask`: the seeded sample of training rows that tuning and the preparation see.",
    )
    sources: tuple[Source, ...] = Field(min_length=1, description="The first is the default.")
    on_bad_row: Literal["stop", "quarantine"] = Field("stop", description="What ingest does with rows that do not fit.")
    max_bad_rows: Share = Field(0.05, description="Largest share of rows that quarantine may take.")
    target: Target
    columns: dict[str, Column] = Field(min_length=1, description="The raw columns, without the target.")
    derived: dict[str, Derived] = Field(default_factory=dict)
    features: Features = Features()
    text: Text = Text()
    split: Split = Split()
    validation: Validation = Validation()
    tuning: Tuning = Tuning()
    evaluation: Evaluating = Evaluating()
    fairness: Fairness = Fairness()
    gates: dict[str, Floor] = Field(
        default_factory=dict,
        description="By name: a figure, recall:CLASS, slice (every slice), slice:COLUMN, slice:COLUMN:VALUE, …",
    )
    promotion: Promotion = Promotion()
    card: Card = Card()
    serving: Serving = Serving()
    monitoring: Monitoring = Monitoring()
    schedule: Schedule | None = Field(None, description="When the deployment `train/<model>` runs by itself.")
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        known = list(self.columns) + list(self.derived)
        for name, expression in self.derived.items():
            if name in self.columns or name == self.target.column:
                raise ValueError(f"derived.{name}: a raw column has that name")
            for used in expression.inputs:
                _require(used, list(self.columns), f"derived.{name}")
                if self.columns[used].personal:
                    raise ValueError(f"derived.{name}: column '{used}' is personal")
            found = {self.columns[used].type.replace("integer", "number") for used in expression.inputs}
            fitting = (
                ({"datetime"},) if expression.date else ({"number"}, {"datetime"})[: 2 if expression.difference else 1]
            )
            if found not in fitting:
                allowed = " or ".join(word for kind in fitting for word in kind)
                raise ValueError(
                    f"derived.{name}: reads {' and '.join(sorted(found))} columns, needs {allowed} columns"
                )
        if self.target.column in self.columns:
            raise ValueError(f"target column '{self.target.column}' must not be listed under columns")
        if self.split.column:
            _require(self.split.column, list(self.columns), "split.column")
        self._judged_columns_exist(known)
        self._can_be_watched()
        self._can_be_partitioned()
        if self.task == "classification" and self.target.map:
            extra = set(self.target.map.values()) - set(self.target.labels)
            if self.target.labels and extra:
                raise ValueError(f"target.map leads to {sorted(extra)}, not among target.labels")
        for pattern in (*self.features.include, *self.features.exclude):
            if not _matches(pattern, known):
                raise ValueError(f"features: pattern '{pattern}' matches no column")
        return self

    def _can_be_watched(self) -> None:
        for name, method in self.monitoring.methods.items():
            _require(name, list(self.columns), "monitoring.methods")
            kind = self.columns[name].type
            if kind == "text" or (kind == "category" and method in ORDERED):
                raise ValueError(f"monitoring.methods.{name}: a {kind} column cannot be measured by {method}")
        for name in ("webhook", "alertmanager"):
            if _SECRET_IN_URL.search(REFERENCE.sub("", getattr(self.monitoring.alerts, name) or "")):
                raise ValueError(f"monitoring.alerts.{name} holds a password or key; write ${{VARIABLE}} in its place")

    def _can_be_partitioned(self) -> None:
        if self.compute != "dask":
            return
        if not any(source.kind == "parquet" for source in self.sources):
            raise ValueError("compute: dask reads Parquet, and no source has `kind: parquet`; add one, or leave it out")
        if self.sample_size is not None:
            raise ValueError("compute: dask trains on all rows: leave sample_size out, or train with compute: memory")
        if self.fairness.reweigh:
            raise ValueError("compute: dask cannot weigh rows: leave fairness.reweigh out, or compute")
        texts = [name for name in self.feature_names() if name in self.columns and self.columns[name].type == "text"]
        if texts:
            raise ValueError(
                f"compute: dask cannot read texts: exclude '{texts[0]}' from the features, or use compute: memory"
            )

    def _judged_columns_exist(self, known: Sequence[str]) -> None:
        for name in self.evaluation.slices.columns:
            _require(name, known, "evaluation.slices.columns")
            if name in self.columns and self.columns[name].personal:
                raise ValueError(f"evaluation.slices.columns: column '{name}' is personal")
        sensitive = self.sensitive_names()
        crossed = sum(math.comb(len(sensitive), size + 1) for size in range(self.fairness.intersections))
        if crossed > MOST_CROSSINGS:
            raise ValueError(
                f"fairness.intersections: {len(sensitive)} sensitive columns make {crossed} crossings, at most "
                f"{MOST_CROSSINGS} are compared; cross fewer, or leave columns out"
            )
        for name in self.fairness.reweigh:
            _require(name, known, "fairness.reweigh")
            if not (self.columns.get(name) or self.derived[name]).sensitive:
                raise ValueError(f"fairness.reweigh: column '{name}' is not `sensitive: true`")
        if self.fairness.reweigh and self.task == "regression":
            raise ValueError("fairness.reweigh: a regression has no classes to weigh; leave it out")
        for check in self.evaluation.behaviour:
            for name in check.columns:
                _require(name, list(self.columns), f"evaluation.behaviour.{check.name}")
            if check.label is not None and self.target.labels and check.label not in self.target.labels:
                raise ValueError(f"evaluation.behaviour.{check.name}: the target has no class '{check.label}'")
        positive, labels = self.fairness.positive, self.target.labels
        if positive is not None and labels and positive not in labels:
            raise ValueError(f"fairness.positive: the target has no class '{positive}'")

    @model_validator(mode="after")
    def _probabilities_where_used(self) -> Self:
        for key in ("risk", "abstain_below"):
            if self.task == "regression" and getattr(self.serving, key) is not None:
                raise ValueError(f"serving.{key}: a regression answers without probabilities; leave it out")
        return self

    def source(self, name: str | None = None) -> Source:
        """Return the named source, or the first.

        Raises:
            ConfigError: No source has that name.
        """
        for source in self.sources:
            if name in (None, source.name):
                return source
        names = [source.name for source in self.sources]
        raise ConfigError(f"model '{self.name}' has no source '{name}'{guess(str(name), names)}")

    def feature_names(self) -> list[str]:
        """Names of the columns the estimator sees: raw ones first, each group in the YAML's order."""
        raw = [n for n, c in self.columns.items() if c.feature and not c.personal and c.type != "datetime"]
        names = raw + [name for name, expression in self.derived.items() if expression.feature]
        kept = [name for pattern in self.features.include for name in _matches(pattern, names)]
        dropped = {name for pattern in self.features.exclude for name in _matches(pattern, names)}
        return [name for name in names if name in kept and name not in dropped]

    def sensitive_names(self) -> list[str]:
        """Names of the columns that fairness is measured for, raw ones first; a personal one tells no groups apart."""
        raw = [name for name, column in self.columns.items() if column.sensitive and not column.personal]
        return raw + [name for name, expression in self.derived.items() if expression.sensitive]

    def input_names(self) -> list[str]:
        """Names of the raw columns that the fitted pipeline reads, in the YAML's order."""
        features = self.feature_names()
        used = set(features).union(*(self.derived[n].inputs for n in features if n in self.derived))
        return [name for name in self.columns if name in used]

    def part(self, *keys: str) -> dict[str, Any]:
        """What a step needs, as JSON-ready data: the data's description and `keys`; all else at its default.

        A step that is given only its part stays cached when another part of the YAML changes.
        """
        always = {"name", "task", "sources", "target", "columns"}
        return self.model_dump(mode="json", include=always.union(keys))

    def shaping(self) -> dict[str, Any]:
        """The part of the configuration that shapes the fitted model, as JSON-ready data."""
        keys = {"task", "metric", "seed", "sample_size", "target", "columns", "derived", "features", "split", "tuning"}
        shaped = self.model_dump(mode="json", include=keys | {"text"})
        if self.fairness.reweigh:
            shaped["reweigh"] = list(self.fairness.reweigh)
        if self.compute == "dask":
            shaped |= {"compute": self.compute, "search_rows": self.search_rows}
        if own := self.evaluation.metrics.get(self.metric):
            shaped["own_metric"] = own.model_dump(mode="json")
        for key in ("seconds", "workers"):
            shaped["tuning"].pop(key)
        return shaped

    def canonical(self) -> str:
        """The configuration as JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    rule = re.compile("".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern))
    return [name for name in names if rule.fullmatch(name)]


def _require(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: no column '{name}'{guess(name, known)}")


@dataclass(frozen=True)
class Layer:
    """One source of configuration: where it is from and what it sets."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """A configuration and, for each dotted key that any layer set, the layer that won."""

    config: ModelConfig
    origins: Mapping[str, str]


def models_dir() -> Path:
    """The folder of model YAMLs: `GAUNTLET_MODELS`, else this one."""
    return Path(os.environ.get("GAUNTLET_MODELS") or Path(__file__).parent).absolute()


def model_names() -> list[str]:
    """Names of all models, sorted."""
    return sorted(path.stem for path in models_dir().glob("*.yaml") if path.stem != "base")


def load_model(name: str, overrides: Sequence[Layer] = ()) -> Resolved:
    """Resolve a model's configuration from base.yaml, its own YAML, then `overrides` in order.

    Raises:
        ConfigError: The model is unknown, a file is no YAML mapping, or a key or value is wrong.
    """
    path = models_dir() / f"{name}.yaml"
    if name not in model_names():
        raise ConfigError(f"unknown model '{name}'{guess(name, model_names())}; `gauntlet new` writes one")
    base = Path(__file__).parent / "base.yaml"
    layers = [Layer("models/base.yaml", read_yaml(base)), Layer(f"models/{name}.yaml", read_yaml(path)), *overrides]
    resolved = resolve(layers)
    if resolved.config.name != name:
        raise ConfigError(f"{path.name} says `name: {resolved.config.name}`; the file name and the name must agree")
    return resolved


def resolve(layers: Sequence[Layer]) -> Resolved:
    """Merge layers (mappings key by key; all else, and a tuning parameter's range, whole) and validate the result.

    Raises:
        ConfigError: A key or value is wrong; the message names the key, the layer and what is allowed.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        merged = _merge(merged, layer.values)
        for key, _ in _leaves(layer.values):
            for stale in [k for k in origins if k.startswith(f"{key}.") or key.startswith(f"{k}.")]:
                del origins[stale]
            origins[key] = layer.origin
    try:
        return Resolved(ModelConfig.model_validate_json(json.dumps(merged, default=str)), origins)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from None


def parse_set(assignments: Sequence[str]) -> Layer:
    """Turn `--set a.b=value` texts (values read as YAML) into a layer.

    Raises:
        ConfigError: A text has no `=`, an empty key, or a value that is no YAML.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {text!r}: write key=value, for example --set tuning.trials=10")
        try:
            nested = yaml.safe_load(raw)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text!r}: the value is no YAML") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = _merge(values, nested)
    return Layer("--set", values)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: The file is no YAML, repeats a key, or holds no mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name} is no UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path.name}{line}: {getattr(error, 'problem', None) or 'no YAML'}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} must hold a mapping of keys to values")
    return data


# The C parser is ten times as fast; the rest is the same Python code.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeys(_SafeLoader):  # type: ignore[misc,valid-type]
    """YAML as usual, except that a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old, here = merged.get(key), (*path, key)
        is_range = here[:2] == ("tuning", "candidates") and len(here) == 4
        if isinstance(old, dict) and isinstance(value, dict) and not is_range:
            value = _merge(old, value, here)
        merged[key] = value
    return merged


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False)[:5]:
        path = ".".join(str(part) for part in problem["loc"])
        origin = next((o for k, o in origins.items() if k == path or k.startswith(f"{path}.")), "")
        if not origin:
            origin = next((o for k, o in origins.items() if path.startswith(f"{k}.")), "")
        if problem["type"] == "extra_forbidden":
            said = f"unknown key{guess(str(problem['loc'][-1]), _allowed(problem['loc'][:-1]))}"
        else:
            said = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            if isinstance(given, Scalar) and not (isinstance(given, float) and math.isnan(given)):
                said += f" (found {json.dumps(given)[:80]})"
        lines.append(": ".join(part for part in (origin, path, said) if part))
    more = len(error.errors()) - len(lines)
    return "\n".join(lines + ([f"… and {more} more"] if more > 0 else []))


def _allowed(path: Sequence[int | str]) -> list[str]:
    """Keys known at `path` of the schema, found by walking its JSON Schema."""
    schema = ModelConfig.model_json_schema()
    nodes: list[dict[str, Any]] = [schema]
    for part in path:
        found: list[dict[str, Any]] = []
        for node in _expand(nodes, schema):
            if node.get("properties", {}).get(part):
                found.append(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), dict) and not isinstance(part, int):
                found.append(node["additionalProperties"])
            elif isinstance(part, int) and isinstance(node.get("items"), dict):
                found.append(node["items"])
        nodes = found or nodes
    return sorted({key for node in _expand(nodes, schema) for key in node.get("properties", {})})


def _expand(nodes: Sequence[dict[str, Any]], schema: dict[str, Any]) -> list[dict[str, Any]]:
    flat: list[dict[str, Any]] = []
    for node in nodes:
        if "$ref" in node:
            flat += _expand([schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]], schema)
        elif "anyOf" in node or "oneOf" in node:
            flat += _expand(node.get("anyOf") or node["oneOf"], schema)
        else:
            flat.append(node)
    return flat
