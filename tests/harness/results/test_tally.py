"""What has become of the planned trials, in parts that add up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.results.tally import Tally
from tests.builders import make_failure, make_rows, make_trial

TRIALS = [make_trial(seed=seed) for seed in range(8)]
ROWS = {trial.id: make_rows(trial).trial for trial in TRIALS}
BROKEN = {trial.id: make_rows(trial, status="diverged").trial for trial in TRIALS}


@given(
    planned=st.integers(1, 6),
    ends=st.lists(
        st.sampled_from(["done", "diverged", "failed", "missing"]), min_size=8, max_size=8
    ),
)
def test_every_planned_trial_is_counted_once(planned, ends):
    ended = dict(zip(TRIALS, ends, strict=True))
    rows = [ROWS[t.id] for t in TRIALS if ended[t] == "done"]
    rows += [BROKEN[t.id] for t in TRIALS if ended[t] == "diverged"]
    failures = [
        make_failure(t, attempt=1, kind="exception") for t in TRIALS if ended[t] == "failed"
    ]
    tally = Tally.of(TRIALS[:planned], rows, failures)
    assert [tally.outcome(trial) for trial in TRIALS[:planned]] == ends[:planned]
    assert [tally.is_open(t) for t in TRIALS[:planned]] == [e == "missing" for e in ends[:planned]]
    assert tally.strangers == sum(end in {"done", "diverged"} for end in ends[planned:])


def test_the_account_names_what_there_is():
    first, second, third, fourth, *_ = TRIALS
    failures = [
        make_failure(first, attempt=1, kind="timeout"),
        make_failure(third, attempt=1, kind="timeout"),
        make_failure(third, attempt=2, kind="exception"),
        make_failure(fourth, attempt=1, kind="exception"),
    ]
    tally = Tally.of(TRIALS[:6], [ROWS[first.id], BROKEN[second.id]], failures)
    assert tally.account() == "6 trials = 1 done + 1 diverged + 2 failed (2 exception) + 2 missing"
    assert Tally.of(TRIALS[:1], [ROWS[first.id]], failures).account() == "1 trial = 1 done"
