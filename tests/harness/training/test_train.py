from __future__ import annotations

import gc
import json
import math
import resource
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from unittest import mock

import pytest
import torch
from torch.nn import functional

from harness.study.trials import PROGRAMS
from harness.training import train
from harness.training.gradients import Probe
from harness.training.images import Normalize
from harness.training.networks import Network, build_network, initialize
from harness.training.optimizers import make_schedule
from harness.training.train import train_pack

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")
NOTE = train.Ledger.note_step
WHERE_AND_WHEN = {"started", "finished", "wall_time", "probe_time", "peak_memory", "worker", "host"}


def content(rows):
    """Everything in the rows but times and places, in a form where NaN equals NaN."""
    tables = [asdict(rows.trial), *map(asdict, rows.epochs), *map(asdict, rows.gradients)]
    return [
        {name: repr(value) for name, value in row.items() if name not in WHERE_AND_WHEN}
        for row in tables
    ]


def run(digits, *trials):
    return train_pack(trials, digits, device=CPU)


@pytest.mark.parametrize("architecture", ["resnet", "mlp"])
def test_a_trained_network_is_gone_at_once(digits, trial_of, architecture):
    """On a GPU its gradients are in a graph's own memory: the next training needs it."""

    def count_networks() -> int:
        return sum(issubclass(type(held), Network) for held in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = count_networks()
        run(digits, trial_of(architecture, epochs=1))
        assert count_networks() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("architecture", PROGRAMS)
def test_every_arm_trains_and_stays_finite(trial_of, digits, architecture):
    for placement in PROGRAMS[architecture]:
        trial = trial_of(architecture, placement, epochs=1, batch_size=512, lr=0.01)
        (rows,) = run(digits, trial)
        assert rows.trial.status == "done"
        assert 0 <= rows.trial.test_accuracy <= 1
        assert all(math.isfinite(row.actgrad_total) for row in rows.gradients)


def test_it_learns(trial_of, digits):
    (rows,) = run(digits, trial_of("plain", epochs=8, lr=0.05, width_factor=0.5))
    assert rows.trial.test_accuracy > 0.9
    assert rows.epochs[-1].train_loss < rows.epochs[0].train_loss / 2


def test_the_same_trial_gives_the_same_rows_whatever_ran_before(trial_of, digits):
    trial = trial_of("resnet", "after")
    (first,) = run(digits, trial)
    run(digits, trial_of("vgg", "none"))
    torch.rand(7)
    (again,) = run(digits, trial)
    assert content(again) == content(first)
    (other,) = run(digits, replace(trial, seed=1))
    assert content(other) != content(first)


def test_another_process_gives_the_same_rows(trial_of, digits):
    trial = trial_of("resnet", "after")
    script = """
import json, sys, torch
from dataclasses import asdict
from harness.training.images import load_images
from harness.training.train import prepare_worker, train_pack
from harness.study.trials import Trial
prepare_worker(threads=1)
trial = Trial(**json.loads(sys.argv[1]))
(rows,) = train_pack([trial], load_images("digits"), device=torch.device("cpu"))
print(json.dumps([repr(asdict(row)) for row in rows.gradients] + [rows.trial.test_correct.hex()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(asdict(trial))],
        capture_output=True,
        text=True,
        check=True,
    )
    (rows,) = run(digits, trial)
    here = [repr(asdict(row)) for row in rows.gradients] + [rows.trial.test_correct.hex()]
    assert json.loads(done.stdout) == here


def test_a_tensor_gets_the_memory_of_the_one_before_it():
    def count_new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MB: 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(count_new_pages() for _ in range(4)) < 1_000


def test_training_is_bit_identical_with_the_probe_on_and_off(trial_of, digits):
    for architecture, placement in (("resnet", "after"), ("mlp", "before")):
        trial = trial_of(architecture, placement)
        (watched,) = run(digits, trial)
        with mock.patch.object(Probe, "read"), mock.patch.object(Probe, "remember_weights"):
            (alone,) = run(digits, trial)
        assert watched.gradients
        assert not alone.gradients
        assert content(replace(watched, gradients=())) == content(alone)


ADAMW = {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        ADAMW,
        {"norm": "group", "activation": "gelu"},
        {"norm": "instance", "activation": "tanh"},
    ],
    ids=["sgd", "adamw", "group gelu", "instance tanh"],
)
def test_a_pack_gives_each_seed_what_it_gets_alone(trial_of, digits, settings):
    """Exact to rounding: in float64, two epochs of a pack follow three solo runs."""
    trial = trial_of("resnet", "after", epochs=1, batch_size=256, **settings)
    doubled = replace(digits, mean_C=digits.mean_C.double(), std_C=digits.std_C.double())

    class Double(Normalize):
        def __call__(self, x_BRHWC):
            return super().__call__(x_BRHWC).double()

    def double_network(*args, **kwargs):
        return build_network(*args, **kwargs).double()

    with (
        mock.patch("harness.training.images.Normalize", Double),
        mock.patch("harness.training.gradients.Normalize", Double),
        mock.patch("harness.training.train.Normalize", Double),
        mock.patch("harness.training.learner.build_network", double_network),
        mock.patch("torch.Tensor.float", torch.Tensor.double),  # the loss in float64, too
    ):
        pack = [replace(trial, seed=seed, pack_size=3) for seed in range(3)]
        together = train_pack(pack, doubled, device=CPU)
        for member, rows in zip(pack, together, strict=True):
            (alone,) = train_pack([replace(member, pack_size=1)], doubled, device=CPU)
            assert rows.trial.test_correct == alone.trial.test_correct
            assert rows.trial.train_loss == pytest.approx(alone.trial.train_loss, rel=1e-6)
            assert rows.trial.class_accuracy == alone.trial.class_accuracy
            for column in ("calibration_error", "folding_error", "folding_flips"):
                of_pack, of_one = getattr(rows.trial, column), getattr(alone.trial, column)
                assert of_pack == pytest.approx(of_one, rel=1e-5, nan_ok=True), column
            for row, other in zip(rows.gradients, alone.gradients, strict=True):
                assert row.actgrad_total == pytest.approx(other.actgrad_total, rel=1e-5)


def test_asking_for_some_of_a_pack_gives_the_rows_of_the_whole(trial_of, digits):
    pack = [trial_of("mlp", seed=seed, pack_size=3) for seed in (3, 4, 5)]
    whole = run(digits, *pack)
    (some,) = run(digits, pack[1])
    assert content(some) == content(whole[1])


def test_a_diverging_replica_leaves_its_neighbours_untouched(trial_of, digits):
    pack = [trial_of("mlp", "none", seed=seed, pack_size=3) for seed in range(3)]
    healthy = run(digits, *pack)

    def poison(network, replicas):
        initialize(network, replicas)
        network.head.bias.data[10:20] = math.inf  # the second replica's logits

    with mock.patch("harness.training.learner.initialize", poison):
        rows = run(digits, *pack)
    assert [row.trial.status for row in rows] == ["done", "diverged", "done"]
    assert content(rows[0]) == content(healthy[0])
    assert content(rows[2]) == content(healthy[2])
    assert rows[1].epochs == ()
    assert rows[1].trial.steps == 0


def test_each_epoch_is_told_as_it_ends_and_no_row_changes(trial_of, digits):
    trials = [trial_of("plain", epochs=3, pack_size=2, seed=seed) for seed in range(2)]
    told = []
    rows = train_pack(trials, digits, device=CPU, tell=told.append)
    assert told == [[rows[0].epochs[at], rows[1].epochs[at]] for at in range(3)]
    assert [*map(content, rows)] == [*map(content, run(digits, *trials))]


def test_of_a_replica_that_has_diverged_nothing_is_told(trial_of, digits):
    told = []
    (rows,) = train_pack(
        [trial_of("plain", "none", epochs=3, lr=1e9)], digits, device=CPU, tell=told.append
    )
    assert rows.trial.status == "diverged"
    assert told == [[]]


def test_a_loss_that_turns_non_finite_is_the_outcome_diverged(trial_of, digits):
    (rows,) = run(digits, trial_of("mlp", "none", lr=1e4, epochs=3, batch_size=64))
    assert rows.trial.status == "diverged"
    assert rows.trial.epochs_trained == len(rows.epochs) < 3
    assert rows.trial.test_correct == b""
    assert math.isnan(rows.trial.test_accuracy)
    assert math.isnan(rows.trial.validation_accuracy)
    assert math.isnan(rows.trial.calibration_error)
    assert rows.trial.class_accuracy == b""
    assert rows.gradients  # what was read before the loss broke stays
    assert all(row.step <= rows.trial.steps for row in rows.gradients)
    assert all(math.isfinite(row.actgrad_total) for row in rows.gradients)


def test_test_correct_holds_one_bit_per_test_image(trial_of, digits):
    (rows,) = run(digits, trial_of("plain"))
    bits = "".join(f"{byte:08b}" for byte in rows.trial.test_correct)
    assert len(bits) == 544  # 540 images in whole bytes
    assert bits[540:] == "0000"
    assert bits.count("1") / 540 == pytest.approx(rows.trial.test_accuracy)
    of_classes = struct.unpack("<10d", rows.trial.class_accuracy)
    images = digits.test.y_N.bincount().tolist()
    right = sum(share * count for share, count in zip(of_classes, images, strict=True))
    assert right / 540 == pytest.approx(rows.trial.test_accuracy)


def test_test_accuracy_is_that_of_the_network_after_the_last_epoch(trial_of, digits):
    """A twin that spells one trial out with torch's plainest parts."""
    trial = trial_of("plain", "before", epochs=2, lr=0.05, memory_format="contiguous")
    (rows,) = run(digits, trial)

    network = build_network(trial, digits.shape, digits.classes)
    initialize(network, [trial])
    groups = [
        {
            "params": [p for p in network.parameters() if p.ndim > 1],
            "weight_decay": trial.weight_decay,
        },
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, foreach=False)
    batches = train.Batches(digits, [trial], CPU)
    schedule = iter(make_schedule(trial, batches.steps))
    for _ in range(2):
        for x, y in batches.epoch():
            lr = next(schedule)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            functional.cross_entropy(network(x)[:, 0], y[:, 0]).backward()
            optimizer.step()
    network.eval()
    images = (digits.test.x_NHWC.permute(0, 3, 1, 2) - digits.mean_C) / digits.std_C
    hits = network(images)[:, 0].argmax(1) == digits.test.y_N
    assert rows.trial.test_accuracy == pytest.approx(hits.double().mean().item(), abs=2 / 540)


def test_rows_join_and_count(trial_of, digits):
    trial = trial_of("resnet", epochs=2)
    (rows,) = run(digits, trial)
    steps = 1077 // 128
    assert rows.trial.trial_id == trial.id
    assert [row.step for row in rows.epochs] == [steps, 2 * steps]
    assert rows.trial.steps == 2 * steps
    assert {row.trial_id for row in (*rows.epochs, *rows.gradients)} == {trial.id}
    assert sorted({row.step for row in rows.gradients}) == [0, 1, 2, 5, 8, 10, 16]
    assert {row.epoch for row in rows.gradients} >= {0.0, 1.0, 2.0}
    assert 0 < rows.trial.probe_time < rows.trial.wall_time
    parameters = sum(p.numel() for p in build_network(trial, (1, 8, 8), 10).parameters())
    assert rows.trial.parameters == parameters


def test_fewer_training_images_change_the_steps_and_nothing_that_is_measured_by(trial_of, digits):
    whole, part = trial_of("plain", epochs=1), trial_of("plain", epochs=1, train_images=500)
    (all_rows,), (rows,) = run(digits, whole), run(digits, part)
    assert rows.trial.steps == 500 // 128
    assert len(rows.trial.test_correct) == len(all_rows.trial.test_correct)
    # The first reading, ahead of any step, is of one network on one probe batch.
    readings = [
        [replace(row, trial_id="") for row in each.gradients if row.step == 0]
        for each in (rows, all_rows)
    ]
    assert repr(readings[0]) == repr(readings[1])


def test_bfloat16_keeps_the_probe_and_the_loss_in_float32(trial_of, digits):
    trial = trial_of("plain", epochs=1, precision="bfloat16")
    with mock.patch.object(train.Ledger, "note_step", autospec=True, side_effect=NOTE) as note:
        (half,) = run(digits, trial)
    assert all(call.args[1].dtype == torch.float32 for call in note.call_args_list)
    (full,) = run(digits, replace(trial, precision="float32"))
    at_start = [row for row in half.gradients if row.step == 0]
    for row, other in zip(at_start, full.gradients, strict=False):
        assert row.actgrad_total == other.actgrad_total
    assert half.trial.train_loss != full.trial.train_loss
    assert half.trial.train_loss == pytest.approx(full.trial.train_loss, rel=0.05)


def test_label_smoothing_is_torchs(trial_of, digits):
    (plain,) = run(digits, trial_of("mlp", epochs=1))
    (smooth,) = run(digits, trial_of("mlp", epochs=1, label_smoothing=0.2))
    assert smooth.trial.train_loss > plain.trial.train_loss


@pytest.mark.parametrize("settings", [{}, ADAMW], ids=["sgd", "adamw"])
def test_an_arm_that_borrows_its_own_flow_is_unchanged(trial_of, digits, settings):
    trial = trial_of("plain", "after", epochs=1, **settings)
    (own,) = run(digits, trial)
    (borrowed,) = run(digits, replace(trial, flow="after"))
    assert borrowed.trial.train_loss == pytest.approx(own.trial.train_loss, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, ADAMW], ids=["sgd", "adamw"])
