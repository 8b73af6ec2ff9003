"""What a long training keeps every few minutes, and goes on from where its worker was lost.

Bytes of a checkpoint may be anyone's: they are bounded, checked against a digest, and hold tensors
and plain values only. Torch and the standard library only.
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
"""Of the content, ahead of it: torch reads altered numbers without a word."""

_log = logging.getLogger(__name__)


class Resumable(Protocol):
    """A part of a training run that can be put down at an epoch's end and taken up elsewhere."""

    def state(self) -> Any:  # noqa: ANN401 - tensors, numbers, text, and lists and dicts of them
        ...

    def restore(self, state: Any) -> None: ...  # noqa: ANN401


class Checkpoint:
    """Keeps a run's state every so often, so that a lost worker costs minutes and not hours.

    `read` and `write` move the bytes: where they lie is not this module's business. What is of
    another pack, other code or another kind of device is not gone on with, nor what is damaged or
    a stranger's; it is overwritten in time. Content is tensors and plain values: no code is run.

    Units:
        every: seconds between two checkpoints, at epochs' ends.
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
        self._names = [str(name) for name in names]  # torch's version is more than a text
        self._label = trial.label
        self._read = read
        self._write = write
        self._every = every
        self._last = time.monotonic()

    def resume(self, parts: Sequence[Resumable]) -> int:
        """Put the parts back to where they were kept; the number of epochs done."""
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
            raise  # the place of the results refuses: no trial's business
        except Exception as error:  # noqa: BLE001  foreign bytes may be wrong in any way
            reason, *_ = traceback.format_exception_only(error)[-1].splitlines()
            _log.warning("%s: trained from its start; checkpoint: %s", self._label, reason)
            return 0
        _log.info("%s: goes on after epoch %d", self._label, epoch)
        return epoch

    def keep(self, parts: Sequence[Resumable], epoch: int) -> None:
        """Write the parts down, if it is time."""
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
    """Put all parts back, or none of them."""
    fresh = copy.deepcopy([part.state() for part in parts])
    try:
        for part, state in zip(parts, states, strict=True):
            part.restore(state)
    except Exception:
        for part, state in zip(parts, fresh, strict=True):
            part.restore(state)
        raise
