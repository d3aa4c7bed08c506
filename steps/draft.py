"""Drafting: a model's YAML from a look at a stranger's CSV or Parquet file."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml

import models.config
from models.config import MISSING, FileSource, Layer, Validation, read_yaml, resolve
from models.errors import DataError, shown
from steps.ingest import ingest_frame
from steps.leak import told_alone
from steps.look import Look, bounds, date_parts, is_prose, look_at
from steps.read import (
    SEPARATORS,
    csv_frame,
    data_dir,
    header,
    names_text,
    near,
    read_bytes,
    read_table,
    utf8,
)  # fmt: skip
from steps.split import split_frame

MOST_CLASSES = 20
MOST_CODES = 10
SEEDS = 20
EXACT = 0.99999
MIN_ROWS = 20
_POSITIVE = {"1", "true", "yes", "y", "t", "positive", "pos", "disease", "churned", "default", "fraud", "bad"}
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"}
_FOREST = """    random_forest:
      n_estimators: {choice: [100, 200]}
      max_depth: {integer: [3, 12]}
      min_samples_leaf: {integer: [1, 10]}
"""
_XGBOOST = """    xgboost:
      n_estimators: {choice: [60, 120, 200]}
      max_depth: {integer: [2, 6]}
      learning_rate: {loguniform: [0.02, 0.3]}
      subsample: {uniform: [0.6, 1.0]}
      colsample_bytree: {uniform: [0.5, 1.0]}
      reg_lambda: {loguniform: [0.1, 20]}
