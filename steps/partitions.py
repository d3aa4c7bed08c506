"""Partitions: typed rows as a folder of Parquet files, which are read one by one and never all at once."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from zenml.config.source import DistributionPackageSource, SourceType
from zenml.enums import ArtifactType
from zenml.materializers.base_materializer import BaseMaterializer

from models.config import ModelConfig
from models.errors import DataError, shown
from steps.frames import FRAME_MATERIALIZER, read_frame, write_frame
from steps.hashes import content_hashes
from steps.read import anew

INDEX = "partitions.json"
LANES = 4
Words = np.ndarray[Any, np.dtype[np.uint64]]
Each = Callable[..., list[Any]]
"""Calls a function with each item, and the same further arguments, and gives what came of them, in order."""

PARTITIONS_MATERIALIZER = DistributionPackageSource(
    module="steps.partitions",
    attribute="PartitionsMaterializer",
    package_name="gauntlet",
    type=SourceType.DISTRIBUTION_PACKAGE,
)
DATA_MATERIALIZERS = (FRAME_MATERIALIZER, PARTITIONS_MATERIALIZER)


@dataclass(frozen=True)
class Part:
    """One partition that was written.

    Attributes:
        name: Its file.
        rows: How many it holds, at least one.
        sums: See `row_sums`, of all columns.
        classes: Rows of each class; empty for a regression.
    """

    name: str
    rows: int
    sums: tuple[int, ...]
    classes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Partitions:
    """Typed rows in a folder: what a frame is with `compute: memory`.

    Attributes:
        uri: The folder, any fsspec address.
        columns: Names of the columns.
        parts: The files, in the order of the rows.
    """

    uri: str
    columns: tuple[str, ...]
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Rows of all partitions."""
        return sum(part.rows for part in self.parts)

    @property
    def classes(self) -> dict[str, int]:
        """Rows of each class, sorted by class; empty for a regression."""
        return counted(part.classes for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, whatever partitions they lie in and in which order."""
        return rows_digest(self.columns, len(self), [part.sums for part in self.parts])

    def read(self, part: Part, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One partition, or some of its columns, as the typed frame that was written.

        Raises:
            DataError: It is gone or damaged.
        """
        import fsspec
        from pyarrow import ArrowException

        try:
            with fsspec.open(f"{self.uri}/{part.name}", "rb", **anew(self.uri)) as file:
                frame = read_frame(file, columns)
        except (OSError, ArrowException, ValueError) as error:
            raise DataError(
                f"partition {part.name} of {shown(self.uri)} cannot be read ({type(error).__name__}); run again "
                "without the cache of the step that wrote it"
            ) from None
        return frame

    def column(self, name: str) -> "pd.Series[Any]":
        """One column of all rows, in order: the one thing that has to fit into the memory of a process."""
        series = [self.read(part, [name])[name] for part in self.parts]
        return pd.concat(series, ignore_index=True)


def write_part(uri: str, number: int, frame: pd.DataFrame, target: str | None) -> Part:
    """Write a typed frame as a partition.

    Args:
        uri: The folder.
        number: Its place among the partitions.
        frame: At least one row.
        target: The column of classes; None for a regression.
    """
    import fsspec

    name = f"part-{number:05d}.parquet"
    with fsspec.open(f"{uri}/{name}", "wb", **(anew(uri) or {"auto_mkdir": True})) as file:
        write_frame(frame, file)
    classes = {} if target is None else {str(k): int(n) for k, n in frame[target].value_counts().items()}
    return Part(name, len(frame), row_sums(frame, frame.columns), classes)


def remove_parts(uri: str) -> None:
    """Remove the partitions of a step that failed; what is not there is no fault."""
    import fsspec

    files, root = fsspec.core.url_to_fs(uri, **anew(uri))
    for path in files.glob(f"{root}/part-*.parquet"):
        files.rm(path)


def sample_rows(each: Each, partitions: Partitions, config: ModelConfig, rows: int, purpose: str) -> pd.DataFrame:
    """About `rows` rows, all where there are fewer, chosen and ordered by a seeded hash of their content.

    Which they are depends on the rows and the seed, not on the partitions or their order.

    Args:
        each: What calls a function for each partition.
        partitions: The rows.
        config: The model.
        rows: How many are wanted.
        purpose: Other purposes choose other rows.
    """
    share = min(1.0, rows / max(1, len(partitions)))
    found = each(_sampled, partitions.parts, partitions, config, share, purpose)
    frame = pd.concat([frame for frame, _ in found], ignore_index=True)
    order = np.argsort(np.concatenate([hashes for _, hashes in found]), kind="stable")
    return frame.take(order).reset_index(drop=True)


def in_turn(function: Callable[..., Any], items: Iterable[Any], *given: Any) -> list[Any]:
    """`Each` in this process: one item after the other."""
    return [function(item, *given) for item in items]


def public_columns(config: ModelConfig) -> list[str]:
    """The columns that hold no pseudonyms, which depend on a key, and the target."""
    return [*(name for name, column in config.columns.items() if not column.personal), config.target.column]


def row_sums(frame: pd.DataFrame, columns: Iterable[str]) -> tuple[int, ...]:
    """Sums, modulo 2^64, of four hashes of each row: the same in any order, and added up over partitions."""
    names = [str(name) for name in columns]
    return tuple(int(content_hashes(frame, names, f"rows:{lane}").sum(dtype=np.uint64)) for lane in range(LANES))


def rows_digest(columns: Sequence[str], rows: int, sums: Iterable[Sequence[int]]) -> str:
    """SHA-256 over names, number and `row_sums` of rows."""
    total = [sum(lane) % 2**64 for lane in zip(*sums, strict=True)]
    return hashlib.sha256(json.dumps([list(columns), rows, total]).encode()).hexdigest()


def counted(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, added up, sorted by name."""
    total: dict[str, int] = {}
    for some in counts:
        for name, count in some.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


class PartitionsMaterializer(BaseMaterializer):
    """Keeps the index of partitions, which the step wrote into the artifact's own folder."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Partitions,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    SKIP_REGISTRATION: ClassVar[bool] = True

    @property
    def _path(self) -> str:
        return f"{self.uri.rstrip('/')}/{INDEX}"

    def load(self, data_type: type[Any]) -> Partitions:  # noqa: ARG002
        """The index; no row is read."""
        with self.artifact_store.open(self._path, "r") as file:
            index = json.load(file)
        parts = tuple(Part(p["name"], p["rows"], tuple(p["sums"]), p["classes"]) for p in index["parts"])
        return Partitions(self.uri.rstrip("/"), tuple(index["columns"]), parts)

    def save(self, data: Partitions) -> None:
        """Write the index; the partitions are there."""
        index = asdict(replace(data, uri=""))
        with self.artifact_store.open(self._path, "w") as file:
            json.dump(index, file)

    def extract_metadata(self, data: Partitions) -> dict[str, Any]:
        """Numbers only: nothing of the content belongs in ZenML's database."""
        return {"rows": len(data), "columns": len(data.columns), "partitions": len(data.parts)}

    def compute_content_hash(self, data: Partitions) -> str:
        """Digest of the rows: a step that makes the same ones again leaves the next one cached."""
        return data.digest


def _sampled(
    part: Part, partitions: Partitions, config: ModelConfig, share: float, purpose: str
) -> tuple[pd.DataFrame, Words]:
    frame = partitions.read(part)
    hashes = content_hashes(frame, public_columns(config), f"{config.seed}:{purpose}")
    if share < 1:
        kept = np.flatnonzero(hashes < np.uint64(share * 2.0**64))
        frame, hashes = frame.take(kept), hashes[kept]
    return frame, hashes
