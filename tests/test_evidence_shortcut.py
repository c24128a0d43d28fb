"""benchmarks/evidence/shortcut.py: how far rewards go with the feature that golden is, on records whose figures are known."""

import evidence_records as made
import pytest

from benchmarks.evidence import advice, claims, foretell, shortcut
from benchmarks.evidence.effects import Effect, Study


def study(experiment="paradetox", alone=0.995, golden=0.8, among=0.1, log_ratio=0.02, count=3):
    """Golden is mostly `copied_share`; `init_sft` goes with it by 0.4 between its classes and `among` within one, the closed form by 0.3 in
    both."""
    records = {}
    for seed in range(count):
        one = made.record(experiment, seed=seed, wins={"log_ratio": log_ratio})
        probe = one["analyses"]["probes"]["init_sft"]
        found = {name: probe | {"features_auc": alone, "coefficients": {"copied_share": own, "tokens": 0.1},
                               "on_sft": {"r2": 0.4, "coefficients": {"copied_share": within + 0.01 * (seed - 1), "tokens": -0.15}}}
                for name, own, within in (("init_sft", 0.4, among), ("log_ratio", 0.3, 0.3), ("length", 0.0, 0.0))}
        one["analyses"] |= {"probes": found, "golden_probe": {"r2": 0.6, "coefficients": {"tokens": 0.2, "copied_share": golden}}}
        records[seed] = one
    return Study(experiment, {"base": records})


def test_the_feature_that_golden_is():
    name, coefficient = shortcut.decisive(study(golden=-0.8))
    assert name == "copied_share" and coefficient.mean == pytest.approx(-0.8)
    assert shortcut.decisive(study(golden=0.4)) is None and shortcut.paragraphs(study(golden=0.4)) == []
    assert shortcut.decisive(Study("hh", {"base": {0: {"analyses": None}}})) is None and shortcut.paragraphs(Study("hh", {})) == []


def test_how_far_the_rewards_go_with_it():
    opening, table, why = shortcut.paragraphs(study())
    assert "mostly one feature, copied share (coefficient +0.80" in opening
    rows = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines()[2:])
    assert list(rows) == ["`init_sft`", "`log_ratio`"], "the control `length` is none of the rewards"
    half = 4.302653 * 0.01 / 3**0.5  # Student's t of three seeds that are 0.01 apart
    assert rows["`init_sft`"] == f"+0.40 [+0.40, +0.40] | +0.10 [{0.1 - half:+.2f}, {0.1 + half:+.2f}] | copied share +0.40"
    assert "the classes of `init_sft` apart (AUC 0.99 or more). The logits go with copied share" in why
    assert why.endswith("`log_ratio`, a sum over tokens, goes with copied share in both.")
    for kept in (study(among=0.2), study(alone=0.98)):  # half of it, not for certain less; classes that features do not tell apart
        assert len(shortcut.paragraphs(kept)) == 2


@pytest.mark.parametrize("own, among, said", [
    ((0.4, 0.3, 0.5), (0.1, 0.0, 0.19), True), ((0.4, 0.3, 0.5), (0.1, 0.0, 0.21), False), ((0.4, -0.1, 0.9), (0.1, 0.0, 0.19), False),
    ((-0.4, -0.5, -0.3), (-0.1, -0.19, 0.0), True), ((-0.4, -0.5, -0.3), (-0.1, -0.21, 0.0), False), ((-0.4, -0.5, -0.3), (0.3, 0.2, 0.4), True)])
def test_when_a_feature_is_lost(own, among, said):
    assert shortcut.lost(*(Effect(*one, 0.0, 3) for one in (own, among))) == said


def test_when_to_choose_by_the_closed_form():
    two = {"testbed": study("testbed", alone=0.9), "paradetox": study(log_ratio=0.18)}
    (said,) = shortcut.sentences(two)
    assert "above that by `init_sft` there (paradetox +0.100; one data set), and below it elsewhere (testbed -0.060)." in said
    assert said in advice.recipe(two, claims.test_all(two))
    both = two | {"paradetox_top_p": study("paradetox_top_p", log_ratio=0.18)}
    assert "(paradetox +0.100, paradetox_top_p +0.100; one data set)" in shortcut.sentences(both)[0]
    assert "one data set" not in shortcut.sentences(two | {"imdb": study("imdb", log_ratio=0.18)})[0]
    for against in ({"paradetox": study(log_ratio=0.09)}, {"paradetox": study(log_ratio=0.18, count=1)}, {"testbed": study("testbed")}):
        assert shortcut.sentences(two | against) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_features_alone_are_advised_where_they_foretell(sign):
    studies = {name: study(name, alone=0.7 + 0.1 * sign * place) for place, name in enumerate(("imdb", "testbed", "paradetox"))}
    for place, of in enumerate(studies.values()):
        for record in of.records["base"].values():
            del record["results"]["rewards"]["init_demo"], record["results"]["rewards"]["sft_demo"], record["results"]["rewards"]["preference"]
            for row in record["results"]["rewards"]["init_sft"]["best_of_n"]:
                row["win_rate"] -= 0.01 * place
    found = foretell.correlation(foretell.points(studies), foretell.ALONE, within=False)
    assert found.mean == pytest.approx(-sign)
    assert any(one.startswith("The better surface features alone told") for one in advice.foretellers(studies)) == (sign > 0)
