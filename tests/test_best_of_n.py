"""Best-of-n against brute force over all subsets, and tilting against hand-computed cases."""

import itertools
import math

import numpy as np
import pytest

from irl_jax.evaluation import best_of_n as bon


def brute_force(rewards, golden, n):
    """Expected golden and win rate of best-of-n over every subset of n, every order of ties, and every opponent."""
    samples = len(rewards)
    goldens, wins = [], []
    for subset in itertools.combinations(range(samples), n):
        best = max(rewards[i] for i in subset)
        tied = [i for i in subset if rewards[i] == best]
        goldens.append(np.mean([golden[i] for i in tied]))
        wins.append(np.mean([(golden[i] > golden[j]) + 0.5 * (golden[i] == golden[j])
                             for i in tied for j in range(samples) if j != i]))
    return np.mean(goldens), np.mean(wins)


@pytest.mark.parametrize("levels", [2, 3, 1000])  # few levels: many ties, in rewards and golden both
@pytest.mark.parametrize("samples", [2, 5, 7])
def test_equals_brute_force(levels, samples):
    rng = np.random.default_rng(levels + samples)
    rewards = rng.integers(0, levels, (4, samples)).astype(float)
    golden = rng.integers(0, levels, (4, samples)).astype(float)
    for n in range(1, samples + 1):
        got = bon.best_of_n_per_prompt(rewards, golden, n)
        expected = np.array([brute_force(r, g, n) for r, g in zip(rewards, golden, strict=True)])
        np.testing.assert_allclose(got.golden, expected[:, 0], atol=1e-13)
        np.testing.assert_allclose(got.win_rate, expected[:, 1], atol=1e-13)


def test_weights_are_binomial_ratios_without_overflow():
    for n in (1, 2, 50, 511, 512):
        exact = [math.comb(i - 1, n - 1) / math.comb(512, n) for i in range(1, 513)]
        weights = bon.order_weights(512, n)
        np.testing.assert_allclose(weights, exact, rtol=1e-11, atol=1e-300)
        assert abs(weights.sum() - 1.0) < 1e-12
    assert np.isfinite(bon.order_weights(100_000, 50_000)).all()


def test_n_of_one_is_the_base_and_wins_half():
    golden = np.random.default_rng(0).normal(size=(6, 64))
    got = bon.best_of_n_per_prompt(np.random.default_rng(1).normal(size=(6, 64)), golden, 1)
    np.testing.assert_allclose(got.golden, golden.mean(axis=1), atol=1e-14)
    np.testing.assert_allclose(got.win_rate, 0.5, atol=1e-14)
    assert bon.best_of_n_per_prompt(np.zeros((2, 1)), np.ones((2, 1)), 1).win_rate.tolist() == [0.5, 0.5]


def test_constant_reward_is_the_base_at_every_n():
    golden = np.random.default_rng(0).normal(size=(3, 16))
    got = bon.best_of_n_per_prompt(np.zeros((3, 16)), golden, 8)
    np.testing.assert_allclose(got.golden, golden.mean(axis=1), atol=1e-14)
    np.testing.assert_allclose(got.win_rate, 0.5, atol=1e-14)


def test_curve_has_standard_errors_over_prompts_and_the_bound():
    rewards = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    golden = np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    first, second = bon.best_of_n(rewards, golden, (2, 1, 2, 4))  # 4 > M is left out, a repeat counts once
    assert (first["n"], second["n"]) == (1, 2)
    assert first["golden"] == pytest.approx(1.0) and second["golden"] == pytest.approx(2.0)
    assert first["stderr"] == pytest.approx(0.5 / math.sqrt(3)) and second["stderr"] == pytest.approx(1 / math.sqrt(3))
    assert second["win_rate"] == pytest.approx(1.0) and second["win_rate_stderr"] == pytest.approx(0.0)
    assert first["kl_bound"] == 0.0 and second["kl_bound"] == pytest.approx(math.log(2) - 0.5)


def test_without_a_judge_numbers_are_none():
    rewards = np.random.default_rng(0).normal(size=(3, 4))
    row = bon.best_of_n(rewards, np.full((3, 4), np.nan), (2,))[0]
    assert row["golden"] is None and row["win_rate"] is None and row["n"] == 2
    assert bon.tilting(rewards, np.full((3, 4), np.nan), (1.0,))[0]["golden"] is None


@pytest.mark.parametrize("call", [
    lambda: bon.best_of_n([[np.nan, 1.0]], [[0.0, 1.0]], (1,)),
    lambda: bon.best_of_n([[0.0, 1.0]], [[0.0, 1.0, 2.0]], (1,)),
    lambda: bon.best_of_n_per_prompt(np.zeros((1, 2)), np.zeros((1, 2)), 3),
    lambda: bon.order_weights(4, 0),
    lambda: bon.tilting(np.zeros((1, 2)), np.zeros((1, 2)), (0.0,)),
    lambda: bon.tilting(np.full((1, 2), np.inf), np.zeros((1, 2)), (1.0,)),
])
def test_misuse_is_a_value_error(call):
    with pytest.raises(ValueError):
        call()


