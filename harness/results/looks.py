"""Record each look at the results beside the rows: repeated looks raise the error rate.

One small JSON file below `looks/` per state of the data that was looked at. Looking again at the
same rows is not a new look, whatever report is written from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from harness.results.store import Store
from harness.study.errors import DamagedFileError


@dataclass(frozen=True, slots=True, order=True)
class SeenLook:
    """A look at the rows of a study."""

    fraction: float
    """Share of the planned information at this look."""
    trials: int
    """Finished trials of the study."""
    is_planned: bool
    at: str
    """UTC, ISO 8601."""


def record_look(
    store: Store, trial_ids: Iterable[str], *, fraction: float, is_planned: bool
) -> list[SeenLook]:
    """Record a look at these finished trials; returns all looks, this one included, by information.

    Raises:
        StoreError: the place cannot be used, or a file of looks is damaged.
    """
    names = sorted(trial_ids)
    digest = hashlib.blake2b(" ".join(names).encode(), digest_size=8).hexdigest()
    look = SeenLook(fraction, len(names), is_planned, datetime.now(UTC).isoformat())
    store.place.create(f"looks/{digest}.json", json.dumps(asdict(look)).encode())
    return read_looks(store)


def read_looks(store: Store) -> list[SeenLook]:
    """All looks so far, the one with the least information first."""
    return sorted(_read_look(store, path) for path in store.list_paths("looks"))


def _read_look(store: Store, path: str) -> SeenLook:
    try:
        return SeenLook(**json.loads(store.place.read(path) or b""))
    except (TypeError, ValueError) as error:
        raise DamagedFileError(store.location, path, f"is no look of ours ({error})") from error
