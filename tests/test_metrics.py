"""Metrics by small cases computed by hand, by scipy or by enumeration."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from irl_jax.evaluation import metrics
from irl_jax.stages import evaluate


def test_mean_and_standard_error():
    assert metrics.mean_stderr([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    # Samples of a prompt are averaged first: four numbers, but two prompts.
    assert metrics.mean_stderr([[0.0, 2.0], [2.0, 4.0]]) == pytest.approx((2.0, 1.0))
    assert math.isnan(metrics.mean_stderr([1.0])[1])
    assert all(math.isnan(x) for x in metrics.mean_stderr([]))


def test_paired_difference():
    got = metrics.paired_difference([1.0, 2.0, 6.0], [[0.0, 0.0], [0.0, 0.0], [2.0, 4.0]])
    assert got.difference == pytest.approx(2.0) and got.stderr == pytest.approx(1 / math.sqrt(3))
    assert got.z == pytest.approx(2.0 * math.sqrt(3))
    assert metrics.paired_difference([1.0, 2.0], [1.0, 2.0]).z == 0.0
    assert metrics.paired_difference([0.0, 1.0], [1.0, 2.0]).z == -math.inf
    with pytest.raises(ValueError):
        metrics.paired_difference([1.0], [1.0, 2.0])


def test_auc_counts_ties_half():
    positive, negative = [3.0, 1.0, 2.0], [1.0, 2.0, 0.0, 2.0]
    brute = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
    assert metrics.auc(positive, negative)[0] == pytest.approx(brute)
    assert metrics.auc([2.0, 3.0], [0.0, 1.0]) == (1.0, 0.0)
    assert metrics.auc([1.0, 1.0], [1.0, 1.0]) == (0.5, 0.0)
    with pytest.raises(ValueError):
        metrics.auc([], [1.0])


def test_auc_standard_error_is_delongs():
    positive, negative = np.array([3.0, 1.0, 2.5]), np.array([1.0, 2.0, 0.0, 2.0])
    placements = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    expected = math.sqrt(placements.mean(1).var(ddof=1) / 3 + placements.mean(0).var(ddof=1) / 4)
    assert metrics.auc(positive, negative)[1] == pytest.approx(expected, rel=1e-12)


def test_auc_standard_error_covers_by_simulation():
    rng = np.random.default_rng(0)
    draws = [metrics.auc(rng.normal(1, 1, 60), rng.normal(0, 1, 40)) for _ in range(400)]
    values, errors = np.array(draws).T
    assert values.mean() == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.01)
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.1)


def test_auc_groups_widen_the_standard_error_of_copies():
    """Every response counted four times: grouping the copies gives the error of the responses counted once."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    groups = (np.repeat(np.arange(50), 4), np.repeat(np.arange(50, 100), 4))
    once = metrics.auc(positive, negative)
    copied = metrics.auc(np.repeat(positive, 4), np.repeat(negative, 4), groups)
    assert copied[0] == pytest.approx(once[0])
    assert copied[1] == pytest.approx(once[1], rel=0.02)
    assert metrics.auc(np.repeat(positive, 4), np.repeat(negative, 4))[1] < 0.6 * once[1]


def test_auc_groups_know_that_a_prompt_moves_both_its_classes():
    """A shift shared by a prompt's positive and negative, against the spread over simulated data sets."""
    rng = np.random.default_rng(0)

    def draw():
        prompt = 2 * rng.normal(size=60)
        return 1 + prompt + 0.5 * rng.normal(size=60), prompt + 0.5 * rng.normal(size=60)

    groups = (np.arange(60), np.arange(60))
    draws = np.array([metrics.auc(*draw(), groups) for _ in range(300)])
    assert draws[:, 1].mean() == pytest.approx(draws[:, 0].std(ddof=1), rel=0.1)


