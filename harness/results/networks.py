"""Keep the files of users' own networks beside the rows, as `networks/<digest>.py`.

Workers on other nodes take them from there, and so does whoever trains a stored trial again. A file
is never overwritten, and its digest is checked whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.results.store import Store
from harness.study.errors import DamagedFileError
from harness.study.own import digest_source, recall, remember
from harness.study.trials import Trial


def keep_networks(store: Store, sources: Iterable[str]) -> None:
    """Write the files that are not there yet.

    Raises:
        DamagedFileError: one is there and has other content.
    """
    for source in sources:
        digest = digest_source(source)
        if not store.place.create(path_of(digest), source.encode()):
            read_network(store, path_of(digest))


def provide_network(store: Store, trial: Trial) -> None:
    """See to it that this process has the file that builds the network of `trial`, if it has one.

    Raises:
        DamagedFileError: it is missing, or has other content.
    """
    digest = trial.architecture_digest
    if digest and recall(digest) is None:
        remember(read_network(store, path_of(digest)))


def read_network(store: Store, path: str) -> str:
    """The text of one file, if its name is its digest.

    Raises:
        DamagedFileError: it is missing, or has other content.
    """
    content = store.place.read(path)
    if content is None:
        raise DamagedFileError(store.location, path, "is missing")
    try:
        source = content.decode()
    except UnicodeDecodeError:
        source = ""
    if path != path_of(digest_source(source)):
        raise DamagedFileError(store.location, path, "has not the content that its name promises")
    return source


def path_of(digest: str) -> str:
    """Where the file with this digest lies in a results folder."""
    return f"networks/{digest}.py"
