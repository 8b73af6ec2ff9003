"""A training that was broken off goes on, bit for bit; and nobody else's bytes are gone on with."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.results.tables import find_differing_columns, to_table
from harness.study.errors import StoreError
from harness.study.records import EpochRow, GradientRow, TrialRow
from harness.training import checkpoints
from harness.training.checkpoints import DIGEST_BYTES, Checkpoint
from harness.training.train import train_pack

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def differing_columns(one, other):
    """Of all tables of a trial, timings and provenance aside."""
    tables = [
        [
            to_table([rows.trial], TrialRow),
            to_table(rows.epochs, EpochRow),
            to_table(rows.gradients, GradientRow),
        ]
        for rows in (one, other)
    ]
    return [name for pair in zip(*tables, strict=True) for name in find_differing_columns(*pair)]


class Interrupted(Exception):  # noqa: N818 - not an error of anyone's
    """The worker is lost."""


class Drawer:
    """Keeps the bytes of every checkpoint; the worker is lost with the one numbered `lost_at`."""

    def __init__(self, *kept, lost_at=None):
        self.kept = list(kept)
        self._lost_at = lost_at

    def read(self):
        return self.kept[-1] if self.kept else None

    def write(self, content):
        self.kept.append(bytes(content))
        if len(self.kept) == self._lost_at:
            raise Interrupted

    def checkpoint(self, trial, *, every=0.0):
        return Checkpoint(trial, self.read, self.write, device=CPU, every=every)


def train(trial, digits, checkpoint=None):
    [rows] = train_pack([trial], digits, device=CPU, checkpoint=checkpoint)
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": "crop-flip"},
        {"architecture": "plain", "placement": "after", "flow": "before"},
        {"architecture": "mlp", "pack_size": 2, "seed": 1},
        {"architecture": "mlp", "snr_batches": 4, "precision": "bfloat16"},
        {"architecture": "mlp", "lr": 1e30},
        {"architecture": "plain", "placement": "after", "flow": "before", "optimizer": "adamw"},
        {"architecture": "mlp", "pack_size": 2, "train_images": 500},
        pytest.param({"architecture": "plain", "compile": True}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: " ".join(map(str, settings)),
)
def test_a_resumed_trial_gives_the_rows_of_one_never_interrupted(trial_of, digits, settings):
    trial = trial_of(**settings, epochs=4)
    lost_at = 1 if "lr" in settings else 2  # it diverges in its first epoch
    drawer = Drawer(lost_at=lost_at)
    with pytest.raises(Interrupted):
        train(trial, digits, drawer.checkpoint(trial))
    resumed = train(trial, digits, drawer.checkpoint(trial))
    undisturbed = train(trial, digits)
    assert differing_columns(resumed, undisturbed) == []
    assert len(drawer.kept) == (1 if "lr" in settings else 4)  # no epoch was trained twice


def test_a_trial_shorter_than_the_interval_keeps_nothing(trial_of, digits):
    drawer = Drawer()
    train(trial_of("mlp"), digits, drawer.checkpoint(trial_of("mlp"), every=300.0))
    assert drawer.kept == []


def test_what_the_place_refuses_is_no_damage(trial_of, digits):
    def refuse():
        raise StoreError("access denied")

    checkpoint = Checkpoint(trial_of(), refuse, lambda _: None, device=CPU, every=0.0)
    with pytest.raises(StoreError, match="access denied"):
        train(trial_of(), digits, checkpoint)


class Counter:
    """The least that can be put down and taken up."""

    def __init__(self, count=0):
        self.count = count

    def state(self):
        return {"count": self.count, "weights": torch.full((64,), float(self.count))}

    def restore(self, state):
        self.count = state["count"]
        assert state["weights"].shape == (64,)


@pytest.fixture
def kept(trial_of):
    """A checkpoint of two counters, at 7 and 8, after 5 epochs."""
    drawer = Drawer()
    drawer.checkpoint(trial_of()).keep([Counter(7), Counter(8)], 5)
    [content] = drawer.kept
    return content


def resume(trial, content):
    """(epochs done, the counters) of a run that finds these bytes."""
    counters = [Counter(), Counter()]
    epoch = Drawer(content).checkpoint(trial).resume(counters)
    return epoch, [counter.count for counter in counters]


def sealed(content):
    """With the digest that these bytes must have: a stranger can compute it, too."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest() + content


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_what_was_kept_is_taken_up(trial_of, kept):
    assert resume(trial_of(), kept) == (5, [7, 8])


def test_another_trial_other_code_and_another_device_are_not_gone_on_with(
    trial_of, kept, monkeypatch, caplog
):
    assert resume(trial_of(seed=1), kept) == (0, [0, 0])
    here = checkpoints.describe
    for change in ({"code_digest": "other"}, {"device": "other"}, {"torch": "2.0"}):
        monkeypatch.setattr(
            checkpoints,
            "describe",
            lambda *where, change=change, **when: replace(here(*where, **when), **change),
        )
        assert resume(trial_of(), kept) == (0, [0, 0])
    assert caplog.text.count("of another pack, other code or another kind of device") == 4


def test_no_altered_bit_is_gone_on_with(trial_of, kept):
    rng = random.Random(0)
    for place in rng.sample(range(8 * len(kept)), 300):
        altered = bytearray(kept)
        altered[place // 8] ^= 1 << place % 8
        assert resume(trial_of(), bytes(altered)) == (0, [0, 0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept[:-1],
        lambda kept: kept[: len(kept) // 2],
        lambda kept: kept[:DIGEST_BYTES],
        lambda _: b"",
        lambda _: random.Random(0).randbytes(10_000),
        lambda _: sealed(b"neither torch's nor a pickle"),
        lambda _: sealed(saved({"epoch": 3})),
        lambda _: sealed(saved([1, 2])),
    ],
)
def test_a_damaged_checkpoint_is_none_and_this_is_logged(trial_of, kept, damage, caplog):
    caplog.set_level(logging.WARNING)
    assert resume(trial_of(), damage(kept)) == (0, [0, 0])
    assert "digits resnet-8 before seed 0: trained from its start; checkpoint: " in caplog.text


def test_parts_are_taken_up_all_or_none(trial_of, kept):
    names = torch.load(io.BytesIO(kept[DIGEST_BYTES:]))["names"]
    parts = [Counter(7).state(), {"count": 8, "weights": torch.zeros(3)}]
    content = sealed(saved({"names": names, "epoch": 5, "parts": parts}))
    assert resume(trial_of(), content) == (0, [0, 0])


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_a_checkpoint_runs_no_code(trial_of, tmp_path):
    trace = tmp_path / "it ran"
    for content in (pickle.dumps(Code(trace)), saved(Code(trace))):
        assert resume(trial_of(), content) == (0, [0, 0])
        assert resume(trial_of(), sealed(content)) == (0, [0, 0])
    assert not trace.exists()
    pickle.loads(pickle.dumps(Code(trace)))
    assert trace.exists()  # it would have


def test_a_checkpoint_that_unfolds_is_refused(trial_of, caplog):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    assert resume(trial_of(), sealed(buffer.getvalue())) == (0, [0, 0])
    assert "would unfold to more than it is" in caplog.text
