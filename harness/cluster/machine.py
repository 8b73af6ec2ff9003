"""What this machine gives a run: the CPUs it may use; and what it lacks, told ahead of the first trial.

Each of these lacks would end a run minutes later, or never, in words of Ray, torch or the system
that name neither the cause nor the variable to set.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from harness.study.errors import ClusterError, DataError, last_line
from harness.study.facts import default_root
from harness.study.trials import Trial
from harness.study.wording import explain_lost_docstrings

ROOM = 32 * 2**20
"""Bytes that a run needs in the temporary folder: Ray's logs, a copy of the code."""

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes in the path of a socket: a limit of the system."""

_SESSION = "ray/session_2026-11-27_12-00-00_000000_{pid}/sockets/plasma_store"
"""The longest of the sockets that Ray makes below its temporary folder."""


def count_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may use: under taskset, in a container or a job that is not all there are.

    A quota is rounded down, as by Ray, but never to none.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, int(min([allowed, *_list_quotas(root)])))


def _list_quotas(root: Path) -> Iterator[float]:
    """CPUs that the cgroups of this process may use, each of which is bound by all above it."""
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            bases = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mount / controllers, mount / "cpu"]
        else:
            continue
        for base in bases:
            group = base / path.lstrip("/")  # in a container it may name what is not mounted there
            for folder in (
                base,
                *(above for above in (group, *group.parents) if base in above.parents),
            ):
                with suppress(TypeError, ValueError):  # a file that is not there; "max"
                    quota, period = (_read(folder / "cpu.max") or "").split()
                    yield float(quota) / float(period)
                with suppress(TypeError, ValueError):
                    quota = float(_read(folder / "cpu.cfs_quota_us") or "")
                    if quota > 0:  # -1 for none
                        yield quota / float(_read(folder / "cpu.cfs_period_us") or "")


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return None


def refuse_unfit_machine(trials: Iterable[Trial], *, is_local: bool) -> None:
    """Refuse a machine on which no trial could begin, with everything that it lacks.

    `is_local`: Ray is to be started here, so that its workers are here, too.

    Raises:
        ClusterError: it lacks something.
    """
    lacks = [*_find_lacks_of_driver(is_local=is_local), *_find_lacks_of_home(is_local=is_local)]
    if is_local:
        lacks += _find_lacks_of_workers(list(trials))
    if lacks:
        raise ClusterError("; ".join(lacks))


def _find_lacks_of_driver(*, is_local: bool) -> Iterator[str]:
    if lack := explain_lost_docstrings("Ray cannot be imported"):
        yield lack
    folders = {"TMPDIR": os.environ.get("TMPDIR") or _find_temporary_folder()}
    if is_local:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        folders[name] = folder = os.environ.get(name, "/tmp")  # noqa: S108  where Ray goes
        socket = os.path.join(folder, _SESSION.format(pid=os.getpid()))  # noqa: PTH118  its bytes count
        if (excess := len(os.fsencode(socket)) - LONGEST_SOCKET) > 0:
            yield (
                f"{name}={folder}: {excess} bytes too long for the sockets that Ray makes below "
                "it. Set RAY_TMPDIR to a folder with a shorter path, such as /tmp"
            )
    for variable, folder in folders.items():
        if lack := _find_lack_of_folder(Path(folder)):
            yield (
                f"{variable}={folder}: {lack}. Set {variable} to a folder on this machine that "
                f"can be written, with {ROOM >> 20} MB of room"
            )


def _find_lacks_of_home(*, is_local: bool) -> Iterator[str]:
    try:
        token = Path("~/.ray/auth_token").expanduser()
    except RuntimeError:  # Ray asks for it as soon as it is imported
        yield (
            f"HOME is not set, and the user id {os.getuid()} has no home. Set HOME to a folder that "
            "can be written"
        )
        return
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if is_local and not any(map(os.environ.get, names)) and not _can_be_made(token):
        yield (
            f"HOME={os.environ.get('HOME', '')}: {token} cannot be made, where Ray keeps the token "
            "that guards a run. Set HOME to a folder that can be written"
        )


def _find_lacks_of_workers(trials: list[Trial]) -> Iterator[str]:
    if any(trial.dataset != "digits" for trial in trials):  # it comes with scikit-learn
        try:
            root = default_root()
        except DataError as error:
            yield str(error)
        else:
            variable = "BN_ORDER_DATA" if os.environ.get("BN_ORDER_DATA") else "HOME"
            if not _can_be_made(root):
                yield (
                    f"{variable}={os.environ.get(variable, '')}: data sets are kept in {root}, "
                    "which cannot be made. Set BN_ORDER_DATA to a folder that can be written"
                )
    if any(trial.compile for trial in trials) and (lack := explain_lack_of_compiler()):
        yield lack


def explain_lack_of_compiler() -> str | None:
    """What `compile: true` lacks on this machine, and what to do about it; None: nothing."""
    if lack := _find_lack_of_compiler():
        return (
            f"compile: true needs a C++ compiler, and {lack}. Install one (g++ and Python's "
            "headers), set CXX to it, or train with compile=false"
        )
    return None


def _find_temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # it tried to write in each
        return "/tmp"  # noqa: S108  the one that should have done


def _find_lack_of_folder(folder: Path) -> str | None:
    if not folder.is_absolute():
        return "not an absolute path"
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for _ in range(ROOM >> 20):
                file.write(bytes(2**20))
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _can_be_made(path: Path) -> bool:
    """Is it there, or can it be?"""
    try:
        existing = next(above for above in (path, *path.parents) if above.exists())
    except OSError:  # what is above it may not even be asked for
        return False
    return existing == path or _is_writable(existing)


def _is_writable(folder: Path) -> bool:
    """Tried, for neither root nor a network's file system is told by the bits of the mode."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _find_lack_of_compiler() -> str | None:
    """Asks of it what torch.compile will: a source with Python's own headers."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    include = sysconfig.get_path("include")
    try:
        subprocess.run(
            [*shlex.split(name), "-x", "c++", "-fsyntax-only", f"-I{include}", "-"],
            input="#include <Python.h>\n#include <vector>\n",
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "error" in line]
        return f"{name} says: {said[0] if said else last_line(error)}"
    except OSError as error:
        return f"{name}: {(error.strerror or str(error)).lower()}"
    return None
