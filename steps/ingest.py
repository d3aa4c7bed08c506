"""Reading: a source of the YAML becomes a typed frame, or a stop that says why."""

import hashlib
import hmac
import json
import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from zenml import get_step_context, step

from models.config import FileSource, HttpSource, ModelConfig, SklearnSource, Source, SqlSource, UrlSource
from models.errors import ConfigError, DataError
from stacks.home import secret_key
from steps import snapshot
from steps.api import api_rows
from steps.caching import cached_by, parse_config
from steps.cluster import cluster
from steps.database import query_rows
from steps.download import download
from steps.frames import FRAME_MATERIALIZER, content_digest
from steps.generators import generate
from steps.hashes import content_hashes
from steps.ingest_parts import IngestedParts, type_pieces
from steps.partitions import DATA_MATERIALIZERS, Partitions, row_sums, rows_digest
from steps.pieces import chunks, files_digest, is_partitioned, parquet_files
from steps.read import Chunk, names_text, read_bytes, read_table, require_columns
from steps.rows import typed_rows
from steps.snapshot import Snapshot

log = logging.getLogger(__name__)

LiveSource = SqlSource | HttpSource


@dataclass(frozen=True)
class Ingested:
    """What a source holds.

    Attributes:
        frame: The typed frame: the YAML's columns, then the target, then (where the split goes by a personal
            column) `split_bucket`.
        digest: SHA-256 of the frame's content without personal columns, so that it does not depend on the key.
        source_line: One line that says which source was used and how much it gave.
        rows: Number of rows of the frame.
        quarantined: The rows that did not fit, as `quarantine.Rejected.frame` describes them; usually empty.
        notices: What a person should know, such as columns that were left out.
    """

    frame: pd.DataFrame
    digest: str
    source_line: str
    rows: int
    quarantined: pd.DataFrame
    notices: tuple[str, ...] = ()


def source_line(config: ModelConfig, source_name: str | None = None) -> str:
    """Which source is used, as the first line of a run."""
    source = config.source(source_name)
    others = _others(config, source)
    return f"source '{source.name}': {source.label}" + (f" (others by --source: {', '.join(others)})" if others else "")


def source_digest(config: ModelConfig, source_name: str | None = None) -> str:
    """Digest of what a source gives now: a file's content, all that generated rows depend on, the rows of a query.

    The rows of a database or an API, which may be others a moment later, are kept for ingest to take.

    Raises:
        DataError: The source cannot be read, or (a database, an API) does not hold what the YAML declares.
        ConfigError: No source has that name, or a variable that it names is not set.
    """
    source = config.source(source_name)
    if config.compute == "dask" and source.kind != "parquet":
        raise ConfigError(
            f"compute: dask reads Parquet, and source '{source.name}' is {source.label}; choose another --source, or "
            "--set compute=memory"
        )
    if isinstance(source, LiveSource):
        held = _held(config, source)
        digest = _live_digest(source, held)
        snapshot.keep(digest, held)
        return digest
    return _digest(config, source, _content(config, source))


