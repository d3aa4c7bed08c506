"""How typed frames are kept between steps, and the digest of what they hold."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import IO, Any, ClassVar

import numpy as np
import pandas as pd
from zenml.config.source import DistributionPackageSource, SourceType
from zenml.enums import ArtifactType
from zenml.materializers.base_materializer import BaseMaterializer

# Not the class itself: ZenML would look for the code repository it is in, and so open its database, at import.
FRAME_MATERIALIZER = DistributionPackageSource(
    module="steps.frames",
    attribute="FrameMaterializer",
    package_name="gauntlet",
    type=SourceType.DISTRIBUTION_PACKAGE,
)


class FrameMaterializer(BaseMaterializer):
    """Keeps a typed frame as Parquet and gives it back unchanged.

    ZenML's own turns a missing text into None, writes gzip, and shows the first raw rows. This one is given to a
    step's outputs by name and registered for nothing, so other pipelines keep ZenML's.
    """

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (pd.DataFrame,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    SKIP_REGISTRATION: ClassVar[bool] = True

    @property
    def _path(self) -> str:
        return f"{self.uri.rstrip('/')}/frame.parquet"

    def load(self, data_type: type[Any]) -> pd.DataFrame:  # noqa: ARG002
        """Read the frame; missing text is NaN."""
        with self.artifact_store.open(self._path, "rb") as file:
            return read_frame(file)

    def save(self, data: pd.DataFrame) -> None:
        """Write the frame."""
        with self.artifact_store.open(self._path, "wb") as file:
            write_frame(data, file)

    def extract_metadata(self, data: pd.DataFrame) -> dict[str, Any]:
        """Shape only: nothing of the content belongs in ZenML's database."""
        return {"rows": len(data), "columns": len(data.columns)}

    def compute_content_hash(self, data: pd.DataFrame) -> str:
        """Digest of the content: a step that makes the same frame again leaves the next one cached."""
        return content_digest(data, data.columns)


def write_frame(frame: pd.DataFrame, file: IO[bytes]) -> None:
    """Write a typed frame as Parquet."""
    frame.to_parquet(file, compression="zstd")


def read_frame(file: IO[bytes], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The typed frame that `write_frame` wrote, or some of its columns, unchanged: missing text is NaN."""
    frame = pd.read_parquet(file, columns=None if columns is None else list(columns))
    for name in frame.columns[[dtype == np.dtype(object) for dtype in frame.dtypes]]:
        column = frame[name].to_numpy(dtype=object, copy=True)
        column[pd.isna(column)] = np.nan
        frame[name] = column
    return frame


def content_digest(frame: pd.DataFrame, columns: Iterable[str]) -> str:
    """SHA-256 over the rows of some columns of a typed frame, in order; the same on every platform."""
    digest = hashlib.sha256()
    for name in columns:
        values = frame[name].to_numpy()
        digest.update(f"{len(name)}:{name}:{len(values)}:{values.dtype.kind};".encode())
        if values.dtype == object:
            codes, distinct = pd.factorize(values)
            words = [str(word).encode() for word in distinct]
            digest.update(b"".join(b"%d:%b" % (len(word), word) for word in words))
            digest.update(codes.astype("<i8").tobytes())
        elif values.dtype.kind == "M":
            digest.update(values.astype("datetime64[ns]").astype("<i8").tobytes())
        else:
            numbers = values.astype("<f8")
            numbers[np.isnan(numbers)] = np.nan  # one bit pattern
            digest.update(numbers.tobytes())
    return digest.hexdigest()
