"""What recording and replaying a step must not change, with a tape in the place of a CUDA graph.

The tape keeps every operation of a step with the very tensors it used, and runs them again: like a
graph it knows nothing of Python, so a rate, a count or a tensor that only Python would renew is
replayed as it was. Whether CUDA itself agrees is for `test_gpu`.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.study.trials import PROGRAMS
from harness.training import learner as learners
from harness.training.images import Batches
from harness.training.learner import CapturedSteps, Learner, left_as_found
from harness.training.optimizers import make_optimizer
from harness.training.train import train_pack
from tests.harness.training.test_train import content

CPU = torch.device("cpu")

ADAMW = {"optimizer": "adamw", "lr": 0.003}

pytestmark = pytest.mark.usefixtures("one_thread")


class Tape(TorchDispatchMode):
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for into, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(into, torch.Tensor) and into.data_ptr() != value.data_ptr():
                        into.copy_(value)


class Stream:
    """Keeps what it was told to wait for, and when."""

    log: list[tuple[Stream, str, Stream | None]]

    def __init__(self, _device=None):
        pass

    def wait_stream(self, other):
        self.log.append((self, "waits for", other))


@pytest.fixture
def tapes(monkeypatch):
    """CUDA's names for a tape, on the CPU; what `Tape` runs while recording is undone."""
    recorded = []
    Stream.log = []

    @contextmanager
    def graph(tape, stream):
        tensors = [t for learner in graph.learners for t in learner.written()]
        with left_as_found(tensors), tape:
            Stream.log.append((stream, "begins", None))
            yield
            Stream.log.append((stream, "ends", None))
        recorded.append(tape)

    @contextmanager
    def on_stream(stream):
        Stream.log.append((stream, "works", None))
        yield

    class Steps(CapturedSteps):
        def __init__(self, learners, batches):
            graph.learners = learners
            super().__init__(learners, batches)

    monkeypatch.setattr("harness.training.learner.CapturedSteps", Steps)
    monkeypatch.setattr(
        learners, "_streams", lambda count, _: tuple(Stream() for _ in range(count))
    )
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr("harness.training.learner.make_optimizer", make_like_on_a_gpu)
    return Steps, recorded


def make_like_on_a_gpu(network, trial, *, capturable):
    return make_optimizer(network, trial, capturable=True)


