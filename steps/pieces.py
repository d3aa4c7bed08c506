"""Partitioned Parquet as a source: a folder, a glob or one large file, looked at by its footers and read in pieces."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import FileSource
from models.errors import DataError, shown
from steps.read import Chunk, anew, data_dir, missing_texts, names_text, not_there, require_columns, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

PIECE_ROWS = 250_000
_BLOCK = 1 << 22
_READERS = 8
_SUFFIXES = (".parquet", ".pq")
_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of one file: what is held in memory at once.

    Attributes:
        address: The file, as fsspec opens it.
        groups: Numbers of the row groups; about 250,000 rows, but at least one.
        start: Rows of the source before it.
        rows: Its own rows.
    """

    address: str
    groups: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class Pieces:
    """A partitioned source.

    Attributes:
        pieces: In the order of the files' names.
        extra: Columns that are there and not needed.
        empty: How many files hold no rows.
    """

    pieces: tuple[Piece, ...]
    extra: tuple[str, ...]
    empty: int

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.rows for piece in self.pieces)


@dataclass(frozen=True)
class _Footer:
    schema: "pa.Schema"
    groups: tuple[int, ...]


def is_partitioned(source: FileSource) -> bool:
    """Whether a source is a folder or a glob of Parquet files."""
    if source.kind != "parquet":
        return False
    if source.path.endswith("/") or _WILD & set(source.path):
        return True
    if "://" in source.path:
        import fsspec

        return not Path(source.path).suffix and bool(
            fsspec.core.url_to_fs(source.path, **anew(source.path))[0].isdir(source.path)
        )
    return (data_dir() / Path(source.path).expanduser()).is_dir()


def parquet_files(source: FileSource, others: Sequence[str] = ()) -> list[str]:
    """Addresses of the files of a source, sorted; hidden ones and those that begin with `_` are none.

    Raises:
        DataError: There are none, or the place cannot be listed.
    """
    import fsspec

    remote = "://" in source.path
    place = source.path if remote else str(data_dir() / Path(source.path).expanduser())
    try:
        files, root = fsspec.core.url_to_fs(place, **anew(place))
        if _WILD & set(root):
            found = files.glob(root)
        else:
            found = files.find(root) if files.isdir(root) else [root] if files.exists(root) else []
    except FileNotFoundError:
        found = []
    except Exception as error:  # fsspec's file systems each raise their own
        raise DataError(unreadable(source, place, error, others)) from None
    kept = [path for path in sorted(found) if not Path(path).name.startswith((".", "_"))]
    if len(kept) > 1 or is_partitioned(source):
        kept = [path for path in kept if Path(path).suffix.lower() in _SUFFIXES]
    if not kept:
        raise DataError(not_there(source, others, "Parquet file in"))
    return [files.unstrip_protocol(path) if remote else str(path) for path in kept]


def files_digest(addresses: Sequence[str]) -> str:
    """SHA-256 of what the files hold, whatever they are called.

    Raises:
        DataError: One cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        sums = sorted(readers.map(_sum, addresses))
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def look(source: FileSource, needed: Sequence[str], others: Sequence[str] = ()) -> Pieces:
    """Look at the footers of all files of a source.

    Raises:
        DataError: There is no file, one is unreadable, lacks a column or holds one of another kind than the first;
            or there are no rows.
    """
    addresses = parquet_files(source, others)
    with ThreadPoolExecutor(_READERS) as readers:
        footers = list(readers.map(lambda address: _footer(source, address), addresses))
    where = f"source '{source.name}'"
    pieces: list[Piece] = []
    start = 0
    for address, footer in zip(addresses, footers, strict=True):
        require_columns(footer.schema.names, needed, f"{where} ({shown(address)})", first_line=False)
        for groups, rows in _together(footer.groups):
            pieces.append(Piece(address, groups, start, rows))
            start += rows
    _require_alike(where, needed, addresses, footers)
    if not pieces:
        raise DataError(f"{where}: its {len(addresses)} Parquet files hold columns and no rows; give it data")
    extra = dict.fromkeys(name for footer in footers for name in footer.schema.names if name not in needed)
    return Pieces(tuple(pieces), tuple(extra), sum(not sum(footer.groups) for footer in footers))


def read_piece(source: FileSource, piece: Piece, needed: Sequence[str]) -> Chunk:
    """The raw rows of a piece.

    Raises:
        DataError: It cannot be read.
    """
    import fsspec
    from pyarrow import ArrowException, parquet

    try:
        with fsspec.open(piece.address, "rb", **anew(piece.address)) as file:
            table = parquet.ParquetFile(file).read_row_groups(list(piece.groups), columns=list(needed))
        frame = table.to_pandas(integer_object_nulls=True).reset_index()[list(needed)]
    except MemoryError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(_damaged(source, piece.address, error)) from None
    return Chunk(missing_texts(frame, table.schema, source))


def _together(groups: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Numbers and rows of consecutive row groups, which are given by their rows."""
    held: list[int] = []
    rows = 0
    for number, count in enumerate(groups):
        if held and rows + count > PIECE_ROWS:
            yield tuple(held), rows
            held, rows = [], 0
        if count:
            held.append(number)
            rows += count
    if held:
        yield tuple(held), rows


def _footer(source: FileSource, address: str) -> _Footer:
    import fsspec
    from pyarrow import ArrowException, parquet

    try:
        with fsspec.open(address, "rb", **anew(address)) as file:
            opened = parquet.ParquetFile(file)
            metadata = opened.metadata
            groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
            return _Footer(opened.schema_arrow, groups)
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(_damaged(source, address, error)) from None


def _damaged(source: FileSource, address: str, error: Exception) -> str:
    said = f"partition {shown(address)} is no readable Parquet file ({type(error).__name__})"
    return f"source '{source.name}': {said}; write it anew or take it out of the folder"


def _require_alike(where: str, needed: Sequence[str], addresses: Sequence[str], footers: Sequence[_Footer]) -> None:
    """Stop where a column is a text in one partition and a number in another, say; all missing fits everything."""
    for name in needed:
        first: tuple[str, str] | None = None
        for address, footer in zip(addresses, footers, strict=True):
            kind = _kind(footer.schema.field(name).type)
            if kind == "nothing":
                continue
            first = first or (kind, address)
            if kind != first[0]:
                raise DataError(
                    f"{where}: column {names_text([name])} is a {first[0]} in partition {shown(first[1])} and a {kind} "
                    f"in {shown(address)}; write one of them anew"
                )


def _kind(stored: Any) -> str:
    from pyarrow import types

    stored = stored.value_type if types.is_dictionary(stored) else stored
    if types.is_null(stored):
        return "nothing"
    if types.is_integer(stored) or types.is_floating(stored) or types.is_decimal(stored):
        return "number"
    if types.is_string(stored) or types.is_large_string(stored):
        return "text"
    return "date" if types.is_temporal(stored) else str(stored)


def _sum(address: str) -> str:
    import fsspec

    digest = hashlib.sha256()
    try:
        with fsspec.open(address, "rb", **anew(address)) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"partition {shown(address)} cannot be read ({type(error).__name__}); run again") from None
    return digest.hexdigest()


def chunks(source: FileSource, needed: Sequence[str], others: Sequence[str] = ()) -> Iterator[Chunk]:
    """The raw rows of all pieces, one after the other."""
    found = look(source, needed, others)
    for piece in found.pieces:
        yield Chunk(read_piece(source, piece, needed).frame, found.extra)