def _digest(config: ModelConfig, source: Source, content: bytes) -> str:
    digest = hashlib.sha256(json.dumps(source.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(hashlib.sha256(content).digest())
    if isinstance(source, SklearnSource):
        import sklearn

        digest.update(sklearn.__version__.encode())
    if any(column.personal for column in config.columns.values()):
        digest.update(hmac.new(secret_key(), b"gauntlet source digest", hashlib.sha256).digest())
    return digest.hexdigest()


def _live_digest(source: Source, held: Snapshot) -> str:
    digest = hashlib.sha256(json.dumps(source.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(content_digest(held.frame, map(str, held.frame.columns)).encode())
    columns = [str(name) for name in held.quarantined.columns if name != "quarantine_row"]
    digest.update(np.sort(content_hashes(held.quarantined, columns)).astype("<u8").tobytes())
    return digest.hexdigest()


def ingest_frame(config: ModelConfig, source_name: str | None = None, digest: str = "") -> Ingested:
    """Read a source into a typed frame; personal columns leave this function as pseudonyms only.

    Args:
        config: The model; `seed` and `split` matter only where a personal column decides the split.
        source_name: The source; the first when left out.
        digest: What `source_digest` said, to notice a source that changed since; not looked at when empty.

    Raises:
        DataError: The source cannot be read, or does not hold what the YAML declares.
        ConfigError: No source has that name, or a variable that it names is not set.
    """
    source = config.source(source_name)
    if isinstance(source, LiveSource):
        taken = snapshot.take(digest) if digest else None
        held = taken or _held(config, source)
        changed = taken is None and digest not in ("", _live_digest(source, held))
    else:
        content = _content(config, source)
        changed = digest not in ("", _digest(config, source, content))
        held = _held(config, source, content)
    if changed:
        raise DataError(f"source '{source.name}': {source.label} changed while it was read; run again")
    personal = {name for name, column in config.columns.items() if column.personal}
    public = [str(name) for name in held.frame.columns if name not in personal]
    count = len(held.frame)
    line = f"{source_line(config, source.name)}: {count:,} rows, {len(config.columns)} columns"
    if _is_partitioned(source):
        data = rows_digest(public, count, [row_sums(held.frame, public)])
    else:
        data = content_digest(held.frame, public)
    return Ingested(held.frame, data, line, count, held.quarantined, held.notices)


def _is_partitioned(source: Source) -> bool:
    return isinstance(source, FileSource) and is_partitioned(source)


def _held(config: ModelConfig, source: Source, content: bytes = b"") -> Snapshot:
    """The typed rows of a source; those of a database or API in an order of their own, since any may come."""
    extra: dict[str, None] = {}

    def frames() -> Iterator[pd.DataFrame]:
        for chunk in raw:
            extra.update(dict.fromkeys(chunk.extra))
            yield chunk.frame

    with closing(_chunks(config, source, content)) as raw:
        rows = typed_rows(config, frames())
    notices = [f"columns that the YAML does not declare are left out: {names_text(extra)}"] if extra else []
    notices += [rows.rejected.notice] if rows.rejected.notice else []
    frame = _in_order(config, rows.frame) if isinstance(source, LiveSource) else rows.frame
    return Snapshot(frame, rows.rejected.frame, tuple(notices))


def _in_order(config: ModelConfig, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by a hash of their content; pseudonyms, which depend on the key, only break ties."""
    public = [name for name, column in config.columns.items() if not column.personal] + [config.target.column]
    personal = [name for name, column in config.columns.items() if column.personal]
    order = np.lexsort((content_hashes(frame, personal), content_hashes(frame, public)))
    return frame.take(order).reset_index(drop=True)


def _content(config: ModelConfig, source: Source) -> bytes:
    """The bytes of a source that is a file, a digest of them where it is many; nothing for any other."""
    if isinstance(source, FileSource) and (config.compute == "dask" or is_partitioned(source)):
        return files_digest(parquet_files(source, _others(config, source))).encode()
    if isinstance(source, FileSource):
        return read_bytes(source, _others(config, source))
    return download(source) if isinstance(source, UrlSource) else b""


def _chunks(config: ModelConfig, source: Source, content: bytes) -> Generator[Chunk, None, None]:
    """The raw rows of a source, which has all declared columns."""
    needed = [*config.columns, config.target.column]
    if isinstance(source, SqlSource):
        yield from query_rows(source, needed)
    elif isinstance(source, HttpSource):
        yield from api_rows(source, needed)
    elif isinstance(source, FileSource) and is_partitioned(source):
        yield from chunks(source, needed, _others(config, source))
    elif isinstance(source, FileSource | UrlSource):
        raw, extra = read_table(content, source.file if isinstance(source, UrlSource) else source, needed)
        yield Chunk(raw, tuple(extra))
    else:
        raw = _sklearn_frame(source, config.target.column) if isinstance(source, SklearnSource) else generate(source)
        require_columns(raw.columns, needed, f"source '{source.name}'", first_line=False)
        yield Chunk(raw, tuple(str(name) for name in raw.columns if name not in needed))


@step(
    cache_policy=cached_by(__name__),
    output_materializers={"raw": DATA_MATERIALIZERS, "quarantined": FRAME_MATERIALIZER},
)
def ingest(
    config: str, source: str, digest: str
) -> tuple[
    Annotated[pd.DataFrame | Partitions, "raw"],
    Annotated[str, "data_digest"],
    Annotated[pd.DataFrame, "quarantined"],
]:
    """Read the named source of a model; `digest` makes changed data a new cache key."""
    parsed = parse_config(config)
    ingested: Ingested | IngestedParts
    if parsed.compute == "dask":
        place = get_step_context().get_output_artifact_uri("raw")
        ingested = ingest_partitions(parsed, source, digest, place)
    else:
        ingested = ingest_frame(parsed, source, digest)
    log.info(ingested.source_line)
    for notice in ingested.notices:
        log.warning(notice)
    return ingested.frame, ingested.digest, ingested.quarantined


def ingest_partitions(config: ModelConfig, source_name: str | None, digest: str, place: str) -> IngestedParts:
    """Read a Parquet source into typed partitions, a piece at a time on Dask workers.

    Args:
        config: The model.
        source_name: The source; the first when left out.
        digest: What `source_digest` said, to notice a source that changed since; not looked at when empty.
        place: The folder to write the partitions into, any fsspec address.

    Raises:
        DataError: The source cannot be read, or does not hold what the YAML declares.
        ConfigError: No source has that name.
        WorkError: Workers do not start or are lost.
    """
    source = config.source(source_name)
    if digest not in ("", source_digest(config, source_name)):
        raise DataError(f"source '{source.name}': {source.label} changed while it was read; run again")
    assert isinstance(source, FileSource)
    line = source_line(config, source_name)
    with cluster("ingest") as dask:
        return type_pieces(dask.each, config, source, line, place, _others(config, source))


def _others(config: ModelConfig, source: Source) -> list[str]:
    return [other.name for other in config.sources if other.name != source.name]


def _sklearn_frame(source: SklearnSource, target: str) -> pd.DataFrame:
    from sklearn import datasets

    frame: pd.DataFrame = getattr(datasets, f"load_{source.dataset}")(as_frame=True).frame
    return frame.rename(columns={"target": target})