"""
CANDIDATES: Mapping[str, str] = {
    "classification": f"    logistic_regression:\n      C: {{loguniform: [0.01, 30]}}\n{_FOREST}{_XGBOOST}",
    "regression": f"    linear_regression: {{}}\n{_FOREST}{_XGBOOST}",
}


@dataclass(frozen=True)
class Outcome:
    """What the target column makes of the task."""

    task: str
    metric: str
    labels: tuple[str, ...] = ()
    note: str = ""


def draft_model(name: str, data: Path, target: str) -> str:
    """Write the YAML of a new model, with comments where a person should confirm a guess.

    Args:
        name: Name of the model.
        data: CSV (any usual separator and encoding) or Parquet file, or an fsspec URL.
        target: Column to predict.

    Raises:
        DataError: The file cannot be read, is too small, or has no such target (or one that cannot be learnt).
        ConfigError: `name` is no model name.
    """
    source, raw = _open(data, target)
    outcome = _outcome(raw[target])
    looks = [look_at(raw[column]) for column in raw.columns if column != target]
    kept = [look for look in looks if look.distinct > 1]
    if not kept:
        raise DataError(
            f"{shown(source.path)}: besides the target no column has two different values; nothing to learn"
        )
    leaks = _leaks(kept, raw[target], outcome)
    lines = [
        "# yaml-language-server: $schema=schema.json",
        f"# Drafted from {shown(source.path)} ({len(raw):,} rows). Lines with `confirm` are guesses: read them.",
        f"name: {name}",
        f"description: Predicts {_plain(target)}.",
        f"task: {outcome.task}",
        f"metric: {outcome.metric}",
        "target:",
        f"  column: {_key(target)}",
        *([f"  labels: {_flow(outcome.labels)}  # {outcome.note}"] if outcome.labels else []),
        "sources:",
        *_source_lines(source),
        "columns:",
        *_column_lines(looks, kept, leaks),
        *_derived_lines(kept, {look.name for look in looks} | {target}),
        *_split_lines(kept),
        *(
            ["promotion: {min_improvement: {value: 0.02, of: error}}  # confirm"]
            if outcome.task == "regression"
            else []
        ),
        "tuning:",
        "  candidates:",
    ]
    return _proved(name, "\n".join(lines) + "\n" + CANDIDATES[outcome.task])


def _open(data: Path, target: str) -> tuple[FileSource, pd.DataFrame]:
    """The file as the source that the YAML will name, and all its columns."""
    given = re.sub(r"^([a-z0-9+]+):/(?=[^/])", r"\1://", str(data))  # Path makes one slash of an URL's two
    path = given
    if "://" not in given:
        whole = Path(given).expanduser().absolute()
        path = str(whole.relative_to(data_dir())) if whole.is_relative_to(data_dir()) else str(whole)
    kind: Literal["csv", "parquet"] = "parquet" if given.lower().endswith((".parquet", ".pq")) else "csv"
    source = FileSource(name="file", kind=kind, path=path)
    content = read_bytes(source)
    where = shown(path)
    if kind == "parquet":
        from pyarrow import ArrowException, parquet

        try:
            names = parquet.read_schema(io.BytesIO(content)).names
        except (ArrowException, OSError):
            raise DataError(f"{where}: this is no readable Parquet file") from None
        frame, _ = read_table(content, source, names)
    else:
        encoding = _encoding(content)
        text = utf8(content, encoding, where)
        separator = _separator(text, where)
        source = source.model_copy(update={"encoding": encoding, "separator": separator})
        names = header(text, separator, where)
        frame = csv_frame(text, separator, names, where, MISSING)
    if target not in names:
        raise DataError(f"{where}: no column '{target[:60]}'{near(target, names)} (there is: {names_text(names)})")
    if len(frame) < MIN_ROWS:
        raise DataError(f"{where}: {len(frame)} rows are too few to learn from; give at least {MIN_ROWS}, better 200")
    return source, frame


def _encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252" if not set(content) & {0x81, 0x8D, 0x8F, 0x90, 0x9D} else "latin-1"
    return "utf-8-sig"


def _separator(content: bytes, where: str) -> str:
    """The separator that gives the most columns with the same number in each of the first 100 rows."""
    head = content[: 1 << 18].decode("utf-8", errors="ignore")
    best, most = "", 1
    for separator in SEPARATORS:
        try:
            rows = [row for row in csv.reader(io.StringIO(head, newline=""), delimiter=separator) if row][:100]
        except csv.Error:
            continue
        cut = rows[:-1] if len(content) > len(head.encode()) and len(rows) > 2 else rows
        same = sum(len(row) == len(rows[0]) for row in cut)
        if len(rows[0]) > most and same >= 0.8 * len(cut):
            best, most = separator, len(rows[0])
    if not best:
        names = ", ".join(SEPARATORS.values())
        raise DataError(f"{where}: no columns found with any of {names}; a target and one more column are needed")
    return best


def _outcome(raw: "pd.Series[Any]") -> Outcome:
    name = str(raw.name)
    missing = int(raw.isna().sum())
    if missing:
        raise DataError(f"target '{name}': {missing} of {len(raw)} rows have no value; remove these rows first")
    look = look_at(raw)
    distinct = look.distinct
    if distinct < 2:
        raise DataError(f"target '{name}' has one value only; there is nothing to tell apart")
    if look.type in ("number", "integer") and not look.words and not _are_classes(look):
        return Outcome("regression", "rmse")
    if distinct > MOST_CLASSES or look.type == "datetime":
        what = "dates" if look.type == "datetime" else f"{distinct} different texts"
        raise DataError(f"target '{name}' holds {what}: neither numbers nor at most {MOST_CLASSES} classes")
    typed = raw.map(lambda cell: cell if isinstance(cell, str) else _label(cell)).str.strip()
    counts = typed.value_counts()
    if counts.min() < 2:
        raise DataError(
            f"target '{name}': a class has one row only ({names_text(counts.index[counts < 2], 3)}); drop it"
        )
    labels = sorted(counts.index, key=_natural)
    if len(labels) == 2:
        positive = next((label for label in labels if label.lower() in _POSITIVE), counts.idxmin())
        labels.sort(key=lambda label: label == positive)
        return Outcome("classification", "roc_auc", tuple(labels), "the last is the positive class; confirm")
    even = counts.max() <= 3 * counts.min()
    note = "classes are about equally common" if even else "some classes are rare, hence f1_macro"
    return Outcome("classification", "accuracy" if even else "f1_macro", tuple(labels), note)


def _are_classes(look: Look) -> bool:
    """Whether a numeric target is a handful of codes, each common enough to be learnt as a class."""
    counts = look.values.value_counts()
    codes = look.type == "integer" and look.distinct <= MOST_CODES
    return look.distinct == 2 or (codes and counts.min() >= max(10, 0.01 * len(look.values)))


def _label(cell: Any) -> str:
    if isinstance(cell, bool | np.bool_):
        return "true" if cell else "false"
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _natural(label: str) -> tuple[int, float, str]:
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _leaks(looks: Sequence[Look], raw: "pd.Series[Any]", outcome: Outcome) -> dict[str, float]:
    """Columns that alone tell the target, with how well."""
    target = raw.astype(np.float64) if outcome.task == "regression" else raw.astype(str).astype(object)
    scores = {look.name: told_alone(look.values, target, 0) for look in looks if look.type != "text"}
    leaks = {name: score for name, score in scores.items() if score >= Validation().max_leak}
    return leaks | (_parts_of(target, looks) if outcome.task == "regression" and not leaks else {})


def _parts_of(target: "pd.Series[Any]", looks: Sequence[Look]) -> dict[str, float]:
    """Columns of which a numeric target is an exact weighted sum, such as a total of its parts, with the R² of that."""
    numbers = [look for look in looks if look.type in ("number", "integer") and not look.share and not look.is_id]
    if len(numbers) < 2 or len(numbers) > 200 or len(target) < 10 * len(numbers):
        return {}
    matrix = np.column_stack([look.values.to_numpy(np.float64) for look in numbers])
    scaled = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    centred = target.to_numpy(np.float64) - target.mean()
    weights, *_ = np.linalg.lstsq(scaled, centred, rcond=None)
    told = 1 - float(((centred - scaled @ weights) ** 2).sum()) / float((centred**2).sum())
    if told < EXACT:
        return {}
    return {look.name: told for look, w in zip(numbers, weights, strict=True) if abs(w) > 0.01 * centred.std()}


def _source_lines(source: FileSource) -> Iterator[str]:
    yield f"  - name: {source.name}"
    yield f"    kind: {source.kind}"
    yield f"    path: {json.dumps(source.path, ensure_ascii=False)}"
    if source.separator != ",":
        yield f"    separator: {json.dumps(source.separator)}"
    if source.encoding != "utf-8-sig":
        yield f"    encoding: {source.encoding}"


def _column_lines(looks: Sequence[Look], kept: Sequence[Look], leaks: Mapping[str, float]) -> Iterator[str]:
    for look in looks:
        if look not in kept:
            why = "no values" if look.distinct == 0 else "the same value in every row"
            yield f"  # {_plain(look.name)}: left out, {why}"
            continue
        keys, notes = _column_keys(look, leaks.get(look.name))
        note = f"  # {'; '.join(notes)}" if notes else ""
        yield f"  {_key(look.name)}: {{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}{note}"


def _column_keys(look: Look, leak: float | None) -> tuple[dict[str, str], list[str]]:
    keys = {"type": str(look.type)}
    notes = [*look.notes]
    if look.format:
        keys["format"] = json.dumps(look.format)
    if look.words:
        keys["missing_values"] = _flow(look.words)
    if look.personal:
        keys |= {"feature": "false", "personal": "true"}
        notes.append(f"seems to identify a person ({look.personal}): hashed; confirm")
    elif look.is_id:
        keys["feature"] = "false"
        notes.append("seems to be an identifier; confirm")
    elif leak is not None:
        keys["feature"] = "false"
        notes.append(f"tells the target by itself or with others ({leak:.3f}): known only afterwards? confirm")
    elif look.type == "text" and is_prose(look):
        notes.append("free text: the model reads its words; confirm")
    elif look.type == "text":
        keys["feature"] = "false"
        notes.append("many different short texts are no feature")
    elif look.type in ("number", "integer"):
        low, high = bounds(look)
        keys["range"] = f"[{low:.12g}, {high:.12g}]"
    if look.type == "category" and not look.personal and not look.is_id:
        keys["categories"] = _flow(sorted(look.values.dropna().unique(), key=_natural))
    if look.share > 0:
        keys["missing"] = f"{min(1.0, np.ceil((1.5 * look.share + 0.02) * 20) / 20):.2f}"
    if look.sensitive and not look.personal:
        if look.type in ("category", "boolean"):
            keys["sensitive"] = "true"
        notes.append("measured for fairness if `sensitive: true`; confirm")
    return keys, notes


def _derived_lines(kept: Sequence[Look], taken: set[str]) -> Iterator[str]:
    dates = [
        (look, part) for look in kept if look.type == "datetime" and not look.personal for part in date_parts(look)
    ]
    if dates:
        yield "derived:"
    for look, part in dates:
        name = f"{look.name}_{part}"
        while name in taken:
            name += "_"
        taken.add(name)
        yield f"  {_key(name)}: {{date: {_key(look.name)}, part: {part}}}"


def _split_lines(kept: Sequence[Look]) -> Iterator[str]:
    """By entity, where an identifier comes in several rows: its rows are alike and belong on one side."""
    for look in kept:
        rows = len(look.values)
        repeats = 30 <= look.distinct <= 0.9 * rows
        if (
            (look.is_id or look.personal)
            and look.type in ("integer", "text", "category")
            and repeats
            and not look.share
        ):
            yield f"split: {{by: entity, column: {_key(look.name)}}}  # rows of one stay on one side; confirm"
            return


def _proved(name: str, text: str) -> str:
    """The YAML, once Gauntlet has read and split the data by it; rare classes may need another seed.

    Raises:
        DataError: No seed puts every class on both sides.
        ConfigError: `name` is no model name.
    """
    base = Layer("models/base.yaml", read_yaml(Path(models.config.__file__).parent / "base.yaml"))
    config = resolve([base, Layer(f"models/{name}.yaml", yaml.safe_load(text))]).config
    frame = ingest_frame(config).frame
    problem: DataError | None = None
    for seed in range(config.seed, config.seed + SEEDS):
        try:
            parts = split_frame(config.model_copy(update={"seed": seed}), frame)
        except DataError as error:
            problem = problem or error
            continue
        target = config.target.column
        if config.task == "classification" and set(parts.train[target]) != set(parts.test[target]):
            continue
        line = f"seed: {seed}  # the default leaves a rare class out of one side of the split\n"
        return text if seed == config.seed else text.replace("target:\n", f"{line}target:\n", 1)
    if problem:
        raise problem
    return text


def _key(name: str) -> str:
    """A name as a YAML key or scalar: plain where that is safe, else quoted."""
    safe = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _RESERVED
    return name if safe else json.dumps(name, ensure_ascii=False)


def _plain(name: str) -> str:
    return re.sub(r"[^\w .-]", "_", name)[:60]


def _flow(values: Sequence[Any]) -> str:
    return json.dumps([str(value) for value in values], ensure_ascii=False)
