"""Reading: a source of the YAML becomes a typed frame, or a stop that says why."""

import hashlib
import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from zenml import step

from bentos.frame import Problem, pseudonym, to_frame
from models.config import Column, FileSource, ModelConfig, Scalar, SklearnSource, Source
from models.errors import DataError
from stacks.home import secret_key
from steps.caching import cached_by, parse_config
from steps.frames import FRAME_MATERIALIZER, content_digest
from steps.generators import generate
from steps.read import names_text, read_bytes, read_table, require_columns, shown
from steps.split import BUCKET, bucket_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ingested:
    """What a source holds.

    Attributes:
        frame: The typed frame: the YAML's columns, then the target, then (where the split goes by a personal
            column) `split_bucket`.
        digest: SHA-256 of the frame's content without personal columns, so that it does not depend on the key.
        source_line: One line that says which source was used and how much it gave.
        rows: Number of rows.
        notices: What a person should know, such as columns that were left out.
    """

    frame: pd.DataFrame
    digest: str
    source_line: str
    rows: int
    notices: tuple[str, ...] = ()


def source_line(config: ModelConfig, source_name: str | None = None) -> str:
    """Which source is used, as the first line of a run."""
    source = config.source(source_name)
    if isinstance(source, FileSource):
        what = f"{source.kind} file {shown(source.path)}"
    elif isinstance(source, SklearnSource):
        what = f"scikit-learn's {source.dataset}"
    else:
        what = f"{source.rows:,} made-up rows of generator '{source.generator}', seed {source.seed}"
    others = [other.name for other in config.sources if other.name != source.name]
    return f"source '{source.name}': {what}" + (f" (others by --source: {', '.join(others)})" if others else "")


def source_digest(config: ModelConfig, source_name: str | None = None) -> str:
    """Digest of what a source would give: a file's content, or all that a generated one depends on.

    Raises:
        DataError: The file cannot be read.
    """
    source = config.source(source_name)
    content = read_bytes(source, _others(config, source)) if isinstance(source, FileSource) else b""
    return _digest(config, source, content)


