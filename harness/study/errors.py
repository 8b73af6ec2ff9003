"""Everything this package raises on purpose.

* HarnessError
  + GridError     the grid cannot be used as written; its author mends it
  + ClusterError  Ray cannot give what was asked for; whoever runs it asks for less or adds nodes
    + RayLostError      Ray's own processes ended under the run; give the command again
    + GpuLostError      the process can use its GPU no more; give the command again
  + DataError     a data set is absent or not what it should be; says how to get it
  + StoreError    results cannot be written, or what is on disk is not ours
    + DamagedFileError  one file is not what its name promises; a repair sets it aside
    + ActiveRunError    another run is going on in the folder; wait for it, or join it

A loss that turns non-finite is not an error: it is an outcome, `TrialRow.status == "diverged"`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class HarnessError(Exception):
    """Its text is all that the user reads; `exit_code` is what the shell gets."""

    exit_code = 2


class GridError(HarnessError):
    """The mistakes of one grid, all at once, each ready to print on a line of its own."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class ClusterError(HarnessError):
    """Ray does not answer, or has no node that could ever run a trial of this size."""


class RayLostError(ClusterError):
    """A process of Ray's, without which no worker is reached, ended under the run."""

    exit_code = 4


class GpuLostError(ClusterError):
    """After an error of CUDA's a process cannot use its GPU any more; another one can."""

    exit_code = 4


class DataError(HarnessError):
    """A data set is absent, damaged, or not the one its name promises."""


class StoreError(HarnessError):
    """The results folder cannot be used."""

    exit_code = 3


class DamagedFileError(StoreError):
    """A file of the results is truncated, altered, foreign, or missing beside its trial."""

    def __init__(self, location: str, path: str, reason: str) -> None:
        super().__init__(
            f"{location}/{path}: {reason}. To set it aside and train it again: "
            f"python -m harness.upkeep repair {shlex.quote(location)}"
        )
        self.location = location
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[DamagedFileError], tuple[str, str, str]]:
        return DamagedFileError, (self.location, self.path, self.reason)


class ActiveRunError(StoreError):
    """Another run is going on in the results folder."""


def last_line(error: BaseException | None) -> str:
    """What an error says in the end; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