class Recording(Learner):
    """Records on a CPU, too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._is_captured = True


@pytest.mark.parametrize(
    "settings",
    [
        *({"architecture": name, "placement": "after", "epochs": 1} for name in PROGRAMS),
        {"architecture": "plain", "placement": "before", "flow": "after"},
        {"architecture": "resnet", "pack_size": 3, "augmentation": "crop-flip"},
        {"architecture": "plain", "precision": "bfloat16", "label_smoothing": 0.1},
        {"architecture": "mlp", "placement": "none", "momentum": 0.0},
        {"architecture": "plain", "placement": "before", "flow": "after", **ADAMW},
        {"architecture": "resnet", "pack_size": 3, "weight_decay": 0.1, **ADAMW},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_replayed_steps_leave_the_rows_of_plain_ones(trial_of, digits, tapes, settings):
    trial = trial_of(**settings)
    (plain,) = train_pack([trial], digits, device=CPU)
    with mock.patch("harness.training.train.Learner", Recording):
        (replayed,) = train_pack([trial], digits, device=CPU)
    assert len(tapes[1]) == 1
    assert content(replayed) == content(plain)


@pytest.mark.parametrize("settings", [{}, ADAMW], ids=["sgd", "adamw"])
def test_a_restored_learner_records_anew(trial_of, digits, tapes, settings):
    trial = trial_of("plain", "after", flow="before", **settings)
    batches = list(Batches(digits, [trial], CPU).epoch())
    first, second = Recording([trial], digits, CPU), Recording([trial], digits, CPU)
    for batch in batches[:3]:
        first.step(*batch, lr=0.1)
    second.step(*batches[5], lr=0.1)  # something else, recorded
    second.restore(deepcopy(first.state()))
    for batch in batches[3:]:
        first.step(*batch, lr=0.05)
        second.step(*batch, lr=0.05)
    for ours, theirs in zip(first.written(), second.written(), strict=True):
        assert torch.equal(ours, theirs)


def test_learners_side_by_side_get_the_bits_they_get_alone(trial_of, digits, tapes):
    steps, _ = tapes
    trials = [trial_of("resnet", seed=0), trial_of("resnet", seed=1), trial_of("plain", "after")]
    batches = [list(Batches(digits, [trial], CPU).epoch()) for trial in trials]
    together = [Learner([trial], digits, CPU) for trial in trials]
    alone = [Learner([trial], digits, CPU) for trial in trials]
    record = steps(together, [of_learner[0] for of_learner in batches])
    for step, at_once in enumerate(zip(*batches, strict=True)):
        for learner in (*together, *alone):
            learner.set_rate(0.1 / (1 + step))
        scores = record(at_once)
        for learner, batch, score in zip(alone, at_once, scores, strict=True):
            for ours, theirs in zip(score, learner.take_step(*batch), strict=True):
                assert torch.equal(ours, theirs)
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours.written(), theirs.written(), strict=True):
            assert torch.equal(one, other)


def test_every_branch_begins_with_the_recording_and_ends_ahead_of_its_end(trial_of, digits, tapes):
    steps, _ = tapes
    trials = [trial_of("mlp", seed=seed) for seed in range(3)]
    learners = [Learner([trial], digits, CPU) for trial in trials]
    steps(learners, [next(Batches(digits, [trial], CPU).epoch()) for trial in trials])
    begin = next(at for at, (_, what, _) in enumerate(Stream.log) if what == "begins")
    origin, log = Stream.log[begin][0], Stream.log[begin + 1 : -1]
    branches = [stream for stream, what, _ in log if what == "works"]
    assert len(set(map(id, branches))) == 3
    assert branches[0] is origin
    for branch in branches[1:]:
        work = log.index((branch, "works", None))
        assert log.index((branch, "waits for", origin)) < work
        assert log.index((origin, "waits for", branch)) > work


@pytest.mark.parametrize(
    ("architecture", "settings"), [*((name, {}) for name in PROGRAMS), ("plain", ADAMW)]
)
def test_what_a_step_writes_is_all_that_the_next_one_reads(
    trial_of, digits, architecture, settings
):
    """Once it is put back, the same steps follow as if none had been taken between."""
    trial = trial_of(architecture, "after", flow="before", **settings)
    batches = list(Batches(digits, [trial], CPU).epoch())
    disturbed, calm = Learner([trial], digits, CPU), Learner([trial], digits, CPU)
    for learner in (disturbed, calm):
        learner.step(*batches[0], lr=0.1)
    with left_as_found(disturbed.written()):
        for batch in batches[4:]:
            disturbed.step(*batch, lr=0.3)
    for batch in batches[1:4]:
        for ours, theirs in zip(
            disturbed.step(*batch, lr=0.1), calm.step(*batch, lr=0.1), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_left_as_found_puts_back_in_place():
    tensor = torch.ones(3)
    address = tensor.data_ptr()
    with left_as_found([tensor]):
        tensor.zero_()
    assert tensor.tolist() == [1, 1, 1]
    assert tensor.data_ptr() == address


@pytest.mark.parametrize("raised", [False, True])
def test_a_start_after_an_exception_launches_kernel_by_kernel(trial_of, digits, raised):
    """What cannot be recorded somewhere is trained there all the same."""
    from harness.cluster.packs import train_with_torch
    from harness.cluster.shards import Partial, Standing, Start

    pack = (trial_of(),)
    failure = SimpleNamespace(kind="exception" if raised else "worker lost")
    standing = Standing(frozenset(), {pack[0].id: [failure]})
    assert standing.has_raised(pack) is raised
    start = Start(pack, 2, "run", False, mock.Mock(spec=Partial), 300.0, standing.has_raised(pack))
    with mock.patch("harness.training.train.train_pack") as train:
        train_with_torch(start)
    assert train.call_args.kwargs["captured"] is not raised