def _digest(config: ModelConfig, source: Source, content: bytes) -> str:
    digest = hashlib.sha256(json.dumps(source.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(hashlib.sha256(content).digest())
    if isinstance(source, SklearnSource):
        import sklearn

        digest.update(sklearn.__version__.encode())
    if any(column.personal for column in config.columns.values()):
        digest.update(hmac.new(secret_key(), b"gauntlet source digest", hashlib.sha256).digest())
    return digest.hexdigest()


def ingest_frame(config: ModelConfig, source_name: str | None = None, digest: str = "") -> Ingested:
    """Read a source into a typed frame; personal columns leave this function as pseudonyms only.

    Args:
        config: The model; `seed` and `split` matter only where a personal column decides the split.
        source_name: The source; the first when left out.
        digest: What `source_digest` said, to notice a file that changed since; not looked at when empty.

    Raises:
        DataError: The source cannot be read, or does not hold what the YAML declares.
        ConfigError: No source has that name.
    """
    source = config.source(source_name)
    needed = [*config.columns, config.target.column]
    if isinstance(source, FileSource):
        content = read_bytes(source, _others(config, source))
        if digest not in ("", _digest(config, source, content)):
            raise DataError(f"source '{source.name}': {shown(source.path)} changed while it was read; run again")
        raw, extra = read_table(content, source, needed)
    else:
        raw = _sklearn_frame(source, config.target.column) if isinstance(source, SklearnSource) else generate(source)
        extra = [str(name) for name in raw.columns if name not in needed]
        require_columns(raw.columns, needed, f"source '{source.name}'")
    notices = [f"columns that the YAML does not declare are left out: {names_text(extra)}"] if extra else []
    frame = typed_frame(config, raw)
    public = [name for name in frame.columns if not (name in config.columns and config.columns[name].personal)]
    line = f"{source_line(config, source_name)}: {len(frame):,} rows, {len(config.columns)} columns"
    return Ingested(frame, content_digest(frame, public), line, len(frame), tuple(notices))


def typed_frame(config: ModelConfig, raw: pd.DataFrame) -> pd.DataFrame:
    """Type raw rows and their target, and replace personal values.

    Raises:
        DataError: Values do not have the declared type, or the target is missing or unknown.
    """
    typed = to_frame(raw, config.columns)
    target, problem = _target(raw[config.target.column], config)
    _stop_on(typed.problems + ((problem,) if problem else ()), config, len(raw))
    columns = {name: typed.frame[name].to_numpy() for name in config.columns}
    return pd.DataFrame({**columns, config.target.column: target, **_pseudonymous(columns, config)})


@step(
    cache_policy=cached_by(__name__),
    output_materializers={"raw": FRAME_MATERIALIZER},
)
def ingest(
    config: dict[str, Any], source: str, digest: str
) -> tuple[Annotated[pd.DataFrame, "raw"], Annotated[str, "data_digest"]]:
    """Read the named source of a model; `digest` makes changed data a new cache key."""
    ingested = ingest_frame(parse_config(config), source, digest)
    log.info(ingested.source_line)
    for notice in ingested.notices:
        log.warning(notice)
    return ingested.frame, ingested.digest


def _others(config: ModelConfig, source: Source) -> list[str]:
    return [other.name for other in config.sources if other.name != source.name]


def _sklearn_frame(source: SklearnSource, target: str) -> pd.DataFrame:
    from sklearn import datasets

    frame: pd.DataFrame = getattr(datasets, f"load_{source.dataset}")(as_frame=True).frame
    return frame.rename(columns={"target": target})


def _target(raw: "pd.Series[Any]", config: ModelConfig) -> tuple["np.ndarray[Any, Any]", Problem | None]:
    """The typed target: labels after `target.map` for classes, numbers for regression.

    Raises:
        DataError: Rows have no target, or one that no label stands for.
    """
    name = config.target.column
    keys = list(config.target.map or config.target.labels)
    column = Column(type="number") if config.task == "regression" else _label_column(keys)
    typed = to_frame(raw.to_frame(name), {name: column})
    values = typed.frame[name]
    problem = typed.problems[0] if typed.problems else None
    missing = int(values.isna().sum()) - (problem.count if problem else 0)
    if missing:
        raise DataError(
            f"target '{name}': {missing} of {len(raw)} rows have no value; remove these rows, a model cannot learn "
            "from them"
        )
    if config.task == "regression" or not keys:
        return values.to_numpy(), problem
    printed = to_frame(pd.DataFrame({name: keys}, dtype=object), {name: column}).frame[name]
    labels = values.map(dict(zip(printed, config.target.map.values() if config.target.map else keys, strict=True)))
    unknown = int(labels.isna().sum()) - (problem.count if problem else 0)
    if unknown:
        where = "target.map" if config.target.map else "target.labels"
        raise DataError(
            f"target '{name}': {unknown} of {len(raw)} values are not in {where} ({names_text(keys)}); correct the "
            "data or the YAML"
        )
    return labels.to_numpy(dtype=object), problem


def _label_column(keys: Sequence[str]) -> Column:
    """How the raw target is read: as the kind of value that the YAML's keys spell, so that 1, 1.0 and "1" agree."""
    spelled: tuple[Scalar, ...] = ()
    if keys and {key.lower() for key in keys} <= {"true", "false"}:
        spelled = (True, False)
    else:
        try:
            spelled = tuple(float(key) for key in keys)
        except ValueError:
            spelled = ()
    return Column(type="category", categories=spelled or None)


def _stop_on(problems: Sequence[Problem], config: ModelConfig, rows: int) -> None:
    if not problems:
        return
    lines = [
        f"column '{p.column}': {p.count} of {rows} values: {p.reason} (first in row {p.first + 1}, header not counted)"
        for p in problems[:5]
    ]
    more = f"; and {len(problems) - 5} more columns" if len(problems) > 5 else ""
    raise DataError(
        f"values do not have the declared type: {'; '.join(lines)}{more}. Correct the data, list the words that mean "
        f"missing under `missing_values`, or change the type in the YAML of '{config.name}'"
    )


def _pseudonymous(columns: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Stand-ins of personal columns; and the bucket that the split goes by, which must not depend on the key."""
    replaced: dict[str, Any] = {}
    for name in (name for name, column in config.columns.items() if column.personal):
        codes, distinct = pd.factorize(columns[name])
        key = secret_key()
        replaced[name] = np.array([*(pseudonym(text, key) for text in distinct), np.nan], dtype=object)[codes]
        if name == config.split.column and config.split.by == "entity":
            replaced[BUCKET] = bucket_of(columns[name])
    return replaced
