"""Losses and estimators against hand-computed values and, in float64, against exact gradients of an enumerated problem.

The enumerated problem: 3 tokens (0 is EOS), responses of at most 2 tokens, so 7 of them: EOS; a EOS; a b (cut, no EOS).
The policy has a logit per (prefix, token); expectations are sums over all responses, or over all tuples of K of them.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.objectives import advantage, policy, preference, reward, sequence

BETA = 0.7
TOKENS = np.array([[0, 0], [1, 0], [2, 0], [1, 1], [1, 2], [2, 1], [2, 2]])
MASK = np.array([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1]], np.float64)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def logits(seed):
    """[prefix, token]: prefix 0 is the start, 1 and 2 the first token."""
    return np.random.default_rng(seed).normal(size=(3, 3))


def token_logprobs(theta):
    """[7, 2] log-probs of every response's tokens; NaN beyond the end, which nothing may read."""
    logp = jax.nn.log_softmax(theta, axis=-1)
    both = jnp.stack([logp[0, TOKENS[:, 0]], logp[TOKENS[:, 0], TOKENS[:, 1]]], axis=1)
    return jnp.where(MASK > 0, both, jnp.nan)


def probabilities(theta):
    return jnp.exp(sequence.sequence_logprobs(token_logprobs(theta), MASK))


REWARDS = np.array([0.3, -1.2, 0.8, 2.0, -0.5, 0.1, 1.1])
THETA, REFERENCE = logits(0), logits(1)


def exact_kl(theta):
    p = probabilities(theta)
    return jnp.sum(p * (jnp.log(p) - jnp.log(probabilities(jnp.asarray(REFERENCE)))))


def exact_return(theta):
    return jnp.sum(probabilities(theta) * REWARDS)


def expected_gradient(loss, weights=None):
    """Gradient of sum_y p(y) loss_y, with p(y) the rows' weights, held constant as sampling does."""
    weights = np.asarray(probabilities(jnp.asarray(THETA))) if weights is None else weights
    return jax.grad(lambda theta: loss(token_logprobs(theta), weights))(jnp.asarray(THETA))


def test_the_enumeration_is_a_distribution():
    np.testing.assert_allclose(np.sum(probabilities(jnp.asarray(THETA))), 1, atol=1e-14)


def test_score_function_has_the_gradient_of_the_expected_return_of_the_sequence():
    got = expected_gradient(lambda logp, w: policy.score_function(logp, MASK, REWARDS[:, None], w)[0])
    np.testing.assert_allclose(-got, jax.grad(exact_return)(jnp.asarray(THETA)), atol=1e-12)


def test_k1_in_the_reward_has_the_gradient_of_the_penalised_objective():
    def loss(logp, w):
        penalised = policy.penalised_reward(REWARDS, logp, token_logprobs(jnp.asarray(REFERENCE)), MASK, BETA)
        return policy.score_function(logp, MASK, penalised[:, None], w)[0]

    exact = jax.grad(lambda theta: exact_return(theta) - BETA * exact_kl(theta))(jnp.asarray(THETA))
    np.testing.assert_allclose(-expected_gradient(loss), exact, atol=1e-12)


def test_k2_in_the_loss_has_the_gradient_of_the_sequence_kl():
    got = expected_gradient(lambda logp, w: policy.k2(logp, token_logprobs(jnp.asarray(REFERENCE)), MASK, w)[0])
    np.testing.assert_allclose(got, jax.grad(exact_kl)(jnp.asarray(THETA)), atol=1e-12)


def test_k2_token_by_token_would_not_have_it():
    reference = token_logprobs(jnp.asarray(REFERENCE))

    def token_level(logp, w):
        squared = jnp.where(MASK > 0, 0.5 * jnp.square(jnp.where(MASK > 0, logp - reference, 0.0)), 0.0)
        return jnp.sum(w * squared.sum(1))

    assert np.abs(expected_gradient(token_level) - jax.grad(exact_kl)(jnp.asarray(THETA))).max() > 1e-2


def test_k1_in_the_loss_has_no_gradient_which_is_why_it_is_refused():
    reference = token_logprobs(jnp.asarray(REFERENCE))
    got = expected_gradient(lambda logp, w: jnp.sum(w * policy.log_ratio(logp, reference, MASK)))
    np.testing.assert_allclose(got, 0, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 3])
def test_rloo_is_unbiased_over_all_tuples(samples):
    got = tuples_gradient(advantage.rloo, samples)
    np.testing.assert_allclose(got, jax.grad(exact_return)(jnp.asarray(THETA)), atol=1e-12)