def test_tilting_by_hand():
    rewards, golden = np.log([[1.0, 3.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    row, sharper = bon.tilting(rewards, golden, (0.5, 1.0))
    assert row["beta"] == 1.0 and sharper["beta"] == 0.5
    assert row["golden"] == pytest.approx((0.75 + 0.5) / 2)
    assert row["stderr"] == pytest.approx(np.std([0.75, 0.5], ddof=1) / math.sqrt(2))
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert row["kl"] == pytest.approx(kl / 2)
    assert row["ess"] == pytest.approx((1 / (0.25**2 + 0.75**2) + 2) / 2)
    assert sharper["golden"] == pytest.approx((0.9 + 0.5) / 2)  # weights 1 : 9


def test_tilting_limits_and_trust():
    rng = np.random.default_rng(0)
    rewards, golden = rng.normal(size=(5, 32)) * 1e3, rng.normal(size=(5, 32))
    flat, sharp = bon.tilting(rewards, golden, (1e9, 1e-9))
    assert flat["golden"] == pytest.approx(golden.mean(), abs=1e-5)
    assert flat["kl"] == pytest.approx(0.0, abs=1e-9)
    assert flat["trusted"] is True and flat["ess"] == pytest.approx(32)
    best = golden[np.arange(5), rewards.argmax(axis=1)].mean()
    assert sharp["golden"] == pytest.approx(best)
    assert sharp["kl"] == pytest.approx(math.log(32)) and sharp["trusted"] is False


def test_tilting_recovers_an_exponential_family():
    """Base N(0, 1) tilted by h = y at beta = 2 is N(1/2, 1): golden y has mean 1/2, KL = 1/8 nats."""
    y = np.random.default_rng(0).normal(size=(200, 400))
    row = bon.tilting(y, y, (2.0,))[0]
    assert row["golden"] == pytest.approx(0.5, abs=4 * row["stderr"] + 0.003)
    assert row["kl"] == pytest.approx(0.125, abs=4 * row["kl_stderr"] + 0.003)


def test_agreed_choice_by_hand():
    """Three members; the second half of the samples is better on average only by what one member says."""
    rewards = np.array([[0.0, 1.0, 1.5, 9.0], [0.0, 1.2, 1.6, 0.0], [0.0, 0.8, 1.7, 0.0]])
    # n = 1 -> 0; n = 2: sample 1, gains (1, 1.2, .8): mean 1 > std .16; n = 4: sample 3, gains (8, -1.2, -.8): mean 2 < std 4.2
    assert bon.agreed_choice(rewards, (1, 2, 4), agreement=1.0) == (1, 2)
    assert bon.agreed_choice(rewards, (1, 2, 4), agreement=0.0) == (3, 4)
    assert bon.agreed_choice(rewards, (1, 2, 3, 4), agreement=1.0) == (2, 3)
    assert bon.agreed_choice(rewards, (1, 2, 4), agreement=10.0) == (0, 1)
    flat = np.zeros((2, 4))
    assert bon.agreed_choice(flat, (1, 2, 4), agreement=1.0) == (0, 4)  # nothing better to disagree about


def test_agreed_best_of_n_by_blocks():
    rewards = np.array([[[0.0, 1.0, 5.0, 4.0]], [[0.0, 1.2, 5.0, 4.5]]])  # 2 members, 1 prompt, 2 blocks of 2
    golden = np.array([[0.1, 0.2, 0.3, 0.4]])
    got = bon.agreed_best_of_n(rewards, golden, (1, 2, 16), agreement=1.0)
    assert (got.golden, got.plain_golden, got.mean_n, got.max_n) == (pytest.approx(0.25), pytest.approx(0.25), 2.0, 2)
    stopped = bon.agreed_best_of_n(rewards, golden, (1, 2), agreement=1e6)
    assert stopped.golden == pytest.approx((0.1 + 0.3) / 2) and stopped.mean_n == 1.5 and stopped.plain_golden == pytest.approx(0.25)


def test_agreeing_members_are_plain_best_of_n():
    rng = np.random.default_rng(0)
    one, golden = rng.normal(size=(6, 32)), rng.normal(size=(6, 32))
    got = bon.agreed_best_of_n(np.stack([one, one]), golden, (1, 4, 16), agreement=1.0)
    assert got.golden == got.plain_golden and got.mean_n == 16


def test_agreed_best_of_n_without_enough_samples_or_with_other_shapes():
    assert bon.agreed_best_of_n(np.zeros((2, 3, 4)), np.zeros((3, 4)), (8, 16), agreement=1.0) is None
    with pytest.raises(ValueError, match="finite"):
        bon.agreed_best_of_n(np.full((2, 3, 4), np.nan), np.zeros((3, 4)), (2,), agreement=1.0)
    with pytest.raises(ValueError, match="golden"):
        bon.agreed_best_of_n(np.zeros((2, 3, 4)), np.zeros((3, 5)), (2,), agreement=1.0)