def test_borrowed_flow_gives_each_layer_the_donors_update_ratio(trial_of, digits, settings):
    trial = trial_of("plain", "after", epochs=1, **settings)
    (grafted,) = run(digits, replace(trial, flow="before"))
    (donor,) = run(digits, trial_of("plain", "before", epochs=1, **settings))
    (own,) = run(digits, trial)

    def ratios(rows):
        return [row.update_ratio for row in rows.gradients if row.step > 0]

    assert ratios(grafted) == pytest.approx(ratios(donor), rel=1e-3)
    assert ratios(grafted) != pytest.approx(ratios(own), rel=0.05)


def test_signal_to_noise_leaves_training_bit_identical(trial_of, digits):
    (without,) = run(digits, trial_of("mlp", epochs=1))
    (with_it,) = run(digits, trial_of("mlp", epochs=1, snr_batches=4))
    assert with_it.trial.test_correct == without.trial.test_correct
    assert with_it.trial.train_loss == without.trial.train_loss
    assert all(row.wgrad_snr > 0 for row in with_it.gradients)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_eager_one(trial_of, digits):
    (eager,) = run(digits, trial_of("plain", epochs=1))
    (compiled,) = run(digits, trial_of("plain", epochs=1, compile=True))
    assert compiled.trial.train_loss == pytest.approx(eager.trial.train_loss, rel=1e-3)
