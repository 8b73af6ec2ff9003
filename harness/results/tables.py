"""Convert rows to Parquet bytes and back, and refuse whatever is not exactly one of our tables.

The Arrow schema of a table follows from its record; every column carries its unit and meaning, and
no value is null. Pages have checksums. Parquet has none for the footer that locates the pages, so
the file's metadata also holds a digest of all values. Bytes are not trusted: their size is bounded
before they are decoded, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.study.records import SCHEMA_VERSION, Provenance, Settings
from harness.study.trials import Trial

MOST_ROWS = 20_000_000
MOST_BYTES = 1 << 31  # decoded; a Parquet file of 687 bytes can decode to 100 GB

LARGE_TABLE = 1 << 14
"""Bytes above which compression is worth its time."""

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
    return [row_type(**row) for row in _list_rows(table)]


def encode(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The table as the bytes of one Parquet file, with `metadata` added to the schema's."""
    added = {key.encode(): value.encode() for key, value in (metadata or {}).items()}
    table = table.replace_schema_metadata((table.schema.metadata or {}) | added)
    table = table.replace_schema_metadata(table.schema.metadata | {b"digest": _digest(table)})
    sink = pa.BufferOutputStream()
    # Compressing one row of sixty columns takes a millisecond and makes it no smaller.
    compression = "zstd" if table.nbytes > LARGE_TABLE else "none"
    pq.write_table(table, sink, compression=compression, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def decode(content: bytes, row_type: type[Any]) -> pa.Table:
    """The table that `encode` wrote to `content`, with its metadata.

    Raises:
        ValueError: what is wrong with the bytes, in words.
    """
    schema = schema_of(row_type)
    texts = [field.name for field in schema if _is_text(field.type)]
    try:
        # Not `metadata.schema`: the two refer to each other, so each keeps a hundred kilobytes
        # until the garbage collector runs, which is too late for ten thousand files.
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        announced, found = file.metadata, file.schema_arrow
        _check_schema(found, schema)
        _check_announced_size(announced)
        if announced.num_rows > 1:  # a text repeated a billion times is stored once
            file = pq.ParquetFile(
                pa.BufferReader(content),
                metadata=announced,
                read_dictionary=texts,
                page_checksum_verification=True,
            )
        table = file.read(use_threads=False)
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            raise ValueError("has values that are missing")
        _check_decoded_size(table)
        if table.schema.equals(schema):  # not with the metadata of the fields, which are the code's
            table = pa.Table.from_arrays(table.columns, schema=schema)
        else:
            table = table.cast(schema)
    except (pa.ArrowException, OSError) as error:  # a wrong checksum is an OSError
        raise ValueError(f"not a whole Parquet file ({str(error).splitlines()[0]})") from error
    table = table.replace_schema_metadata(found.metadata)
    if found.metadata.get(b"digest", b"").decode(errors="replace") != _digest(table):
        raise ValueError("holds other values than were written")
    return table


def check_identity(table: pa.Table, version: int | None = None) -> Iterator[Trial]:
    """Yield the trial of each row after checking that its id and arm follow from its settings.

    Units:
        version: the training version of all of them; by default each row names its own.

    Raises:
        ValueError: which row contradicts itself.
    """
    names = [*(field.name for field in fields(Settings)), "arm", "trial_id"]
    versions = table["training_version"].to_pylist() if version is None else repeat(version)
    for row, of in zip(_list_rows(table.select(names)), versions, strict=False):
        trial_id, arm = row.pop("trial_id"), row.pop("arm")
        trial = Trial(**row)
        if trial.id_under(of) != trial_id:
            raise ValueError(f"trial_id {trial_id} does not follow from the settings beside it")
        if trial.arm != arm:
            raise ValueError(f"arm {arm!r} does not follow from the settings beside it")
        yield trial


def find_differing_columns(one: pa.Table, other: pa.Table) -> list[str]:
    """Columns that differ in any bit, except timings and provenance; [] means reproduced.

    Tables of different lengths differ in all columns.
    """
    names = [name for name in one.column_names if name not in _MAY_DIFFER]
    return [name for name in names if not _bits(one[name]).equals(_bits(other[name]))]


def digest_text(text: str) -> str:
    """16 hex digits that name a file by its content."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _digest(table: pa.Table) -> str:
    """A digest of names, values and added metadata, independent of their layout in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(name.encode())
        if _is_text(column.type):
            lengths, content = _unfold(column.combine_chunks())
            digest.update(lengths.astype(np.int64).tobytes())
            digest.update(content)
        else:
            digest.update(column.to_numpy().tobytes())
    for key, value in sorted((table.schema.metadata or {}).items()):
        if key not in {b"schema_version", b"digest"}:
            digest.update(key + b"=" + value)
    return digest.hexdigest()


def _unfold(texts: pa.Array) -> tuple[NDArray[np.int32], memoryview]:
    """The lengths of all values, and their concatenated bytes; copies nothing."""
    _, places, content = texts.buffers()
    if not len(texts):
        return np.empty(0, np.int32), memoryview(b"")
    ends = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.diff(ends), memoryview(content or b"")[ends[0] : ends[-1]]


def _list_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows as dicts, few at a time; equal texts are one object: a study repeats its settings."""
    for batch in table.to_batches(max_chunksize=1_000):
        for row in batch.to_pylist():
            yield {
                name: sys.intern(value) if type(value) is str else value
                for name, value in row.items()
            }


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
