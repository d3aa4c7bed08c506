"""Packaging: a Release becomes a Bento that was built, served and timed in a place apart."""

from pydantic import BaseModel, ConfigDict


class Package(BaseModel):
    """A version's Bento and what its smoke test said.

    Attributes:
        model: Name of the model.
        version: Its number.
        tag: `<model>:<version as six digits>`.
        bento_uri: Where the `.bento` file lies in the registry's artifacts.
        size_bytes: Size of that file.
        p50_ms: Median time of a single prediction over HTTP, milliseconds.
        p95_ms: 95th percentile of the same.
        smoke: "passed", or why not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    tag: str
    bento_uri: str
    size_bytes: int
    p50_ms: float
    p95_ms: float
    smoke: str
