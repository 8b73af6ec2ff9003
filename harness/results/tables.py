"""Rows <-> Parquet bytes, strictly: what is not exactly one of our tables is refused.

The Arrow schema of a table follows from its record; every column carries its unit and meaning, and
no value is null. Pages carry checksums, and because Parquet has none for the footer that says where
the pages are, the file's metadata carries a digest of all values as well. Bytes may come from
strangers: their size is bounded before they are decoded, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.study.records import SCHEMA_VERSION, Provenance

MOST_ROWS = 20_000_000
MOST_BYTES = 1 << 31  # decoded; a Parquet file of 687 bytes can unfold to 100 GB

LARGE_TABLE = 1 << 14
"""Bytes from which on compression pays."""

Row = TypeVar("Row")

_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "datetime": pa.timestamp("us", tz="UTC"),
}

_MAY_DIFFER = {field.name for field in fields(Provenance)} | {
    "wall_time",
    "probe_time",
    "peak_memory",
}
"""Columns that may differ when a trial is trained twice: where, when and how fast."""


@cache
def schema_of(row_type: type[Any]) -> pa.Schema:
    """The Arrow schema of a record: types, units and meanings."""
    return pa.schema(
        [
            pa.field(
                field.name,
                _ARROW_TYPES[str(field.type)],
                nullable=False,
                metadata=dict(field.metadata),
            )
            for field in fields(row_type)
        ],
        metadata={"schema_version": str(SCHEMA_VERSION)},
    )


def to_table(rows: Sequence[Any], row_type: type[Any]) -> pa.Table:
    """The rows as columns."""
    schema = schema_of(row_type)
    columns = [
        pa.array([getattr(row, name) for row in rows], schema.field(name).type)
        for name in schema.names
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def to_rows(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """The columns as rows."""
    return [row_type(**row) for row in table.to_pylist()]


def encode(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The table as the bytes of one Parquet file, `metadata` added to the schema's own."""
    added = {key.encode(): value for key, value in (metadata or {}).items()}
    own = table.schema.metadata or {}
    table = table.replace_schema_metadata({**own, **added, b"digest": _digest(table)})
    sink = pa.BufferOutputStream()
    # One row of sixty columns takes a millisecond to compress, and gets no smaller by it.
    compression = "zstd" if table.nbytes > LARGE_TABLE else "none"
    pq.write_table(table, sink, compression=compression, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def decode(content: bytes, row_type: type[Any]) -> pa.Table:
    """The table that `encode` made into `content`, with its metadata.

    Raises:
        ValueError: what is wrong with the bytes, in words.
    """
    schema = schema_of(row_type)
    texts = [field.name for field in schema if _is_text(field.type)]
    try:
        # Not `metadata.schema`: those two refer to each other, and keep a hundred kilobytes each
        # until the garbage collector comes round, which for ten thousand files is too late.
        unread = pq.ParquetFile(pa.BufferReader(content))
        announced, found = unread.metadata, unread.schema_arrow
        _check_schema(found, schema)
        _check_announced_size(announced)
        file = pq.ParquetFile(
            pa.BufferReader(content),
            metadata=announced,
            # A text repeated a billion times is held once.
            read_dictionary=texts if announced.num_rows > 1 else [],
            page_checksum_verification=True,
        )
        table = file.read(use_threads=False)
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            raise ValueError("has values that are missing")
        _check_decoded_size(table)
        table = table.cast(schema)
    except (pa.ArrowException, OSError) as error:  # a wrong checksum is an OSError
        raise ValueError(f"not a whole Parquet file ({str(error).splitlines()[0]})") from error
    if found.metadata.get(b"digest", b"").decode(errors="replace") != _digest(table):
        raise ValueError("holds other values than were written")
    return table.replace_schema_metadata(found.metadata)


def find_differing_columns(one: pa.Table, other: pa.Table) -> list[str]:
    """Columns that are not equal bit for bit, timings and provenance aside; [] is reproducibility.

    Tables of different lengths differ in all their columns.
    """
    names = [name for name in one.column_names if name not in _MAY_DIFFER]
    return [name for name in names if not _bits(one[name]).equals(_bits(other[name]))]


def _digest(table: pa.Table) -> str:
    """A digest of names and values, whatever their layout in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(name.encode())
        if _is_text(column.type):
            texts = column.cast(pa.binary()).to_pylist()
            digest.update(np.array([len(text) for text in texts], np.int64).tobytes())
            digest.update(b"".join(texts))
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def _bits(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.view(pa.int64()) if pa.types.is_floating(array.type) else array  # NaN equals NaN


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _check_schema(found: pa.Schema, expected: pa.Schema) -> None:
    version = (found.metadata or {}).get(b"schema_version", b"").decode(errors="replace")
    if not version:
        raise ValueError("was not written by this harness: it has no schema_version")
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"has schema version {version}; this code reads {SCHEMA_VERSION}")
    if found.names != expected.names:
        odd = sorted(set(found.names) ^ set(expected.names))
        raise ValueError(f"has other columns than this table: {', '.join(odd) or 'their order'}")
    for field in found:
        kind = expected.field(field.name).type
        if field.type != kind:
            raise ValueError(f"column {field.name} is {field.type}, not {kind}")


def _check_announced_size(metadata: pq.FileMetaData) -> None:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > MOST_ROWS or size > MOST_BYTES:
        raise ValueError(f"announces {metadata.num_rows:,} rows and {size:,} bytes: too many")


def _check_decoded_size(table: pa.Table) -> None:
    size = table.nbytes + sum(_text_bytes(column) for column in table.columns)
    if size > MOST_BYTES:
        raise ValueError(f"would unfold to {size:,} bytes: too many")


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a dictionary column once every value is written out."""
    if not pa.types.is_dictionary(column.type):
        return 0
    size = 0
    for chunk in column.chunks:
        lengths = np.array(list(map(len, chunk.dictionary.cast(pa.binary()).to_pylist())), np.int64)
        size += int(lengths[chunk.indices.to_numpy()].sum())
    return size
