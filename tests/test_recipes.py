"""Recipes: which side is which, equal weights on every prompt, and one split for all of them."""

import numpy as np
import pytest

from irl_jax.data.recipes import LEARNT, build_reward_data
from irl_jax.errors import UserError
from irl_jax.types import Example, Pair

DEMO, INIT, SFT, CHOSEN, REJECTED = range(5)


def example(prompt, kind, number=0):
    return Example(np.asarray([prompt], np.int32), np.asarray([kind, number], np.int32), True, prompt)


def data(prompts=range(40), samples=3):
    return dict(
        demos=[example(p, DEMO) for p in range(60)],
        init_samples=[example(p, INIT, k) for p in prompts for k in range(samples)],
        sft_samples=[example(p, SFT, k) for p in prompts for k in range(samples)],
        pairs=[Pair(example(p, CHOSEN, k), example(p, REJECTED, k)) for p in range(50) for k in range(2)],
    )


def build(recipe, seed=0, fraction=0.25, **changes):
    return build_reward_data(recipe, **{**data(), **changes}, heldout_fraction=fraction, seed=seed)


def prompts(part):
    return {e.source for e in part.positives + part.negatives}


@pytest.mark.parametrize(
    ("recipe", "positive", "negative"),
    [("init_sft", SFT, INIT), ("init_demo", DEMO, INIT), ("sft_demo", DEMO, SFT), ("preference", CHOSEN, REJECTED)],
)
def test_sides(recipe, positive, negative):
    train, heldout = build(recipe)
    for part in (train, heldout):
        assert {int(e.response[0]) for e in part.positives} == {positive}
        assert {int(e.response[0]) for e in part.negatives} == {negative}
        assert [e.source for e in part.positives] == [e.source for e in part.negatives]
    assert not prompts(train) & prompts(heldout)
    assert prompts(train) | prompts(heldout) == set(range(50 if recipe == "preference" else 40))


def test_the_scarcer_side_is_repeated_within_the_prompt():
    train, heldout = build("init_demo")
    assert len(train.positives) + len(heldout.positives) == 40 * 3
    drawn = sorted((e.source, int(e.response[1])) for e in train.negatives + heldout.negatives)
    assert drawn == [(p, k) for p in range(40) for k in range(3)]
    assert all(e.response.tolist() == [DEMO, 0] for e in train.positives)
    uneven = build("init_sft", init_samples=[example(p, INIT, k) for p in range(40) for k in range(2)])[0]
    assert [int(e.response[1]) for e in uneven.negatives[:3]] == [0, 1, 0]


def test_pairs_stay_together():
    train, _ = build("preference")
    assert all(a.response[1] == b.response[1] and a.source == b.source for a, b in zip(*train, strict=True))


def test_every_recipe_splits_alike():
    heldouts = {recipe: prompts(build(recipe)[1]) for recipe in LEARNT}
    assert heldouts["init_sft"] == heldouts["init_demo"] == heldouts["sft_demo"]
    assert heldouts["preference"] & set(range(40)) == heldouts["init_sft"]
    fewer = build("init_sft", init_samples=[example(p, INIT) for p in range(10, 40)])[1]
    assert prompts(fewer) == heldouts["init_sft"] & set(range(10, 40))


def test_split_follows_the_seed_and_the_fraction():
    assert prompts(build("init_sft", seed=0)[1]) != prompts(build("init_sft", seed=1)[1])
    many = data(prompts=range(2000), samples=1)
    for fraction in (0.1, 0.5):
        share = len(prompts(build("init_sft", fraction=fraction, **many)[1])) / 2000
        assert abs(share - fraction) < 0.04  # more than three standard errors
    assert len(prompts(build("init_sft", fraction=0.0)[1])) == 1
    assert len(prompts(build("init_sft", fraction=1.0)[0])) == 1


def test_missing_data_is_one_line():
    with pytest.raises(UserError, match="'preference' needs chosen/rejected pairs .* on two or more prompts and has 0"):
        build("preference", pairs=[])
    with pytest.raises(UserError, match="'init_demo' needs responses of both kinds on two or more prompts and has 0"):
        build("init_demo", demos=[])
    with pytest.raises(UserError, match="no recipe 'demo_init'; there are init_sft, init_demo, sft_demo, preference"):
        build("demo_init")
