"""Record where a row comes from: the code, the versions, the machine.

Only functions that need torch import it: the driver, which only needs the digest, has no torch.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from harness.study.records import Provenance
from harness.study.trials import TRAINING_VERSION

if TYPE_CHECKING:
    import torch

PACKAGE = Path(__file__).parents[1]
"""The folder of `harness`, of which workers run a copy."""

COMMIT_VARIABLE = "BN_ORDER_COMMIT"
"""Environment variable in which a driver passes its workers the commit, then 'dirty' if so."""


def describe(
    device: torch.device, *, started: datetime, attempt: int = 1, run: str = ""
) -> Provenance:
    """The provenance of a trial that ends now."""
    import torch  # noqa: PLC0415

    on_gpu = device.type == "cuda"
    commit, dirty = read_commit()
    return Provenance(
        attempt=attempt,
        run=run,
        started=started,
        finished=datetime.now(UTC),
        host=socket.gethostname(),
        worker=os.getpid(),
        device_kind=device.type,
        device=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        driver=_driver() if on_gpu else "",
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=_version_of("torchvision"),
        cuda=torch.version.cuda or "",
        deterministic=describe_determinism(),
        commit=commit,
        dirty=dirty,
        code_digest=digest_code(),
        training_version=TRAINING_VERSION,
    )


def describe_determinism() -> str:
    """The flags that decide whether a GPU gives the same bits again."""
    import torch  # noqa: PLC0415

    flags = {
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
    }
    return " ".join(f"{name}={value}" for name, value in flags.items())


@cache
def _version_of(package: str) -> str:
    """The version, read without importing: a worker without torchvision should not pay for it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def digest_code() -> str:
    """A digest, in 16 hex digits, of the source that decides the values in a trial's rows."""
    digest = hashlib.blake2b(digest_size=8)
    for path in list_training_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def list_training_files() -> list[Path]:
    """Every file of `harness.training`, and every other file of `harness` that these import."""
    found: set[Path] = set()
    waiting = list(Path(__file__).parent.glob("*.py"))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _list_imports(path)
    return sorted(found)


def _list_imports(path: Path) -> Iterator[Path]:
    """The files of `harness` that the file at `path` imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            module = PACKAGE.parent.joinpath(*node.module.split("."))
            candidates = [module, *(module / alias.name for alias in node.names)]
            yield from filter(Path.is_file, (one.with_suffix(".py") for one in candidates))


@cache
def read_commit() -> tuple[str, bool]:
    """The commit of this file's checkout, and whether it has changes; ("", False) without one.

    A worker reads a copy of the driver's files, outside any checkout: the driver tells it both.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        commit, _, state = told.partition(" ")
        return commit, state == "dirty"
    git = ("git", "-C", str(PACKAGE))
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):  # no git, no checkout
        return "", False
    return head.stdout.strip(), bool(status.stdout.strip())


@cache
def _processor() -> str:
    """The processor's name from /proc; `platform.processor()` is empty on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


@cache
def _driver() -> str:
    """Version of the NVIDIA driver, read from /proc: needs no process and no extra library."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")
