from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.judgement.interactions import find_interactions
from analysis.judgement.outcomes import Cell, collect_outcomes
from analysis.statistics.looks import Look
from harness.study.records import AnalysisPlan
from tests.analysis.judgement.conftest import make
from tests.analysis.judgement.test_studies import write

PLAN = AnalysisPlan(grid="g")
SETTINGS = {
    "norm": "batch",
    "norm_groups": 8,
    "activation": "relu",
    "optimizer": "sgd",
    "batch_size": 128,
    "train_images": 0,
    "epochs": 6,
    "probe_size": 256,
}


def study(effects, *, rng=0, settings=None, **changes):
    """Outcomes whose cells have all the settings that an interaction may be of."""
    of = {**SETTINGS, **(settings or {})}
    outcomes = make(effects, rng=rng, **changes)
    cells = tuple(replace(cell, settings=tuple(of.items())) for cell in outcomes.cells)
    named = {name: of[name] for name in ("norm", "activation", "optimizer")}
    return replace(outcomes, cells=cells, **named)


def pick(found, **wanted):
    (one,) = (i for i in found if all(getattr(i, name) == v for name, v in wanted.items()))
    return one


def test_an_effect_of_the_order_under_batch_norm_alone_is_found(tmp_path):
    results = write(
        tmp_path,
        {},
        {"norm": "layer"},
        accuracy=lambda t: 2.0 * ((t.norm, t.placement) == ("batch", "after")),
        gradient=lambda t: 0.3 * ((t.norm, t.placement) == ("batch", "after")),
    )
    found = find_interactions(collect_outcomes(results), results.plan)
    assert {one.factor for one in found} == {"norm"}
    for pool in ("skip-free CNNs", "residual networks"):
        accuracy = pick(found, pool=pool, quantity="accuracy")
        assert (accuracy.reference, accuracy.value) == ("batch norm", "layer norm")
        assert accuracy.low < -2.0 < accuracy.high < 0
        assert accuracy.p_holm < 0.05
        flow = pick(found, pool=pool, quantity="gradient")
        assert flow.window == "init"
        assert flow.low < -0.3 < flow.high < 0


def test_where_the_norm_changes_nothing_nothing_is_found_at_its_level():
    """No interaction in 300 folders of four tests each: 5 % and three errors of that, 8.8 %."""
    found = []
    for folder in range(300):
        rng = np.random.default_rng(folder)
        studies = [study([0.7], rng=rng.integers(2**31)), study([0.7], rng=rng.integers(2**31))]
        # `make` fixes the sample means; seeds differ from each other by chance alone.
        noisy = [
            replace(
                one,
                norm=norm,
                cells=tuple(
                    replace(c, settings=tuple({**SETTINGS, "norm": norm}.items()))
                    for c in one.cells
                ),
                accuracy_PCS=one.accuracy_PCS + rng.normal(0, 0.3, one.accuracy_PCS.shape),
                flow_PCS={
                    w: flow_PCS + rng.normal(0, 0.05, flow_PCS.shape)
                    for w, flow_PCS in one.flow_PCS.items()
                },
            )
            for norm, one in zip(("batch", "layer"), studies, strict=True)
        ]
        interactions = find_interactions(noisy, PLAN)
        assert len(interactions) == 4
        found.append(any(one.p_holm <= 0.05 for one in interactions))
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_one_matched_cell_is_the_paired_t_test_of_differences_of_differences():
    batch = study([1.0], rng=1, architectures=("plain",))
    layer = study([0.2], rng=2, architectures=("plain",), settings={"norm": "layer"})
    one = pick(find_interactions([batch, layer], PLAN), quantity="accuracy")
    at_batch_S, at_layer_S = (
        o.difference("accuracy", "after", "before")[0] for o in (batch, layer)
    )
    oracle = stats.ttest_rel(at_layer_S, at_batch_S)
    interval = oracle.confidence_interval(0.95)
    assert one.estimate == pytest.approx(at_layer_S.mean() - at_batch_S.mean())
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    assert one.p == pytest.approx(oracle.pvalue)
    assert (one.at_reference, one.at_value) == pytest.approx((1.0, 0.2))
    assert (one.cells, one.pairs) == (1, 10)


