"""Keep the rows of `trials` in one file as well, so that a bucket of thousands opens in a few requests.

The index is derived, and may be removed at any time. A row is taken from it only where the listing
still shows its file by the name, size and time that it had ahead of being read. A file that is
replaced gets another time; one so young that it could be replaced within the same is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice

from harness.results.places import LARGEST_FILE, File
from harness.results.store import NAMES, Store, name_stem, stem_of
from harness.results.tables import check_identity, decode, digest_text, encode, to_rows, to_table
from harness.study.records import TrialRow

SETTLING = 10.0
"""Seconds by the file server's clock; its times are whole seconds, and no write of a row is longer."""

LARGEST_SKEW = 900.0
"""Seconds between the clocks of this machine and of an object store, which refuses more."""


def recall(store: Store, entries: Mapping[str, Sequence[File]]) -> dict[str, list[TrialRow]]:
    """Path -> the rows of its file, for the files in `trials` that an index still vouches for."""
    names = NAMES["index"]
    indexes = [file for file in entries["index"] if not file.oddity and names.fullmatch(file.name)]
    for file in sorted(indexes, key=lambda file: file.modified)[-1:]:
        with suppress(ValueError, KeyError, TypeError):  # damaged: then each file is read
            content = store.place.read(f"index/{file.name}") or b""
            return _select_unchanged(content, entries["trials"])
    return {}


def _select_unchanged(content: bytes, listed: Sequence[File]) -> dict[str, list[TrialRow]]:
    table = decode(content, TrialRow)
    list(check_identity(table))
    rows = iter(to_rows(table, TrialRow))
    known: dict[str, list[TrialRow]] = {}
    files = {file.name: [file.modified, file.size] for file in listed if not file.oddity}
    for name, *as_read, count in json.loads(table.schema.metadata[b"files"]):
        held = list(islice(rows, count))
        if files.get(name) == as_read and name_stem([row.trial_id for row in held]) == stem_of(
            name
        ):
            known[f"trials/{name}"] = held
    return known


def list_settled(entries: Mapping[str, Sequence[File]]) -> dict[str, File]:
    """Stem -> its file in `trials`, for those that are old enough to be told apart by their time."""
    times = [file.modified for files in entries.values() for file in files if not file.oddity]
    now = max([time.time() - LARGEST_SKEW + SETTLING, *times])
    return {
        stem_of(file.name): file
        for file in entries["trials"]
        if not file.oddity and file.modified <= now - SETTLING
    }


def write_index(
    store: Store,
    rows: Mapping[str, TrialRow],
    ids: Mapping[str, Sequence[str]],
    settled: Mapping[str, File],
) -> None:
    """Index these rows, in place of any index before; `settled` are their files, listed ahead of the reading."""
    stems = [stem for stem in ids if stem in settled]
    table = to_table([rows[trial_id] for stem in stems for trial_id in ids[stem]], TrialRow)
    files = [(f.name, f.modified, f.size, len(ids[s])) for s in stems for f in [settled[s]]]
    text = json.dumps(files)
    content = encode(table, {"files": text})
    if len(content) > LARGEST_FILE:
        return
    path = f"index/{digest_text(text)}.parquet"
    store.place.create(path, content)
    for other in store.list_paths("index"):
        if other != path:
            store.place.remove(other)