def test_auc_difference_is_paired():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 200), rng.normal(0, 1, 200)
    same = metrics.auc_difference(positive, negative, 2 * positive, 2 * negative)  # ranks are all that counts
    assert same == (0.0, 0.0, 0.0)
    noisy = [x + rng.normal(0, 0.1, 200) for x in (positive, negative)]
    got = metrics.auc_difference(positive, negative, *noisy)
    assert got.difference == pytest.approx(metrics.auc(positive, negative)[0] - metrics.auc(*noisy)[0])
    assert 0 < got.stderr < 0.5 * metrics.auc(positive, negative)[1]
    with pytest.raises(ValueError):
        metrics.auc_difference([1.0, 2.0], [0.0], [1.0], [0.0])


def test_pair_accuracy():
    assert metrics.pair_accuracy([1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 2.0, 0.0])[0] == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_spearman_equals_scipy_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (3, 9)), rng.integers(0, 4, (3, 9))
    assert metrics.spearman(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    rows = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    got = metrics.spearman_within_prompts(a, b)
    assert got.mean == pytest.approx(np.mean(rows)) and got.constant == 0
    assert got.stderr == pytest.approx(np.std(rows, ddof=1) / math.sqrt(3))


def test_spearman_leaves_constant_prompts_out():
    got = metrics.spearman_within_prompts([[1, 2, 3], [1, 1, 1], [3, 2, 1]], [[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert got.mean == pytest.approx(0.0) and got.constant == 1
    nothing = metrics.spearman_within_prompts([[1, 1]], [[1, 2]])
    assert math.isnan(nothing.mean) and nothing.constant == 1
    assert math.isnan(metrics.spearman([1, 1], [1, 2]))


def test_distinct_n():
    assert metrics.distinct_n(["a b a b", "b a"], 2) == pytest.approx(2 / 4)  # ab ba ab | ba
    assert metrics.distinct_n([np.array([1, 2, 1, 2]), [2, 1]], 2) == pytest.approx(2 / 4)
    assert metrics.distinct_n(["a b a c a b"], 2) == pytest.approx(4 / 5)  # ab ba ac ca ab
    assert metrics.distinct_n(["a b", "c d"], 2) == 1.0  # "b c" spans two sequences and does not count
    assert math.isnan(metrics.distinct_n(["a"], 2))


def test_divergences_of_two_known_laws():
    """Two laws on three responses: the estimators over samples in exact proportion give the exact divergences."""
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    ratio = np.log(p / q)
    from_p, from_q = np.repeat(ratio, (2, 1, 1)), np.repeat(ratio, (1, 1, 2))
    got = metrics.divergences(from_p[None].repeat(2, 0), from_q[None].repeat(2, 0))
    assert got["forward_kl"] == pytest.approx((p * ratio).sum()) and got["forward_kl_stderr"] == pytest.approx(0.0)
    assert got["reverse_kl"] == pytest.approx(-(q * ratio).sum())
    middle = (p + q) / 2
    expected = ((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2
    assert got["jensen_shannon"] == pytest.approx(expected, abs=1e-15)
    assert metrics.kl_estimate([1.0, 3.0]) == pytest.approx((2.0, 1.0))


def test_jensen_shannon_is_bounded_and_stable():
    far = metrics.jensen_shannon([1e4, np.inf], [-1e4, -np.inf])
    assert far == pytest.approx((math.log(2), 0.0))
    assert metrics.jensen_shannon([0.0, 0.0], [0.0, 0.0])[0] == 0.0
    with pytest.raises(ValueError):
        metrics.jensen_shannon([0.0], [0.0, 1.0])


def test_jsonable():
    value = {"a": np.float64(np.nan), 1: [np.int32(2), np.inf], "b": (np.bool_(True), None, "s"), "c": np.array([1.0, np.nan])}
    assert json.loads(json.dumps(metrics.jsonable(value), allow_nan=False)) == {
        "a": None, "1": [2, None], "b": [True, None, "s"], "c": [1.0, None]}


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [1e17], [0.1, 0.1 + 1e-17, np.nextafter(0.1, 1)], [-1e30, -1e30], [-2.0, 5.0]])
def test_a_histogram_of_whatever_values(values):
    edges = evaluate._edges(np.asarray(values))
    assert np.histogram(values, edges)[0].sum() == len(values) and len(edges) == 41 and np.all(np.diff(edges) > 0)
