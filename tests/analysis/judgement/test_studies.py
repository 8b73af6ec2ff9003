import numpy as np
import pandas as pd
import pytest

from analysis.judgement.effects import find_effects
from analysis.judgement.outcomes import collect_outcomes
from analysis.judgement.studies import Study as Named
from analysis.judgement.studies import name_ingredients, split_studies
from analysis.judgement.verdicts import judge
from analysis.load import load_results
from harness.study.records import AnalysisPlan
from tests.analysis.conftest import Study, write_plan, write_study

LAYER = {"norm": "layer"}
GELU = {"norm": "group", "norm_groups": 4, "activation": "gelu"}


def write(folder, *several, **study):
    """One folder of studies that differ in their settings alone."""
    trials = [
        trial
        for number, settings in enumerate(several)
        for trial in write_study(
            folder,
            Study(depths=(8,), settings=settings, **study),
            rng=np.random.default_rng(number),
        )
    ]
    write_plan(folder, tuple(dict.fromkeys(trials)), AnalysisPlan(grid="g"))
    return load_results(str(folder))


def rows(*several):
    return pd.DataFrame(
        [Named(dataset="a", recipe="b", **settings).identity for settings in several]
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Layer norm and GELU are planned ahead of the paper's own norm; two batch sizes of that."""
    return write(
        tmp_path_factory.mktemp("norms"),
        LAYER,
        GELU,
        {},
        {"batch_size": 32},
        {"optimizer": "adamw"},
        accuracy=lambda t: 2.0 * (t.architecture == "plain" and t.placement == "after"),
    )


def test_norm_activation_and_optimizer_make_a_study_and_a_batch_size_makes_a_cell(results):
    studies = collect_outcomes(results)
    found = [(one.norm, one.norm_groups, one.activation, one.optimizer) for one in studies]
    assert found == [
        ("batch", 0, "relu", "sgd"),
        ("batch", 0, "relu", "adamw"),
        ("layer", 0, "relu", "sgd"),
        ("group", 4, "gelu", "sgd"),
    ]
    assert [len(one.cells) for one in studies] == [4, 2, 2, 2]
    assert {cell.variant for cell in studies[0].cells} == {"batches of 128", "batches of 32"}
    assert not any(cell.variant for one in studies[1:] for cell in one.cells)


def test_every_trial_belongs_to_one_study_and_those_without_norms_to_that_of_every_norm(results):
    parts = [(study, part) for study, part in split_studies(results.planned)]
    assert all((part["norm"] == study.norm).all() for study, part in parts)
    found = pd.concat([part for _, part in parts])
    assert set(found["trial_id"]) == set(results.planned["trial_id"])
    bare = found["placement"] == "none"
    assert not found[~bare].duplicated("trial_id").any()
    norms = found[bare].groupby(["activation", "optimizer", "batch_size"])["norm"].agg(set)
    assert norms.to_dict() == {
        ("relu", "sgd", 128): {"batch", "layer"},
        ("relu", "sgd", 32): {"batch"},
        ("relu", "adamw", 128): {"batch"},
        ("gelu", "sgd", 128): {"group"},
    }


def test_networks_without_norms_stand_beside_those_of_each_norm(results):
    for one in collect_outcomes(results):
        p = one.placements.index("none")
        assert one.ran_PCS[p].all()


def test_the_claims_of_all_studies_are_one_family(results):
    verdicts = judge(results)
    assert len(verdicts) == 20
    assert {verdict.family_size for verdict in verdicts} == {20}


def test_only_batch_norm_with_relu_answers_the_paper(results):
    verdicts = [verdict for verdict in judge(results) if verdict.claim == "C1"]
    assert [verdict.is_claimed for verdict in verdicts] == [True, True, False, False]
    assert [verdict.title.rpartition("skip connections, ")[2] for verdict in verdicts] == [
        *["ReLU before batch norm is best"] * 2,
        "ReLU before layer norm is best",
        "GELU before group norm is best",
    ]


def test_a_sentence_names_the_norm_and_the_activation_of_its_study(results):
    sentences = [verdict.sentence for verdict in judge(results) if verdict.claim == "C5"]
    assert "What batch norm after ReLU gains, without skips minus" in sentences[0]
    assert "What group norm after GELU gains, without skips minus" in sentences[3]


def test_each_verdict_rests_on_effects_of_its_own_study(results):
    for verdict in judge(results):
        assert verdict.effects
        assert all(effect.identity == verdict.identity for effect in verdict.effects)


def test_holm_over_cells_stays_within_a_study(results):
    effects = find_effects("accuracy", collect_outcomes(results), results.plan)
    layer = [e for e in effects if (e.norm, e.family, e.kind) == ("layer", "C1", "cell")]
    assert len(layer) == 2  # after against before, and against none
    smallest = min(layer, key=lambda effect: effect.p)
    assert smallest.p_holm == pytest.approx(2 * smallest.p)


@pytest.mark.parametrize(
    ("several", "names"),
    [
        ([{}, {}], ["", ""]),
        ([{"norm": "layer"}], ["layer norm"]),
        ([{}, {"norm": "layer"}], ["batch norm", "layer norm"]),
        (
            [{}, {"activation": "leaky_relu", "optimizer": "adamw"}],
            ["ReLU, SGD", "leaky ReLU, AdamW"],
        ),
        ([{}, {"norm": "group", "norm_groups": 8}], ["batch norm", "group norm"]),
        (
            [{}, *({"norm": "group", "norm_groups": n} for n in (2, 8))],
            ["batch norm", "group norm of 2 groups", "group norm of 8 groups"],
        ),
        ([{}, {"norm": "mine"}], ["batch norm", "mine"]),
    ],
)
def test_a_study_is_named_by_what_is_new_anywhere(several, names):
    assert name_ingredients(rows(*several)) == names


def test_groups_mean_nothing_where_no_norm_has_groups():
    planned = rows({"norm_groups": 4}, {"norm_groups": 8})
    planned = planned.assign(program="conv norm act", final_norm=False)
    assert name_ingredients(planned) == ["", ""]
    assert [study.norm_groups for study, _ in split_studies(planned)] == [0]
