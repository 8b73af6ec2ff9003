"""Checkpoints: a long training saves one every few minutes and resumes from it on another worker.

The bytes of a checkpoint are not trusted: their size is bounded, their digest is checked, and they
hold tensors and plain values only. Needs torch and the standard library only.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import torch

from harness.study.errors import HarnessError
from harness.study.trials import Trial
from harness.training.provenance import describe

DIGEST_BYTES = 16
"""Size of the digest that precedes the content: torch would not notice altered numbers."""

_log = logging.getLogger(__name__)


class Resumable(Protocol):
    """A part of a training run whose state can be saved after an epoch and restored elsewhere."""

    def state(self) -> Any:  # noqa: ANN401 - tensors, numbers, text, and lists and dicts of them
        ...

    def restore(self, state: Any) -> None: ...  # noqa: ANN401


class Checkpoint:
    """Saves a run's state at intervals, so that a lost worker costs minutes and not hours.

    `read` and `write` move the bytes; this module does not know where they are stored. A checkpoint
    that is damaged, or from another pack, other code or another kind of device, is ignored and
    later overwritten. It holds tensors and plain values only: loading one never runs code.

    Units:
        every: seconds between two checkpoints; one is written only at the end of an epoch.
    """

    def __init__(
        self,
        trial: Trial,
        read: Callable[[], bytes | None],
        write: Callable[[bytes], None],
        *,
        device: torch.device,
        every: float,
    ) -> None:
        here = describe(device, started=datetime.now(UTC))
        pack = replace(trial, seed=trial.pack[0])
        names = (pack.id, here.code_digest, here.device, here.torch, here.cuda)
        self._names = [str(name) for name in names]  # torch.__version__ is not a plain str
        self._label = trial.label
        self._read = read
        self._write = write
        self._every = every
        self._last = time.monotonic()

    def resume(self, parts: Sequence[Resumable]) -> int:
        """Restore the parts from the checkpoint; returns the number of epochs done."""
        try:
            content = self._read()
            if content is None:
                return 0
            kept = _unpack(content)
            if kept["names"] != self._names:
                raise ValueError("of another pack, other code or another kind of device")  # noqa: TRY301
            epoch = int(kept["epoch"])
            _restore(parts, kept["parts"])
        except HarnessError:
            raise  # the results folder is unusable: not this trial's fault
        except Exception as error:  # noqa: BLE001  foreign bytes may be wrong in any way
            reason, *_ = traceback.format_exception_only(error)[-1].splitlines()
            _log.warning("%s: trained from its start; checkpoint: %s", self._label, reason)
            return 0
        _log.info("%s: goes on after epoch %d", self._label, epoch)
        return epoch

    def keep(self, parts: Sequence[Resumable], epoch: int) -> None:
        """Write a checkpoint of the parts, if one is due."""
        if time.monotonic() - self._last < self._every:
            return
        buffer = io.BytesIO()
        states = [part.state() for part in parts]
        torch.save({"names": self._names, "epoch": epoch, "parts": states}, buffer)
        self._write(_digest(buffer.getbuffer()) + buffer.getbuffer())
        self._last = time.monotonic()


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _unpack(content: bytes) -> Any:  # noqa: ANN401
    digest, rest = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if digest != _digest(rest):
        raise ValueError("damaged")
    with zipfile.ZipFile(io.BytesIO(rest)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(rest):
            raise ValueError("would unfold to more than it is")
    return torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)


def _restore(parts: Sequence[Resumable], states: Sequence[Any]) -> None:
    """Restore all parts, or none of them."""
    fresh = copy.deepcopy([part.state() for part in parts])
    try:
        for part, state in zip(parts, states, strict=True):
            part.restore(state)
    except Exception:
        for part, state in zip(parts, fresh, strict=True):
            part.restore(state)
        raise
