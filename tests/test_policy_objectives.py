"""Clipped surrogates, k3, token returns, GAE, DPO and running statistics, against float64 numpy written here and exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.objectives import advantage, policy, preference, reward, statistics

RNG = np.random.default_rng(0)
MASK = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]], np.float64)
LOGP, OLD, REF = (np.where(MASK > 0, RNG.normal(-1.5, 0.7, MASK.shape), np.nan) for _ in range(3))  # NaN is for nobody to read
ADVANTAGES, WEIGHTS = np.where(MASK > 0, RNG.normal(size=MASK.shape), np.nan), np.array([1.0, 0.5, 1.0])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def tokens(weights=WEIGHTS):
    return [(b, t, weights[b]) for b, t in zip(*np.nonzero(MASK), strict=True)]


def check(loss, by_hand, argument=LOGP):
    """The value is the one by hand, the weight counts sequences, and the gradient is finite and 0 outside the mask."""
    total, weight = loss(argument)
    np.testing.assert_allclose(float(total), by_hand, rtol=1e-12)
    assert float(weight) == WEIGHTS.sum()
    gradient = np.asarray(jax.grad(lambda x: loss(x)[0])(jnp.asarray(argument)))
    assert np.all(gradient[MASK == 0] == 0) and np.all(np.isfinite(gradient)) and np.any(gradient)


def test_score_function_and_k2():
    check(lambda x: policy.score_function(x, MASK, ADVANTAGES, WEIGHTS), -sum(w * ADVANTAGES[b, t] * LOGP[b, t] for b, t, w in tokens()))
    check(lambda x: policy.k2(x, REF, MASK, WEIGHTS), np.sum(WEIGHTS * np.nansum(LOGP - REF, axis=1) ** 2 / 2))


def test_ppo_clip():
    by_hand, cut, count = 0.0, 0.0, 0.0
    for b, t, w in tokens():
        ratio, a = np.exp(LOGP[b, t] - OLD[b, t]), ADVANTAGES[b, t]
        by_hand -= w * min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        cut += w * ((a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8))
        count += w
    check(lambda x: policy.ppo_clip(x, OLD, MASK, ADVANTAGES, WEIGHTS, 0.2), by_hand)
    got = policy.clipped(LOGP, OLD, MASK, ADVANTAGES, WEIGHTS, 0.2)
    np.testing.assert_allclose([float(x) for x in got], [cut, count])
    assert 0 < cut < count


def test_ppo_clip_has_the_score_function_s_gradient_on_fresh_samples_and_none_where_clipped():
    fresh = jax.grad(lambda x: policy.ppo_clip(x, LOGP, MASK, ADVANTAGES, WEIGHTS, 0.2)[0])(jnp.asarray(LOGP))
    score = jax.grad(lambda x: policy.score_function(x, MASK, ADVANTAGES, WEIGHTS)[0])(jnp.asarray(LOGP))
    np.testing.assert_allclose(fresh, score, atol=1e-14)
    far = jax.grad(lambda x: policy.ppo_clip(x, LOGP - 1, MASK, np.ones_like(MASK), WEIGHTS, 0.2)[0])(jnp.asarray(LOGP))
    assert np.all(np.asarray(far) == 0)


def test_k3_and_its_weighted_form():
    plain, weighted = 0.0, 0.0
    for b, t, w in tokens():
        d = REF[b, t] - LOGP[b, t]
        plain += w * (np.exp(d) - d - 1)
        weighted += w * np.exp(LOGP[b, t] - OLD[b, t]) * (np.exp(d) - d - 1)
    check(lambda x: policy.k3(x, REF, MASK, WEIGHTS), plain)
    check(lambda x: policy.k3_weighted(x, OLD, REF, MASK, WEIGHTS), weighted)


def test_k3_does_not_overflow():
    for loss in (lambda x: policy.k3(x, -x, MASK, WEIGHTS), lambda x: policy.k3_weighted(x, 3 * x, -x, MASK, WEIGHTS)):
        x = jnp.where(MASK > 0, -400.0, jnp.nan)
        assert np.isfinite(float(loss(x)[0])) and np.all(np.isfinite(np.asarray(jax.grad(lambda x, loss=loss: loss(x)[0])(x))))


def expected_gradient(loss):
    """Gradient of E_policy[loss of one token] over a policy of five tokens, which are all enumerated, samples held fixed."""
    theta = jnp.asarray(np.random.default_rng(1).normal(size=5))
    p = np.asarray(jax.nn.softmax(theta))
    return jax.grad(lambda x: loss(jax.nn.log_softmax(x)[:, None], np.ones((5, 1)), p)[0])(theta), theta


REFERENCE = np.random.default_rng(2).dirichlet(np.ones(5))


def test_plain_k3_has_the_forward_kl_s_gradient():
    got, theta = expected_gradient(lambda logp, mask, p: policy.k3(logp, jnp.log(REFERENCE)[:, None], mask, p))
    forward = jax.grad(lambda x: jnp.sum(REFERENCE * (jnp.log(REFERENCE) - jax.nn.log_softmax(x))))(theta)
    reverse = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - jnp.log(REFERENCE))))(theta)
    np.testing.assert_allclose(got, forward, atol=1e-12)
    assert np.abs(np.asarray(forward - reverse)).max() > 0.01


def test_weighted_k3_has_the_reverse_kl_s_gradient():
    got, theta = expected_gradient(lambda logp, mask, p: policy.k3_weighted(
        logp, jax.lax.stop_gradient(logp), jnp.log(REFERENCE)[:, None], mask, p))
    reverse = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - jnp.log(REFERENCE))))(theta)
    np.testing.assert_allclose(got, reverse, atol=1e-12)


def test_value_loss_and_entropy_bonus():
    returns, values = (np.where(MASK > 0, RNG.normal(size=MASK.shape), np.nan) for _ in range(2))
    by_hand = sum(w * 0.5 * (values[b, t] - returns[b, t]) ** 2 for b, t, w in tokens())
    check(lambda x: policy.value_loss(x, returns, MASK, WEIGHTS), by_hand, values)
    check(lambda x: policy.entropy_bonus(x, MASK, WEIGHTS), sum(w * values[b, t] for b, t, w in tokens()), values)


def test_penalised_token_rewards_sum_to_the_penalised_reward():
    rewards = np.where(MASK > 0, RNG.normal(size=MASK.shape), np.nan)
    got = np.asarray(policy.penalised_token_rewards(rewards, LOGP, REF, MASK, 0.3))
    whole = policy.penalised_reward(np.nansum(rewards, axis=1), LOGP, REF, MASK, 0.3)
    np.testing.assert_allclose(got.sum(1), whole, rtol=1e-12)
    assert np.all(got[MASK == 0] == 0)


def test_the_controller_moves_by_at_most_a_fifth_of_its_rate():
    for kl, factor in ((1.0, 1.0), (1.1, 1.01), (9.0, 1.02), (0.0, 0.98), (0.9, 0.99)):
        np.testing.assert_allclose(float(policy.next_beta(0.5, kl, target=1.0)), 0.5 * factor, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------- advantages
def returns_by_hand(rewards, gamma):
    out = np.zeros_like(MASK)
    for b in range(len(MASK)):
        places = np.nonzero(MASK[b])[0]
        for i, t in enumerate(places):
            out[b, t] = sum(gamma**j * rewards[b, s] for j, s in enumerate(places[i:]))
    return out


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_returns_to_go(gamma):
    rewards = np.where(MASK > 0, RNG.normal(size=MASK.shape), np.nan)
    np.testing.assert_allclose(advantage.returns_to_go(rewards, MASK, gamma), returns_by_hand(rewards, gamma), rtol=1e-12)


def test_a_terminal_reward_stands_at_the_last_token():
    got = advantage.terminal(np.array([1.0, 2, 3]), MASK)
    np.testing.assert_array_equal(got, [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 2], [0, 3, 0, 0, 0, 0]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.9, 0.0)])
def test_gae_by_a_double_loop(gamma, lam):
    rewards, values = (np.where(MASK > 0, RNG.normal(size=MASK.shape), np.nan) for _ in range(2))
    want = np.zeros_like(MASK)
    for b in range(len(MASK)):
        places = np.nonzero(MASK[b])[0]
        for i, t in enumerate(places):
            for j, s in enumerate(places[i:]):
                following = values[b, s + 1] if i + j + 1 < len(places) else 0.0
                want[b, t] += (gamma * lam) ** j * (rewards[b, s] + gamma * following - values[b, s])
    got, targets = advantage.gae(rewards, values, MASK, gamma, lam)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(targets, np.where(MASK > 0, want + values, 0.0), rtol=1e-12, atol=1e-14)
    gradient = jax.grad(lambda v: advantage.gae(rewards, v, MASK, gamma, lam)[0].sum())(jnp.where(MASK > 0, values, 0.0))
    assert np.all(np.asarray(gradient) == 0)


def test_token_advantages_by_hand():
    mask = np.array([[[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0]]], np.float64)
    returns = np.array([[[9, 1, 2, 3], [9, 4, 9, 9], [9, 7, 5, 9.0]]])
    r = np.where(mask > 0, returns, 0.0)
    rloo = np.array([[[0, 1 - 11 / 2, 2 - 5 / 2, 3], [0, 4 - 8 / 2, 0, 0], [0, 7 - 5 / 2, 5 - 2 / 2, 0]]])
    np.testing.assert_allclose(advantage.token_advantages("rloo", returns, mask), rloo, atol=1e-12)
    grpo = np.where(mask > 0, r - r.mean(1, keepdims=True), 0.0) / np.std([1, 4, 7])
    np.testing.assert_allclose(advantage.token_advantages("grpo", returns, mask, epsilon=0.0), grpo, atol=1e-12)
    mean = (1 + 2 + 3 + 4 + 7 + 5) / 6
    np.testing.assert_allclose(advantage.token_advantages("reinforce", returns, mask), np.where(mask > 0, returns - mean, 0), atol=1e-12)
    with pytest.raises(ValueError, match="no token advantage 'gae'"):
        advantage.token_advantages("gae", returns, mask)
    with pytest.raises(ValueError, match="1 sample a prompt"):
        advantage.token_advantages("rloo", returns[:, :1], mask[:, :1])


# ------------------------------------------------------------------------------------------------------- preferences
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_and_spin(smoothing):
    """SPIN is the same number: demonstrations chosen over the last iterate's samples, which is the reference."""
    chosen, rejected, ref_chosen, ref_rejected = RNG.normal(-20, 3, size=(4, 5))
    weights = np.array([1, 1, 0.5, 1, 0])
    m = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))
    by_hand = np.sum(weights * (-(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m)))
    total, weight = preference.dpo(chosen, rejected, ref_chosen, ref_rejected, weights, 0.3, smoothing)
    np.testing.assert_allclose(float(total), by_hand, rtol=1e-12)
    assert float(weight) == 3.5
    slope = jax.grad(lambda c: preference.dpo(c, rejected, ref_chosen, ref_rejected, weights, 0.3, smoothing)[0])(jnp.asarray(chosen))
    sigmoid = 1 / (1 + np.exp(-m))
    np.testing.assert_allclose(slope, -0.3 * weights * ((1 - smoothing) - sigmoid), rtol=1e-10)  # d/dm = sigmoid(m) - (1 - e)
    fixed = jax.grad(lambda r: preference.dpo(chosen, rejected, r, ref_rejected, weights, 0.3)[0])(jnp.asarray(ref_chosen))
    assert np.all(np.asarray(fixed) == 0)


