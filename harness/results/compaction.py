"""Put the trials of many small files into a few, and change no row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from harness.results.store import TABLES, Store, name_stem

PART_BYTES = 64 << 20
"""Size of the small files, over all tables, that go into one part: it must fit into memory."""

Tables = Mapping[str, pa.Table]


def compact(store: Store, *, part_bytes: int = PART_BYTES) -> list[str]:
    """Put the trials of many small files into a few parts; the stems of the new ones.

    A part is written, read back and checked before the files it is made of are removed.

    Raises:
        StoreError: a file is damaged, or the place refuses.
    """
    _drop_covered(store)
    parts: list[str] = []
    for stems in _group(store.measure_stems(), part_bytes):
        tables = _concatenate([store.read_tables(stem) for stem in stems])
        part = name_stem(tables["trials"]["trial_id"].to_pylist())
        store.write_tables(part, tables)
        store.read_tables(part)
        for stem in stems:
            store.drop(stem)
        parts.append(part)
    return parts


def _drop_covered(store: Store) -> None:
    """Remove files whose trials all stand in one larger part: a compaction was killed there."""
    ids = store.read_ids()
    holders: dict[str, str] = {}
    for stem in sorted(ids, key=lambda stem: (-len(ids[stem]), stem)):
        for trial_id in ids[stem]:
            holders.setdefault(trial_id, stem)
    for stem, trial_ids in ids.items():
        covers = {holders[trial_id] for trial_id in trial_ids}
        if len(covers) == 1 and covers != {stem}:
            store.read_tables(covers.pop())  # raises where the larger part is not whole
            store.drop(stem)


def _group(sizes: Mapping[str, int], part_bytes: int) -> Iterator[list[str]]:
    """Stems that go together into parts; whatever is half a part already stays as it is."""
    group: list[str] = []
    filled = 0
    for stem, size in sizes.items():
        if size > part_bytes / 2:
            continue
        if group and filled + size > part_bytes:
            yield group
            group, filled = [], 0
        group.append(stem)
        filled += size
    if len(group) > 1:
        yield group


def _concatenate(pieces: Sequence[Tables]) -> dict[str, pa.Table]:
    """One set of tables from several; a trial that occurs twice is taken once."""
    taken: set[str] = set()
    selected: list[Tables] = []
    for tables in pieces:
        new = [t for t in tables["trials"]["trial_id"].to_pylist() if t not in taken]
        taken.update(new)
        selected.append(select(tables, new))
    return {
        name: pa.concat_tables([tables[name] for tables in selected]).combine_chunks()
        for name in TABLES
    }


def select(tables: Tables, trial_ids: Collection[str]) -> dict[str, pa.Table]:
    is_wanted = pc.field("trial_id").isin(list(trial_ids))
    return {name: table.filter(is_wanted) for name, table in tables.items()}