def test_reinforce_is_short_by_one_part_in_the_batch():
    got = tuples_gradient(advantage.reinforce, 3)
    np.testing.assert_allclose(got, 2 / 3 * jax.grad(exact_return)(jnp.asarray(THETA)), atol=1e-12)


def tuples_gradient(estimator, samples):
    """Minus the expected gradient of the loss over every tuple of `samples` responses of one prompt."""
    p = np.asarray(probabilities(jnp.asarray(THETA)))
    tuples = np.array(list(itertools.product(range(7), repeat=samples)))
    advantages = np.concatenate([np.asarray(estimator(REWARDS[t][None])) for t in tuples])
    weights = np.prod(p[tuples], axis=1)

    def loss(theta):
        logp = token_logprobs(theta)
        total = 0.0
        for k in range(samples):
            rows = tuples[:, k]
            total += policy.score_function(logp[rows], MASK[rows], advantages[:, k, None], weights)[0]
        return total / samples

    return -jax.grad(loss)(jnp.asarray(THETA))


TOKEN_REWARDS = np.stack([np.array([0.4, -0.7, 1.3])[TOKENS[:, 0]], REWARDS], axis=1) * MASK  # none knows what comes after it


def exact_token_return(theta):
    return jnp.sum(probabilities(theta) * TOKEN_REWARDS.sum(1))


@pytest.mark.parametrize(("kind", "biased"), [("rloo", False), ("reinforce", True), ("grpo", True)])
def test_token_advantages_over_all_pairs(kind, biased):
    """Leave-one-out at the same token is unbiased, for the other sample knows nothing of this one; the others hold their own return."""
    returns = np.asarray(advantage.returns_to_go(TOKEN_REWARDS, MASK, 1.0))
    pairs = np.array(list(itertools.product(range(7), repeat=2)))
    one = jax.jit(lambda r, m: advantage.token_advantages(kind, r, m))
    advantages = np.concatenate([np.asarray(one(returns[pair][None], MASK[pair][None])) for pair in pairs])
    weights = np.prod(np.asarray(probabilities(jnp.asarray(THETA)))[pairs], axis=1)

    def loss(theta):
        logp = token_logprobs(theta)
        return sum(policy.score_function(logp[pairs[:, k]], MASK[pairs[:, k]], advantages[:, k], weights)[0] for k in range(2)) / 2

    error = np.abs(jax.grad(loss)(jnp.asarray(THETA)) + jax.grad(exact_token_return)(jnp.asarray(THETA))).max()
    assert error > 1e-3 if biased else error < 1e-12


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_gae_is_unbiased_at_lambda_one_whatever_the_values_and_below_it_where_they_are_wrong_is_not(lam):
    values = np.stack([np.full(7, 0.9), np.array([0.0, -1.1, 0.6])[TOKENS[:, 0]]], axis=1)  # of the prefix alone
    advantages, _ = advantage.gae(TOKEN_REWARDS, values, MASK, 1.0, lam)
    got = expected_gradient(lambda logp, w: policy.score_function(logp, MASK, advantages, w)[0])
    error = np.abs(got + jax.grad(exact_token_return)(jnp.asarray(THETA))).max()
    assert error < 1e-12 if lam == 1 else error > 1e-3


def test_no_gradient_through_advantages_reference_or_penalised_reward():
    logp, ones = jnp.log(jnp.full((2, 2), 0.5)), jnp.ones(2)
    assert np.all(jax.grad(lambda a: policy.score_function(logp, jnp.ones((2, 2)), a[:, None], ones)[0])(ones) == 0)
    assert np.all(jax.grad(lambda ref: policy.k2(logp, ref, jnp.ones((2, 2)), ones)[0])(logp - 1) == 0)
    assert np.all(jax.grad(lambda r: policy.penalised_reward(r, logp, logp, jnp.ones((2, 2)), 1.0).sum())(ones) == 0)


def test_score_function_and_k2_by_hand():
    logp = np.array([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0], [-1.0, -1.0, -1.0]])
    mask = np.array([[1.0, 1, 0], [1, 0, 0], [1, 1, 1]])
    reference = np.array([[-2.0, -2.5, 5.0], [-0.25, 5.0, 5.0], [0.0, 0.0, 0.0]])
    weights = np.array([1.0, 1.0, 0.0])
    loss, weight = policy.score_function(logp, mask, np.array([[2.0], [-1.0], [100.0]]), weights)
    assert (float(loss), float(weight)) == (2 * 3 - 0.5, 2)
    np.testing.assert_allclose(policy.log_ratio(logp, reference, mask), [1.5, -0.25, -3])
    loss, weight = policy.k2(logp, reference, mask, weights)
    assert (float(loss), float(weight)) == (1.5**2 / 2 + 0.25**2 / 2, 2)
    np.testing.assert_allclose(policy.penalised_reward(np.ones(3), logp, reference, mask, 2.0), [-2, 1.5, 7])


