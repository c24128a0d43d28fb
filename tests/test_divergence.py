"""Each divergence's reward: on a small categorical policy, in float64, its policy gradient descends the divergence it is named for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax import config
from irl_jax.objectives import divergence

THETA = np.random.default_rng(0).normal(size=6)
DEMO = np.random.default_rng(1).dirichlet(np.ones(6))
GENERATORS = {  # written out a second time, in numpy, from the definitions of the divergences themselves
    "reverse_kl": lambda p, q: np.sum(q * np.log(q / p)),
    "jensen_shannon": lambda p, q: np.sum(p * np.log(2 * p / (p + q))) + np.sum(q * np.log(2 * q / (p + q))),
    "forward_kl": lambda p, q: np.sum(p * np.log(p / q)),
    "pearson": lambda p, q: np.sum((p - q) ** 2 / q),
    "neyman": lambda p, q: np.sum((p - q) ** 2 / p),
    "hellinger": lambda p, q: np.sum((np.sqrt(p) - np.sqrt(q)) ** 2),
    "total_variation": lambda p, q: np.abs(p - q).sum() / 2,
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def numerical_gradient(name, step=1e-6):
    """Central differences of D(demo || softmax(theta)), by the definition."""
    def value(theta):
        q = np.exp(theta - theta.max())
        return GENERATORS[name](DEMO, q / q.sum())

    return np.array([(value(THETA + step * e) - value(THETA - step * e)) / (2 * step) for e in np.eye(6)])


def policy_gradient(rewards):
    """E_policy[r grad log policy], the rewards held fixed."""
    q = jax.nn.softmax(jnp.asarray(THETA))
    return jax.grad(lambda theta: jnp.sum(jax.lax.stop_gradient(q) * rewards * jax.nn.log_softmax(theta)))(jnp.asarray(THETA))


def optimal_logits():
    return jnp.log(DEMO) - jax.nn.log_softmax(jnp.asarray(THETA))


@pytest.mark.parametrize("name", config.DIVERGENCES)
def test_the_policy_gradient_descends_the_divergence(name):
    rewards = divergence.reward(name, optimal_logits(), clip=50.0)
    np.testing.assert_allclose(policy_gradient(rewards), -numerical_gradient(name), atol=1e-8 if name != "total_variation" else 1e-6)


@pytest.mark.parametrize("name", config.DIVERGENCES)
def test_the_generator_is_the_divergence(name):
    q = np.asarray(jax.nn.softmax(jnp.asarray(THETA)))
    u = DEMO / q
    f = divergence.generator(name, u)
    np.testing.assert_allclose(np.sum(q * f), GENERATORS[name](DEMO, q), atol=1e-12)
    # u f'(u) - f(u) and the reward differ by a constant
    slope = jax.vmap(jax.grad(lambda x: divergence.generator(name, x)))(jnp.asarray(u))
    difference = u * slope - f - divergence.reward(name, jnp.log(u), clip=50.0)
    np.testing.assert_allclose(difference, difference[0], atol=1e-10)


def test_the_forward_kl_is_sft():
    rewards = divergence.reward("forward_kl", optimal_logits(), clip=50.0)
    sft = jax.grad(lambda theta: jnp.sum(DEMO * jax.nn.log_softmax(theta)))(jnp.asarray(THETA))
    np.testing.assert_allclose(policy_gradient(rewards), sft, atol=1e-12)


@pytest.mark.parametrize("name", config.DIVERGENCES)
def test_exponentials_are_clipped_and_nothing_else(name):
    h = jnp.array([-9.0, -2.0, 0.0, 2.0, 9.0])
    clipped, free = divergence.reward(name, h, clip=3.0), divergence.reward(name, h, clip=50.0)
    np.testing.assert_array_equal(clipped[1:4], free[1:4])
    exponential = name in ("forward_kl", "pearson", "neyman", "hellinger")
    assert (clipped[4] != free[4] and clipped[0] != free[0]) == exponential
    if exponential:
        np.testing.assert_allclose(clipped[jnp.array([0, 4])], divergence.reward(name, jnp.array([-3.0, 3.0]), clip=50.0))
    assert np.all(np.diff(np.asarray(free)) >= 0)  # more demonstrator-like is never rewarded less


def test_the_names_are_the_config_s_and_others_are_refused():
    assert divergence.DIVERGENCES == config.DIVERGENCES
    with pytest.raises(ValueError, match="no divergence 'kl'"):
        divergence.reward("kl", jnp.zeros(1), 1.0)
