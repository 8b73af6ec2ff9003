"""How long trials take: as long as those of their own cell, once there are some."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster import forecast as forecasts
from harness.cluster.forecast import (
    LEAST_LIMIT,
    LIMIT_OF_GUESSED,
    LIMIT_OF_MEASURED,
    START_UP,
    Forecast,
    guess_bytes,
    guess_seconds,
)
from harness.cluster.work import Work, count_or_explain, count_work
from harness.study.architectures import find_architecture
from harness.study.own import remember
from tests.builders import make_trial

CELLS = [make_trial(depth=depth) for depth in (2, 3, 8)]

finished = st.lists(st.tuples(st.sampled_from(CELLS), st.integers(0, 9), st.floats(0.1, 1e4)))


@given(finished)
def test_a_trial_takes_the_mean_of_its_cell_and_hangs_after_ten_times_its_slowest(trials):
    """A twin that keeps every number."""
    forecast = Forecast()
    for cell, seed, seconds in trials:
        forecast.note(replace(cell, seed=seed), seconds)
    assert str(len(trials)) in forecast.basis or not trials
    for cell in CELLS:
        known = [seconds for other, _, seconds in trials if other == cell]
        if known:
            assert forecast.seconds(cell) == pytest.approx(sum(known) / len(known))
            assert forecast.limit(cell) == LEAST_LIMIT + LIMIT_OF_MEASURED * max(known)


def test_elsewhere_the_model_is_scaled_by_what_it_was_wrong_by():
    known, other, _ = CELLS
    forecast = Forecast()
    assert forecast.seconds(other) == guess_seconds(other)
    assert forecast.basis == "guessed from the size of the networks"
    forecast.note(known, 3 * guess_seconds(known))
    assert forecast.seconds(other) == pytest.approx(3 * guess_seconds(other))
    assert forecast.limit(other) == LEAST_LIMIT + LIMIT_OF_GUESSED * forecast.seconds(other)


def test_epochs_tell_what_a_trial_takes_until_one_of_its_cell_is_finished():
    known, other, third = CELLS
    forecast = Forecast()
    forecast.note_pace(known, 4 * guess_seconds(known))
    assert forecast.seconds(known) == 4 * guess_seconds(known)
    assert forecast.seconds(other) == pytest.approx(4 * guess_seconds(other))
    forecast.note(known, 3.0)
    forecast.note_pace(known, 9.0)
    assert forecast.seconds(known) == 3.0
    assert forecast.seconds(third) == pytest.approx(
        3.0 * guess_seconds(third) / guess_seconds(known)
    )


def test_what_packs_save_is_learned_from_packs():
    known, other, _ = CELLS
    forecast = Forecast()
    forecast.note(known, 3 * guess_seconds(known))
    pack = replace(other, pack_size=5)
    assert forecast.seconds(pack) == pytest.approx(3 * guess_seconds(other))
    forecast.note(replace(known, pack_size=5), guess_seconds(known))
    assert forecast.seconds(pack) == pytest.approx(guess_seconds(other))
    assert forecast.seconds(other) == pytest.approx(3 * guess_seconds(other))


def test_a_run_takes_its_start_a_fair_share_and_no_less_than_its_longest_trial():
    short, long, _ = CELLS
    forecast = Forecast()
    forecast.note(short, 1.0)
    forecast.note(long, 60.0)
    assert forecast.wall_time([short] * 10, 2) == START_UP + 5.0
    assert forecast.wall_time([short] * 10, 2, warm=True) == 5.0
    assert forecast.wall_time([short] * 10 + [long], 8) == START_UP + 60.0
    assert forecast.wall_time([], 2) == 0.0


# Multiply-adds of a forward pass, FLOP / 2: of resnet-20 by hand from He et al. 2015, s.4.2 (their
# torchvision namesake at 224 pixels has 1.8e9 in table 1; at 32 it has a 49th of it), of mlp-3
# from its four matrices.
@pytest.mark.parametrize(
    ("settings", "multiply_adds"),
    [
        (
            {"architecture": "resnet", "program": "conv norm act conv norm + act", "depth": 20},
            # 32x32: stem and 6 convs; then the first conv of a stage reads half the channels.
            9 * (1024 * (3 * 16 + 6 * 16 * 16) + 256 * (16 * 32 + 5 * 32 * 32))
            + 9 * 64 * (32 * 64 + 5 * 64 * 64)
            + 64 * 10,
        ),
        ({"architecture": "mlp"}, 3072 * 512 + 2 * 512 * 512 + 512 * 10),
    ],
)
def test_the_work_of_a_network_is_that_of_its_layers(settings, multiply_adds):
    work = count_work(make_trial(dataset="cifar10", **settings))
    assert work.flop == 2 * multiply_adds


def test_more_pixels_more_images_and_more_epochs_take_longer():
    small = make_trial(architecture="vgg", program="conv norm act", depth=11)
    small = replace(small, dataset="synthetic:3x16x16x10x6000")
    for larger in (
        replace(small, dataset="synthetic:3x32x32x10x6000"),
        replace(small, dataset="synthetic:3x16x16x10x12000"),
        replace(small, epochs=2 * small.epochs),
    ):
        assert guess_seconds(larger) > 1.5 * guess_seconds(small)


def test_a_trial_of_fewer_training_images_takes_the_time_of_its_steps():
    whole = make_trial(dataset="synthetic:3x16x16x10x60000", epochs=10)
    fifth = replace(whole, train_images=9_000)
    few = replace(whole, dataset="synthetic:3x16x16x10x12000")
    assert guess_seconds(few) < guess_seconds(fifth) < 0.5 * guess_seconds(whole)
    assert guess_bytes(replace(whole, train_images=128)) < guess_bytes(whole)


def test_a_few_small_images_are_a_matter_of_seconds():
    trial = make_trial(dataset="synthetic:1x8x8x4x400", epochs=10)
    assert Forecast().wall_time([trial] * 4, 2) < START_UP + 8


def test_a_network_that_cannot_be_built_is_no_work_and_says_why():
    trial = make_trial(
        architecture="torchvision/vgg11_bn", placement="after", program="act norm", depth=11
    )
    why = count_or_explain(trial)  # digits have 8 pixels, and vgg halves them five times
    assert isinstance(why, str)
    assert why.startswith("torchvision/vgg11_bn does not take images of 8 x 8: ")
    assert guess_seconds(trial) > 0


def own_trial(source, **settings):
    programs = find_architecture("nets/mine.py:build").programs
    return make_trial(
        architecture="nets/mine.py:build",
        architecture_digest=remember(source),
        program=programs["after"],
        **settings,
    )


def test_what_keeps_a_users_network_from_training_is_known_ahead_and_once():
    wrong = own_trial("def build(shape, classes, depth):\n    return classes / 0\n")
    mistakes = Forecast().find_mistakes([replace(wrong, seed=seed) for seed in range(3)])
    told = "`return classes / 0`: ZeroDivisionError: division by zero"
    assert mistakes == [f"nets/mine.py:2: {told}"]
    assert Forecast().find_mistakes(CELLS) == []
    away = replace(wrong, dataset="arrays:mine@0123456789abcdef")  # it may be right for its images
    assert Forecast().find_mistakes([away]) == []


def test_a_users_file_that_kills_its_process_is_a_mistake_and_one_that_prints_is_none():
    code = """
from harness.cluster.forecast import Forecast
from harness.study.own import remember
from tests.harness.cluster.test_forecast import own_trial
print(Forecast().find_mistakes([own_trial("import os\\ndef build(*_): os.abort()")]))
net = "from torch import nn\\ndef build(s, k, d):\\n    print(7)\\n    return nn.Sequential("
net += "nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, k))"
print(Forecast().find_mistakes([own_trial(net)]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    killed, printed = done.stdout.splitlines()
    assert "nets/mine.py:build cannot be built: " in killed
    assert printed == "[]"


def test_a_driver_counts_without_torch_what_it_would_count_with_it():
    """In a fresh interpreter, and after a wait that no start of a run has."""
    code = f"""
import sys, time
from harness.cluster.forecast import Forecast, guess_seconds
from harness.study.trials import Trial
trials = {CELLS!r}
begun = time.monotonic()
Forecast().prepare(trials)
assert time.monotonic() - begun < 0.5
print([guess_seconds(trial) for trial in trials])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str([guess_seconds(trial) for trial in CELLS])


def test_a_count_that_fails_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert forecasts._count_elsewhere(CELLS) == dict.fromkeys(CELLS, Work())
