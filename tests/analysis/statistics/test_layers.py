import numpy as np
import pytest

from analysis.statistics.layers import SMALLEST, summarise_layers


def draw():
    """Three readings of four layers, in no order."""
    rng = np.random.default_rng(0)
    order = rng.permutation(12)
    reading_L, layer_L = np.repeat(np.arange(3), 4)[order], np.tile(np.arange(4), 3)[order]
    return 10 ** rng.normal(size=12), layer_L, reading_L


def test_every_reading_is_reduced_by_itself():
    """The slow twin: reading by reading, with numpy's own line."""
    value_L, layer_L, reading_L = draw()
    found = summarise_layers(value_L, layer_L, reading_L)
    for g in range(3):
        own = reading_L == g
        order = np.argsort(layer_L[own])
        log = np.log10(value_L[own][order])
        assert found["mean"][g] == pytest.approx(log.mean())
        assert found["first"][g] == log[0]
        assert found["fall"][g] == pytest.approx(-3 * np.polyfit(range(4), log, 1)[0])


def test_flow_that_died_out_is_small_and_not_missing():
    value_L, layer_L, reading_L = draw()
    value_L[reading_L == 1] = 0.0
    found = summarise_layers(value_L, layer_L, reading_L)
    assert found["mean"][1] == found["first"][1] == pytest.approx(np.log10(SMALLEST))
    assert found["fall"][1] == pytest.approx(0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_layer_that_is_no_number_makes_its_reading_none_and_leaves_the_others(value):
    value_L, layer_L, reading_L = draw()
    whole = summarise_layers(value_L, layer_L, reading_L)
    value_L[np.flatnonzero((reading_L == 1) & (layer_L == 0))] = value
    found = summarise_layers(value_L, layer_L, reading_L)
    for name in ("mean", "first", "fall"):
        assert np.isnan(found[name][1])
        np.testing.assert_array_equal(found[name][[0, 2]], whole[name][[0, 2]])


def test_no_rows_are_no_readings():
    found = summarise_layers(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert {len(values) for values in found.values()} == {0}