def test_dpo_far_out_is_finite():
    big = np.array([1e4, -1e4])
    total, _ = preference.dpo(big, -big, np.zeros(2), np.zeros(2), np.ones(2), 1.0)
    np.testing.assert_allclose(float(total), 2e4)


# ------------------------------------------------------------------------------------------------------- the reward's
def test_smoothed_labels():
    h, labels, weights = RNG.normal(size=6), np.array([1, 0, 1, 0, 1, 0.0]), np.array([1, 1, 0.5, 1, 0, 1])
    target = np.where(labels == 1, 0.9, 0.1)
    losses = -(target * -np.log1p(np.exp(-h)) + (1 - target) * -np.log1p(np.exp(h)))
    np.testing.assert_allclose(float(reward.bce(h, labels, weights, 0.1)[0]), np.sum(weights * losses), rtol=1e-12)
    chosen, rejected = h[:3], h[3:]
    m = chosen - rejected
    losses = 0.9 * np.log1p(np.exp(-m)) + 0.1 * np.log1p(np.exp(m))
    np.testing.assert_allclose(float(reward.bradley_terry(chosen, rejected, np.ones(3), 0.1)[0]), losses.sum(), rtol=1e-12)


def test_the_smoothed_optimum_is_bounded():
    """At the density ratio r the minimiser is log((r (1 - e) + e) / (r e + 1 - e)), as bce's docstring says."""
    r, e = 5.0, 0.1
    slope = jax.grad(lambda h: reward.bce(jnp.stack([h, h]), jnp.array([1.0, 0.0]), jnp.array([r, 1.0]), e)[0])
    optimum = np.log((r * (1 - e) + e) / (r * e + 1 - e))
    assert abs(float(slope(jnp.asarray(optimum)))) < 1e-12 and optimum < np.log((1 - e) / e)


# ------------------------------------------------------------------------------------------------- running statistics
def test_running_statistics_are_those_of_everything_seen():
    values, weights = RNG.normal(3, 2, size=(4, 5)), np.ones((4, 5))
    weights[1, 2:] = 0
    values[1, 3] = np.nan
    running = statistics.start()
    np.testing.assert_array_equal(statistics.normalise(running, values[0]), values[0])
    for v, w in zip(values, weights, strict=True):
        running = statistics.update(running, v, w)
    seen = values[weights > 0]
    assert float(running.count) == len(seen)
    np.testing.assert_allclose([float(running.mean), float(running.m2) / len(seen)], [seen.mean(), seen.var()], rtol=1e-6)
    np.testing.assert_allclose(statistics.normalise(running, seen), (seen - seen.mean()) / seen.std(), rtol=1e-5)
