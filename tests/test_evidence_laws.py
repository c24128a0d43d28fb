"""benchmarks/evidence/laws.py: what another sampling law changes, on records whose figures are known."""

import math

import evidence_records as made
import pytest

from benchmarks.evidence import advice, claims, laws, tables
from benchmarks.evidence.effects import Study, difference, win


def studies(wins, plain=(0, 1, 2), other=(0, 1, 2)):
    """Movie reviews at the seeds `plain`, and under the other law, where rewards gain by `wins`, at the seeds `other`."""
    records = {"imdb": {seed: made.record("imdb", seed=seed) for seed in plain},
               "imdb_top_p": {seed: made.record("imdb_top_p", seed=seed, wins=wins, move=0.001 * seed) for seed in other}}
    return {name: Study(name, {"base": found}) for name, found in records.items() if found}


def test_a_change_is_by_the_seeds_of_both():
    ((plain, other),) = laws.twins(studies({"sft_demo": 0.03}, other=(1, 2, 3)))
    change = laws.change(win("sft_demo", claims.N), plain, other)
    assert change.seeds == 2 and change.mean == pytest.approx(0.1)
    half = 1.959964 * math.hypot(0.01, 0.01) / math.sqrt(2)
    assert (change.low, change.high) == pytest.approx((0.1 - half, 0.1 + half)), "the seeds lie closer than their prompts allow"
    assert laws.change(win("init_sft", claims.N), plain, other).mean == pytest.approx(0.0015)
    change = laws.change(difference(win("init_demo", claims.N), win("sft_demo", claims.N)), plain, other)
    assert change.mean == pytest.approx(-0.1) and change.mean - change.low == pytest.approx(half * math.sqrt(2))


def test_whose_lead_changes_is_said():
    (said,) = laws.sentences(studies({"sft_demo": 0.03}))
    assert said.startswith("Movie reviews: sampling at top-p 0.95 instead of temperature 1 changes 3 of 6 leads of one learnt reward over another: "
                           "that of `init_sft` over `sft_demo` by -0.0")
    assert "; of `init_demo` over `sft_demo` by -0.100 [" in said and "`sft_demo` over `preference` by +0.100" in said
    assert said.count(", to ") == 3 and ", to -0.080;" in said, "win rates there: 0.45 by init_demo, 0.53 by sft_demo"
    assert "`init_sft` over `init_demo`" not in said and "(one seed)" not in said
    found = studies({}, other=(0,))
    (said,) = laws.sentences(found)
    assert said.endswith("could not be shown to change any lead of one learnt reward over another (one seed).")
    assert said in advice.recipe(found, claims.test_all(found))
    assert laws.sentences(studies({}, other=())) == laws.sentences(studies({}, plain=(0,), other=(1,))) == []


def test_the_table_of_both_laws():
    rows = [line.split(" | ") for line in tables.sampling_laws(studies({"sft_demo": 0.03})).splitlines()[2:]]
    (row,) = (row for row in rows if row[1] == "`sft_demo`")
    assert row[0] == "| `imdb`" and row[2].startswith("0.430 ± ") and row[3].startswith("0.530 ± ") and row[4].startswith("+0.100 [")
    assert tables.sampling_laws(studies({}, other=())) == ""
