"""Parquet files of a dataset, read in a way that is safe at the end of a process.

Arrow reads in threads of its own. Given a Python file object, or a buffer of Python bytes, one of these threads may drop the
last reference to it when the interpreter has begun to end, which aborts the process after its answer was printed. Every table
is therefore read from a file or from memory of Arrow, which need no interpreter to be freed.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import StorageError, damaged
from manifests.storage import Storage

REPAIR = "spinset repair {}"


def open_parquet(storage: Storage, name: str, repair: str = REPAIR) -> pq.ParquetFile:
    """Open a parquet file of a dataset; of a local one, only the columns that are asked for are read.

    Args:
        repair: the command that makes the file again, with `{}` in place of the dataset's address.

    Raises:
        DamagedData: the file is missing or is not a parquet file.
    """
    with reading(storage, name, repair):
        return _opened(pa.OSFile(storage.path(name))) if storage.is_local else parquet_file(storage.read(name))


def parquet_file(data: bytes) -> pq.ParquetFile:
    """A parquet file in memory; raises pyarrow's errors if it is none."""
    return _opened(pa.BufferReader(arrow_buffer(data)))


def _opened(file: pa.NativeFile) -> pq.ParquetFile:
    return pq.ParquetFile(file)


def arrow_buffer(data: bytes) -> pa.Buffer:
    """A copy of bytes in memory of Arrow."""
    copy = pa.BufferOutputStream()
    copy.write(data)
    return copy.getvalue()


def read_parquet(storage: Storage, name: str, columns: list[str] | None = None, repair: str = REPAIR) -> pa.Table:
    """Read a parquet file of a dataset, or some of its columns; struct fields are named as in "rgb.offset".

    Raises:
        DamagedData: the file is missing, is not a parquet file, or does not decode.
    """
    file = open_parquet(storage, name, repair)
    with reading(storage, name, repair):
        rows = file.read(columns=columns)
    if columns is None:
        return rows
    # Each requested field of a struct becomes a column.
    return (rows.flatten() if any("." in column for column in columns) else rows).select(columns)


def parquet_bytes(rows: pa.Table, metadata: Mapping[bytes, str | bytes] | None = None, **options: Any) -> bytes:
    """A table as a parquet file; `metadata` replaces that of its schema, `options` are those of pyarrow's `write_table`."""
    sink = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(metadata) if metadata else rows, sink, compression="zstd", **options)
    return sink.getvalue()


def as_array(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, without a copy if it is one array; its own `to_numpy` would import pandas, which is slow."""
    return np.from_dlpack(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


@contextmanager
def reading(storage: Storage, name: str, repair: str) -> Iterator[None]:
    """Turn errors of reading a parquet file into DamagedData with the command that makes the file again."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(name, "is missing", storage.url, repair) from error
    except StorageError:  # the file may be whole
        raise
    except (pa.ArrowException, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise damaged(name, f"is damaged ({first})", storage.url, repair) from error