def test_advantages_by_hand():
    rewards = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(advantage.reinforce(rewards), rewards - 1.5)
    np.testing.assert_allclose(advantage.rloo(rewards), [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]])
    std = np.sqrt((4 + 1 + 9) / 3)
    np.testing.assert_allclose(advantage.grpo(rewards, epsilon=0.0)[0], np.array([-2, -1, 3]) / std)
    np.testing.assert_allclose(advantage.grpo(rewards)[1], 0)


@pytest.mark.parametrize("estimator", [advantage.rloo, advantage.grpo])
def test_one_sample_a_prompt_is_refused(estimator):
    with pytest.raises(ValueError, match="at least 2"):
        estimator(np.ones((4, 1)))


def test_negative_logprob_counts_masked_tokens_only():
    logprobs = np.array([[np.nan, -1.0, -2.0], [-4.0, -8.0, np.inf]])
    loss, weight = sequence.negative_logprob(logprobs, np.array([[0.0, 1, 1], [0, 1, 0]]))
    assert (float(loss), float(weight)) == (11, 3)


def test_fully_masked_inputs_give_zero_sum_zero_weight_and_zero_gradient():
    zeros = np.zeros((2, 3))
    for loss in (
        lambda x: sequence.negative_logprob(x, zeros),
        lambda x: policy.score_function(x, zeros, np.ones((2, 3)), np.zeros(2)),
        lambda x: policy.ppo_clip(x, x, zeros, np.ones((2, 3)), np.zeros(2), 0.2),
        lambda x: policy.k3(x, x - 1, zeros, np.zeros(2)),
        lambda x: policy.k3_weighted(x, x, x - 1, zeros, np.zeros(2)),
        lambda x: policy.value_loss(x, zeros, zeros, np.zeros(2)),
        lambda x: policy.entropy_bonus(x, zeros, np.zeros(2)),
        lambda x: preference.dpo(x[:, 0], x[:, 1], x[:, 0], x[:, 1], np.zeros(2), 0.1),
        lambda x: policy.k2(x, x, zeros, np.zeros(2)),
        lambda x: reward.bce(x[:, 0], np.ones(2), np.zeros(2)),
        lambda x: reward.bradley_terry(x[:, 0], x[:, 1], np.zeros(2)),
    ):
        assert [float(v) for v in loss(jnp.ones((2, 3)))] == [0, 0]
        assert np.all(jax.grad(lambda x, loss=loss: loss(x)[0])(jnp.ones((2, 3))) == 0)


def test_bce_by_hand_and_far_out():
    loss, weight = reward.bce(np.array([2.0, -1.0, 5.0]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(float(loss), np.log1p(np.exp(-2)) + 0.5 * np.log1p(np.exp(-1)), rtol=1e-14)
    assert float(weight) == 1.5
    np.testing.assert_allclose(float(reward.bce(np.array([-800.0]), np.ones(1), np.ones(1))[0]), 800)


def test_bce_gradient_is_weight_times_probability_less_label():
    h, labels, weights = np.array([0.3, -2.0, 4.0]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 2.0, 0.5])
    got = jax.grad(lambda x: reward.bce(x, labels, weights)[0])(jnp.asarray(h))
    np.testing.assert_allclose(got, weights * (1 / (1 + np.exp(-h)) - labels), atol=1e-14)


def test_bce_at_the_optimum_is_the_log_density_ratio():
    """Over an enumerated space, the gradient vanishes at h = log p_positive / p_negative and nowhere near it."""
    positive, negative = probabilities(jnp.asarray(THETA)), probabilities(jnp.asarray(REFERENCE))
    weights = jnp.concatenate([positive, negative])
    labels = np.repeat([1.0, 0.0], 7)

    def gradient(h):
        return jax.grad(lambda x: reward.bce(jnp.concatenate([x, x]), labels, weights)[0])(h)

    optimum = jnp.log(positive) - jnp.log(negative)
    np.testing.assert_allclose(gradient(optimum), 0, atol=1e-15)
    assert np.abs(gradient(optimum + 0.1)).max() > 1e-3


def test_bradley_terry_by_hand():
    loss, weight = reward.bradley_terry(np.array([3.0, 0.0]), np.array([1.0, 9.0]), np.array([2.0, 0.0]))
    np.testing.assert_allclose(float(loss), 2 * np.log1p(np.exp(-2)), rtol=1e-14)
    assert float(weight) == 2


def test_correct_counts_ties_half():
    np.testing.assert_array_equal(reward.correct(np.array([2.0, -1.0, 0.0])), [1, 0, 0.5])