def test_p_values_are_corrected_for_all_that_is_shown():
    found = find_interactions(
        [study([1.0], rng=n, settings={"norm": norm}) for n, norm in enumerate(("batch", "layer"))],
        PLAN,
    )
    smallest = min(found, key=lambda one: one.p)
    assert len(found) == 4
    assert smallest.p_holm == pytest.approx(min(1.0, 4 * smallest.p))


def test_an_earlier_look_widens_the_interval():
    studies = [
        study([1.0], rng=n, settings={"norm": norm}) for n, norm in ((0, "batch"), (1, "layer"))
    ]
    early = [replace(one, look=Look((0.5,))) for one in studies]
    first, again = (find_interactions(several, PLAN)[0] for several in (studies, early))
    assert again.estimate == first.estimate
    assert again.high - again.low > first.high - first.low


def test_cells_that_differ_in_more_than_the_factor_are_not_compared():
    gelu = {"norm": "layer", "activation": "gelu"}
    assert not find_interactions([study([1.0]), study([1.0], rng=1, settings=gelu)], PLAN)


def test_an_optimizer_comes_with_its_own_rates():
    adamw = {"optimizer": "adamw", "momentum": 0.0, "beta1": 0.9}
    sgd = study([1.0], settings={"momentum": 0.9, "beta1": 0.0})
    found = find_interactions([sgd, study([1.0], rng=1, settings=adamw)], PLAN)
    assert {(one.factor, one.reference, one.value) for one in found} == {
        ("optimizer", "SGD", "AdamW")
    }
    assert {one.window for one in found} == {"", "whole"}


@pytest.mark.parametrize(
    ("factor", "value", "shown", "windows"),
    [
        ("batch_size", 8, ("128", "8"), {"", "whole"}),
        ("train_images", 500, ("all", "500"), {"", "whole"}),
        ("activation", "gelu", ("ReLU", "GELU"), {"", "init"}),
        ("probe_size", 8, ("256", "8"), {"init"}),  # it measures, and trains nothing
    ],
)
def test_each_factor_is_compared_with_the_usual_value_where_it_can_act(
    factor, value, shown, windows
):
    studies = [study([1.0]), study([1.0], rng=1, settings={factor: value})]
    found = find_interactions(studies, PLAN)
    assert {(one.factor, one.reference, one.value) for one in found} == {(factor, *shown)}
    assert {one.window for one in found} == windows


def test_a_cell_that_could_have_two_partners_has_none():
    layers = [study([1.0], rng=n, settings={"norm": "layer", "lr": n}) for n in (1, 2)]
    assert find_interactions([study([1.0]), layers[0]], PLAN) == ()
    doubled = [study([1.0], rng=n, settings={"norm": "layer"}) for n in (1, 2)]
    assert find_interactions([study([1.0]), *doubled], PLAN) == ()


def test_cells_that_could_show_nothing_decide_nothing_and_still_count():
    full = [
        study([0.0], level=99.9, sd=0.01, rng=n, settings={"norm": m})
        for n, m in ((0, "batch"), (1, "layer"))
    ]
    found = find_interactions(full, PLAN)
    assert found
    assert all(one.cells == 0 and np.isnan(one.p) and np.isnan(one.p_holm) for one in found)


def test_a_control_is_compared_with_nothing():
    studies = [study([1.0]), study([1.0], rng=1, settings={"norm": "layer"})]
    controls = [
        replace(one, cells=tuple(replace(cell, beside="head") for cell in one.cells))
        for one in studies
    ]
    assert isinstance(controls[0].cells[0], Cell)
    assert find_interactions(controls, PLAN) == ()


def test_another_data_set_is_another_question():
    layer = replace(study([1.0], rng=1, settings={"norm": "layer"}), dataset="fashion")
    assert find_interactions([study([1.0]), layer], PLAN) == ()
